"""The one training loop."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from faap.config import Recipe
from faap.data import Batch, FaapImages, GroupBalancedBatches, Split, collate, load_dataset
from faap.detectors import FrozenDetector, load_detector
from faap.errors import FaapError
from faap.evaluation import best_epoch, detect, group_metrics
from faap.perturbation import Generator, jitter, load_generator, save_generator
from faap.training.checkpoints import checkpoint_path, copy_file, differences, read_checkpoint, save_checkpoint
from faap.training.measure import measure
from faap.training.monitor import Monitor
from faap.training.objective import Objective, Weights


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves behind.

    Attributes:
        run_dir: Folder with `config.yaml`, `train_log.jsonl`, `checkpoints/`, `generator/`, `metrics.json` and
            `report.html`.
        metrics: The content of `metrics.json`: the test split, read once, with the chosen epoch.
        epoch: The epoch that was chosen on the validation split.
    """

    run_dir: Path
    metrics: dict[str, Any]
    epoch: int


def train(recipe: Recipe, *, console: Console | None = None) -> TrainResult:
    """Train a generator in front of a frozen detector, choose an epoch on validation, measure it once on test.

    Args:
        recipe: A complete configuration; see `load_recipe`.
        console: Where to print; standard output by default.

    Returns:
        The run directory, the test metrics and the chosen epoch.

    Raises:
        FaapError: If data, detector or the checkpoint to resume from cannot be used, or the loss stops being finite.
    """
    with _seeded(recipe.seed):
        return _train(recipe, console or Console())


def _train(recipe: Recipe, console: Console) -> TrainResult:
    accelerator = _accelerator(recipe)
    dataset = load_dataset(recipe.dataset_root, anchor=recipe.anchor_group, reference=recipe.reference_group)
    training, validation = dataset.split("train"), dataset.split("val")
    dataset.split("test")  # so that a broken test split is found now and not after the training
    detector = load_detector(recipe.detr_checkpoint, accelerator.device)
    run_dir = Path(recipe.output_dir or f"faap_outputs/faap_outputs_{recipe.name}")
    with _seeded(recipe.seed):
        trainer = _Trainer(recipe, accelerator, detector, training)
    first = trainer.resume(Path(recipe.resume), console) if recipe.resume else 0
    if first >= recipe.epochs:
        console.print(f"{recipe.resume} is the last of {recipe.epochs} epochs: nothing left to train.")
    _claim(run_dir, recipe, console)
    if recipe.resume:
        _bring_along(Path(recipe.resume).parent.parent, run_dir, first)

    monitor = Monitor(run_dir, first, console)
    baseline = detect(detector, validation, device=accelerator.device)
    measured = group_metrics(validation, baseline)
    console.print(_opening(recipe, trainer, training, validation, measured, run_dir), highlight=False)
    for epoch in range(first, recipe.epochs):
        started = time.perf_counter()
        row = trainer.epoch(epoch, monitor, console)
        perturbed = group_metrics(
            validation, detect(detector, validation, trainer.generator, device=accelerator.device)
        )
        row["validation"] = _validation(validation, measured, perturbed)
        row["seconds"] = round(time.perf_counter() - started, 2)
        trainer.save(checkpoint_path(run_dir, epoch), epoch)
        monitor.epoch(row)
        chosen = best_epoch(monitor.rows, recipe.reference_group)
        copy_file(checkpoint_path(run_dir, chosen), run_dir / "checkpoints" / "best.pth")
    monitor.close()
    trainer.assert_frozen()
    chosen = best_epoch(monitor.rows, recipe.reference_group)
    generator = load_generator(run_dir / "checkpoints" / "best.pth").to(accelerator.device)
    save_generator(generator, run_dir / "generator")
    metrics = measure(detector, generator, dataset, run_dir)
    trainer.assert_frozen()
    return TrainResult(run_dir, metrics, chosen)


class _Trainer:
    """Generator, objective and optimizer, and one epoch of training them."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, detector: FrozenDetector, split: Split) -> None:
        self.recipe, self.accelerator, self.detector = recipe, accelerator, detector
        self.sha256 = detector.sha256()
        images = FaapImages(
            split,
            detector.preprocessing,
            detector.label_map(split.categories),
            training=True,
            seed=recipe.seed,
        )
        self.batches = GroupBalancedBatches(
            [i for i, record in enumerate(split.records) if record.group == recipe.anchor_group],
            [i for i, record in enumerate(split.records) if record.group == recipe.reference_group],
            recipe.batch_size,
            recipe.seed,
            recipe.images_per_epoch,
        )
        self.loader = DataLoader(
            images,
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=recipe.num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.generator = Generator(arch=recipe.arch, epsilon=recipe.epsilon_peak)
        self.objective = Objective(recipe, detector.feature_dim)
        self.generator.to(accelerator.device)
        self.objective.to(accelerator.device)
        self.parameters = [*self.generator.parameters(), *self.objective.parameters()]
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
        self.optimizer = kind(self.parameters, lr=recipe.lr_g, weight_decay=recipe.weight_decay)
        self.schedules = recipe.schedules()

    def resume(self, path: Path, console: Console) -> int:
        """Load a checkpoint; return the epoch to go on with."""
        content = read_checkpoint(path)
        mine, theirs = self.detector.checkpoint_sha256, content["detector_sha256"]
        if mine != theirs:
            raise FaapError(
                f"{path}: trained against another detector (its weights' SHA-256 is {theirs[:12]}…, that of "
                f"{self.detector.name} {mine[:12]}…). Resume with that detector."
            )
        if changed := differences(content["recipe"], self.recipe):
            console.print(f"Going on with other settings than the checkpoint's: {'; '.join(changed)}.", style="yellow")
        try:
            self.generator.load_state_dict(content["generator"])
            self.objective.load_state_dict(content["objective"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise FaapError(f"{path}: its weights do not fit this recipe: {error}") from error
        return int(content["epoch"]) + 1

    def save(self, path: Path, epoch: int) -> None:
        save_checkpoint(
            path,
            epoch=epoch,
            recipe=self.recipe,
            generator=self.generator,
            objective=self.objective,
            optimizer=self.optimizer,
            detector_sha256=self.detector.checkpoint_sha256,
        )

    def assert_frozen(self) -> None:
        assert self.detector.sha256() == self.sha256, "the frozen detector has changed"
        assert not self.detector.training, "the frozen detector has left evaluation mode"

    def epoch(self, epoch: int, monitor: Monitor, console: Console) -> dict[str, Any]:
        """Train one epoch; return its line of the log but for the validation."""
        schedule = {name: values[epoch] for name, values in self.schedules.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = schedule["learning_rate"]
        self.generator.epsilon = schedule["epsilon"]  # the bound belongs to the epoch's generator, wherever it is used
        self.batches.set_epoch(epoch)
        self.generator.train()
        self.objective.train()
        steps: list[dict[str, float]] = []
        images = 0
        with _seeded(self.recipe.seed, epoch), _progress(console) as progress:
            bar = progress.add_task(f"epoch {epoch}", total=len(self.batches))
            for number, batch in enumerate(self.loader):
                values = self.step(batch.to(self.accelerator.device), epoch, schedule)
                monitor.step(epoch * len(self.batches) + number, values)
                images += len(batch.groups)
                steps.append(values)
                progress.advance(bar)
        self.generator.eval()
        self.objective.eval()
        means = {name: _mean([values[name] for values in steps]) for name in steps[0]}
        return {"epoch": epoch, "images": images, "train": means, "schedule": schedule}

    def step(self, batch: Batch, epoch: int, schedule: dict[str, float]) -> dict[str, float]:
        """Make one optimizer step; return every monitored number."""
        weights = Weights(schedule["contrastive_weight"], schedule["beta"])
        seeds = [(self.recipe.seed, epoch, int(image)) for image in batch.image_ids]
        with self.accelerator.autocast():
            perturbed = self.generator.perturb(batch.pixel_values, batch.pixel_mask)
            augmented = jitter(perturbed, self.recipe.aug_strength, seeds, batch.pixel_mask)
            out = self.detector(augmented, batch.pixel_mask)
        total, seen = self.objective(self.detector, out, batch.targets, batch.groups, weights)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(total)
        seen["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_norm)
        delta = (perturbed.detach() - batch.pixel_values).flatten(1)
        seen["delta_linf"] = delta.abs().amax()
        seen["delta_l2"] = delta.norm(dim=1).mean()
        values = _to_floats(seen)
        if not np.isfinite(values["total"]) or not np.isfinite(values["gradient_norm"]):
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise FaapError(f"the loss or its gradient is not finite in epoch {epoch} ({numbers}); try a lower --lr_g.")
        self.optimizer.step()
        return values


def _mean(values: list[float]) -> float | None:
    """Average over the steps that have a value: a similarity needs a pair of images."""
    known = [value for value in values if np.isfinite(value)]
    return sum(known) / len(known) if known else None


def _to_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Bring scalars to the host in one transfer."""
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def _accelerator(recipe: Recipe) -> Accelerator:
    wanted = recipe.device
    if wanted not in ("auto", "cpu") and not torch.cuda.is_available():
        raise FaapError(f"device is {wanted!r}, but no CUDA device is available; use 'auto' or 'cpu'.")
    return Accelerator(cpu=wanted == "cpu", mixed_precision=recipe.precision)


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Make torch's random numbers a function of `numbers` inside, and leave the caller's generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
        yield


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    )


def _claim(run_dir: Path, recipe: Recipe, console: Console) -> None:
    """Make the run directory; an earlier run in its place is moved aside, unless it is the one that goes on."""
    if not recipe.resume and any(run_dir.glob("checkpoints/epoch_*.pth")):
        number = next(n for n in itertools.count(1) if not run_dir.with_name(f"{run_dir.name}.{n}").exists())
        aside = run_dir.rename(run_dir.with_name(f"{run_dir.name}.{number}"))
        console.print(f"{run_dir} held an earlier run: it is now {aside}.")
    run_dir.mkdir(parents=True, exist_ok=True)
    replace(recipe, resume="").save(run_dir / "config.yaml")


def _bring_along(source: Path, run_dir: Path, first: int) -> None:
    """Copy the earlier epochs' checkpoints and log when a run goes on in another folder."""
    if source.resolve() == run_dir.resolve():
        return
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    for epoch in range(first):
        if (earlier := checkpoint_path(source, epoch)).exists():
            copy_file(earlier, checkpoint_path(run_dir, epoch))
    if (log := source / "train_log.jsonl").exists():
        copy_file(log, run_dir / "train_log.jsonl")


def _validation(split: Split, baseline: dict[str, Any], perturbed: dict[str, Any]) -> dict[str, Any]:
    def short(metrics: dict[str, Any]) -> dict[str, Any]:
        return {group: {key: _or_none(values[key]) for key in ("AP", "AR100")} for group, values in metrics.items()}

    def gap(key: str) -> float | None:
        return _or_none(perturbed[split.reference][key] - perturbed[split.anchor][key])

    return {
        "baseline": short(baseline),
        "perturbed": short(perturbed),
        "gap": {"AP": gap("AP"), "AR": gap("AR100")},
    }


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _opening(
    recipe: Recipe, trainer: _Trainer, training: Split, validation: Split, baseline: dict[str, Any], run_dir: Path
) -> str:
    parameters = sum(p.numel() for p in trainer.generator.parameters())
    counts = ", ".join(f"{count} {group}" for group, count in training.counts().items())
    aps = ", ".join(f"{group} {values['AP']:.4f}" for group, values in baseline.items())
    return (
        f"{recipe.name}: {recipe.epochs} epochs of {len(trainer.batches)} steps of {recipe.batch_size} images "
        f"({counts}); generator {recipe.arch}, {parameters:,} parameters; detector {trainer.detector.name} "
        f"({trainer.detector.checkpoint_sha256[:12]}…), frozen\nvalidation AP without the generator: {aps} "
        f"({len(validation.records)} images)\nrun directory: {run_dir}"
    )
