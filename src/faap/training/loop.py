"""The one training loop."""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils.data import DataLoader

from faap import distributed
from faap.config import Recipe
from faap.data import Batch, FaapImages, GroupBalancedBatches, Split, collate, load_dataset
from faap.detectors import FrozenDetector, load_detector
from faap.devices import own_randomness, resolve_device
from faap.errors import FaapError
from faap.evaluation import best_epoch, check_resampling, detect, detect_baseline, group_metrics, validation_row
from faap.perturbation import Generator, build_generator, jitter, load_generator, save_generator
from faap.report import measure
from faap.training.checkpoints import checkpoint_path, copy_file, differences, read_checkpoint, save_checkpoint
from faap.training.monitor import Monitor, Silent
from faap.training.objective import Objective
from faap.training.parallel import bring_together, padded_alike


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves behind.

    Attributes:
        run_dir: folder with `config.yaml`, `train_log.jsonl`, `checkpoints/`, `generator/`, `metrics.json` and
            `report.html`.
        metrics: the content of `metrics.json`: the test split, read once, with the chosen epoch.
        epoch: the epoch that was chosen on the validation split.
    """

    run_dir: Path
    metrics: dict[str, Any]
    epoch: int


def train(recipe: Recipe, *, console: Console | None = None) -> TrainResult:
    """Train a generator in front of a frozen detector, choose an epoch on validation, measure it once on test.

    Started in several processes by torchrun or accelerate, it trains on all their devices as on one: each takes its
    share of every batch, the loss is that of the whole batch, and only the first process writes.

    Args:
        recipe: a complete configuration; see `load_recipe`.
        console: where to print; standard output by default.

    Returns:
        The run directory, the test metrics and the chosen epoch.

    Raises:
        FaapError: if data, detector or the checkpoint to resume from cannot be used, or the loss stops being finite.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", recipe.precision):
        raise FaapError(
            f"accelerate was started with mixed precision {asked}, and the recipe's is {recipe.precision}: say it with "
            "--precision (no or bf16) and leave accelerate's at no."
        )
    try:
        with _seeded(recipe.seed):
            return _train(recipe, console or Console())
    except TorchDynamoException as error:
        if not recipe.compile:
            raise
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise FaapError(f"the detector cannot be compiled here: {reason}\nTrain without --compile.") from error


def _train(recipe: Recipe, console: Console) -> TrainResult:
    device = resolve_device(recipe.device)
    if distributed.rank():
        console = Console(quiet=True)
    dataset = distributed.one_first(lambda: load_dataset(**recipe.data()))
    for said in dataset.usable("train", "val", "test"):
        console.print(said, style="yellow", markup=False)
    training, validation = dataset.split("train"), dataset.split("val")
    # so that a test split that cannot be used is found now and not after the training
    check_resampling(dataset.split("test"))
    detector = load_detector(recipe.detr_checkpoint, device)
    if recipe.compile:
        detector.compile(dynamic=False)  # a graph for each shape, up to torch's limit; those beyond it are not compiled
    validation = validation.with_categories(detector.label_map(validation.categories))
    with _seeded(recipe.seed):
        trainer = _Trainer(recipe, device, detector, training)
    first = trainer.resume(Path(recipe.resume), console) if recipe.resume else 0
    if first >= recipe.epochs:
        console.print(f"{recipe.resume} is the last of {recipe.epochs} epochs: nothing left to train.", markup=False)
    run_dir = distributed.first(lambda: _claim(recipe, first, console))

    writes = distributed.rank() == 0
    monitor = Monitor(run_dir, first, first * len(trainer.batches), console) if writes else Silent()
    measured = group_metrics(validation, detect_baseline(detector, validation))
    console.print(_opening(recipe, trainer, training, validation, measured, run_dir), highlight=False, markup=False)
    for epoch in range(first, recipe.epochs):
        started = time.perf_counter()
        row = trainer.epoch(epoch, monitor, console)
        perturbed = group_metrics(validation, detect(detector, validation, trainer.generator))
        row["validation"] = validation_row(measured, perturbed, validation.anchor, validation.reference)
        row["seconds"] = round(time.perf_counter() - started, 2)
        if writes:
            trainer.save(checkpoint_path(run_dir, epoch), epoch)
            monitor.epoch(row)
            _choose(run_dir, monitor.rows, recipe.reference_group)
    monitor.close()
    trainer.assert_frozen()

    def best() -> tuple[int, Generator]:
        chosen = _choose(run_dir, monitor.rows, recipe.reference_group)
        return chosen, load_generator(run_dir / "checkpoints" / "best.pth")

    chosen, generator = distributed.first(best)
    if writes:
        save_generator(generator, run_dir / "generator")
    metrics = measure(detector, generator.to(device), dataset, run_dir)
    trainer.assert_frozen()
    return TrainResult(run_dir, metrics, chosen)


class _Trainer:
    """Generator, objective and optimizer, and one epoch of training them."""

    def __init__(self, recipe: Recipe, device: torch.device, detector: FrozenDetector, split: Split) -> None:
        self.recipe, self.device, self.detector = recipe, device, detector
        self.sha256, self.data_sha256 = detector.tensors_sha256(), split.fingerprint()
        images = FaapImages(
            split,
            detector.preprocessing,
            detector.label_map(split.categories),
            training=True,
            seed=recipe.seed,
            edges=recipe.train_edges,
        )
        self.batches = GroupBalancedBatches(
            [i for i, record in enumerate(split.records) if record.group == recipe.anchor_group],
            [i for i, record in enumerate(split.records) if record.group == recipe.reference_group],
            recipe.batch_size,
            recipe.seed,
            recipe.images_per_epoch,
            shape=images.shape,
            rank=distributed.rank(),
            world=distributed.world(),
        )
        self.loader = DataLoader(
            images,
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=recipe.num_workers,
        )
        self.generator = build_generator(recipe.arch, recipe.epsilon_peak, recipe.widths or None)
        self.objective = Objective(recipe, detector.feature_dim)
        if distributed.world() > 1 and recipe.arch == "unet":
            raise FaapError(
                "arch is 'unet', whose batch norm looks at the whole batch, and a process has a part of it. Use --arch "
                "light, or one process."
            )
        if distributed.world() > recipe.batch_size:
            raise FaapError(
                f"batch_size is {recipe.batch_size}, and {distributed.world()} processes share a batch: use fewer."
            )
        self.generator.to(device)
        self.objective.to(device)
        head = self.objective.head
        self.parts = [list(part.parameters()) for part in (self.generator, head) if part is not None]
        everything = list(itertools.chain(*self.parts))
        self.clipped = self.parts if recipe.clip_apart else [everything]
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
        self.optimizer = kind(everything, lr=recipe.lr_g, weight_decay=recipe.weight_decay)
        self.schedules = recipe.schedules()

    def resume(self, path: Path, console: Console) -> int:
        """Load a checkpoint; return the epoch to go on with."""
        content = read_checkpoint(path)
        mine, theirs = self.data_sha256, content["data_sha256"]
        if mine != theirs:
            raise FaapError(
                f"{path}: trained on other data than {self.recipe.dataset_root} (fingerprint {theirs[:12]}…, here "
                f"{mine[:12]}…). Resume with --dataset_root of that data."
            )
        mine, theirs = self.detector.file_sha256, content["detector_file_sha256"]
        if mine != theirs:
            raise FaapError(
                f"{path}: trained against another detector (its weights' SHA-256 is {theirs[:12]}…, that of "
                f"{self.detector.name} {mine[:12]}…). Resume with that detector."
            )
        if changed := differences(content["recipe"], self.recipe):
            console.print(
                f"Going on with other settings than the checkpoint's: {'; '.join(changed)}.",
                style="yellow",
                markup=False,
            )
        try:
            self.generator.load_state_dict(content["generator"])
            self.objective.load_state_dict(content["objective"])
            self.optimizer.load_state_dict(content["optimizer"])
            for group in self.optimizer.param_groups:
                group["weight_decay"] = self.recipe.weight_decay  # the checkpoint's would stay otherwise
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
            detector_file_sha256=self.detector.file_sha256,
            data_sha256=self.data_sha256,
        )

    def assert_frozen(self) -> None:
        assert self.detector.tensors_sha256() == self.sha256, "the frozen detector has changed"
        assert not self.detector.training, "the frozen detector has left evaluation mode"

    def epoch(self, epoch: int, monitor: Monitor | Silent, console: Console) -> dict[str, Any]:
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
            for number, batch in enumerate(self._loaded()):
                batch = padded_alike(batch.to(self.device))
                values = self.step(batch, epoch, schedule, self.batches.own(number))
                monitor.step(epoch * len(self.batches) + number, values | schedule)
                images += round(values["n_f"] + values["n_m"])
                steps.append(values)
                progress.advance(bar)
        self.generator.eval()
        self.objective.eval()
        means = {name: _mean([values[name] for values in steps]) for name in steps[0]}
        return {
            "epoch": epoch,
            "images": images,
            "train": means,
            "losses": self.objective.losses,
            "schedule": schedule,
        }

    def _loaded(self) -> Iterator[Batch]:
        try:
            yield from self.loader
        except FaapError as error:  # a worker process wraps the message in its traceback
            raise FaapError(str(error).strip().rpartition("FaapError: ")[2]) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise FaapError(
                f"{error}\nIts memory, or that which workers share (/dev/shm), has run out: use fewer --num_workers, "
                "a smaller --batch_size, or more shared memory (docker run --shm-size)."
            ) from error

    def step(self, batch: Batch, epoch: int, schedule: dict[str, float], own: int | None = None) -> dict[str, float]:
        """Make one optimizer step; return every monitored number.

        Args:
            batch: this process's images.
            epoch: counted from 0.
            schedule: the epoch's value of every schedule.
            own: how many of the images, from the front, belong to the batch; None: all.
        """
        own = len(batch.groups) if own is None else own
        seeds = [(self.recipe.seed, epoch, int(image)) for image in batch.image_ids]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            perturbed = self.generator.perturb(batch.pixel_values, batch.pixel_mask)
            augmented = jitter(perturbed, self.recipe.aug_strength, seeds, batch.pixel_mask)
            out = self.detector(*self.detector.adapt(augmented, batch.pixel_mask))
        out, targets, groups, matches = bring_together(
            self.detector, out, batch.targets, batch.groups, own, self.recipe.anchor_group
        )
        total, seen = self.objective(self.detector, out, targets, groups, schedule, matches)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self._add_up_gradients()
        norms = [nn.utils.clip_grad_norm_(part, self.recipe.max_norm) for part in self.clipped]
        # a part without any gradient has its norm on the CPU
        seen["gradient_norm"] = torch.stack([norm.to(self.device) for norm in norms]).norm()
        delta = (perturbed.detach() - batch.pixel_values).flatten(1)[:own]
        linf, l2 = distributed.gather(torch.stack([delta.abs().amax(1), delta.norm(dim=1)], 1)).unbind(1)
        seen["delta_linf"], seen["delta_l2"] = linf.amax(), l2.mean()
        values = _to_floats(seen)
        if not np.isfinite(values["total"]) or not np.isfinite(values["gradient_norm"]):
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise FaapError(f"the loss or its gradient is not finite in epoch {epoch} ({numbers}); try a lower --lr_g.")
        self.optimizer.step()
        return values

    @torch.no_grad()
    def _add_up_gradients(self) -> None:
        """Give every process the gradient of the whole batch."""
        if distributed.world() == 1:
            return
        # the generator's is that of the process's own images; the head saw the whole batch everywhere
        head = [parameter.grad for part in self.parts[1:] for parameter in part if parameter.grad is not None]
        for gradient in head:
            gradient /= distributed.world()
        own = [parameter.grad for parameter in self.parts[0] if parameter.grad is not None]
        distributed.add_up([*own, *head])


def _mean(values: list[float]) -> float | None:
    """Average over the steps that have a value: a similarity needs a pair of images."""
    known = [value for value in values if np.isfinite(value)]
    return sum(known) / len(known) if known else None


def _to_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Bring scalars to the host in one transfer."""
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Make torch's random numbers a function of `numbers` inside, and leave the caller's generator as it was."""
    with own_randomness():
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
        yield


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    )


def _claim(recipe: Recipe, first: int, console: Console) -> Path:
    """Make the run directory; a run that is there is moved aside, unless it is the one that goes on."""
    checkpoint = Path(recipe.resume).resolve()
    source = checkpoint.parent.parent if recipe.resume and checkpoint.parent.name == "checkpoints" else None
    place = Path(recipe.output_dir or source or f"faap_outputs/faap_outputs_{recipe.name}")
    run_dir = place.resolve()
    if run_dir != source and any(run_dir.glob("checkpoints/epoch_*.pth")):
        number = next(n for n in itertools.count(1) if not run_dir.with_name(f"{run_dir.name}.{n}").exists())
        aside = run_dir.rename(run_dir.with_name(f"{run_dir.name}.{number}"))
        console.print(f"{place} held an earlier run: it is now {aside}.", markup=False)
    run_dir.mkdir(parents=True, exist_ok=True)
    if source is not None and run_dir != source:
        for epoch in range(first):
            if (earlier := checkpoint_path(source, epoch)).exists():
                copy_file(earlier, checkpoint_path(run_dir, epoch))
        if (log := source / "train_log.jsonl").exists():
            copy_file(log, run_dir / "train_log.jsonl")
    replace(recipe, resume="").save(run_dir / "config.yaml")
    return place


def _choose(run_dir: Path, rows: Sequence[dict[str, Any]], reference: str) -> int:
    """Copy the checkpoint of the epoch that validation prefers to `best.pth`; return the epoch."""
    kept = [row for row in rows if checkpoint_path(run_dir, row["epoch"]).exists()]
    if not kept:
        raise FaapError(f"{run_dir}: no epoch has both a line in train_log.jsonl and a checkpoint; nothing to measure.")
    chosen = best_epoch(kept, reference)
    copy_file(checkpoint_path(run_dir, chosen), run_dir / "checkpoints" / "best.pth")
    return chosen


def _opening(
    recipe: Recipe, trainer: _Trainer, training: Split, validation: Split, baseline: dict[str, Any], run_dir: Path
) -> str:
    parameters = sum(p.numel() for p in trainer.generator.parameters())
    counts = ", ".join(f"{count} {group}" for group, count in training.counts().items())
    if mixed := sum(not record.group for record in training.records):
        counts += f"; {mixed} with people of several groups are not trained on"
    aps = ", ".join(f"{group} {values['AP']:.4f}" for group, values in baseline.items())
    return (
        f"{recipe.name}: {recipe.epochs} epochs of {len(trainer.batches)} steps of {recipe.batch_size} images "
        f"({counts}); generator {recipe.arch}, {parameters:,} parameters; detector {trainer.detector.name} "
        f"({trainer.detector.file_sha256[:12]}…), frozen\nvalidation AP without the generator: {aps} "
        f"({len(validation.records)} images)\nrun directory: {run_dir}"
    )
