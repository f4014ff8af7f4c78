"""The story of a run."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch._dynamo.exc import TorchDynamoException

from faap import distributed
from faap.config import Recipe
from faap.data import FaapImages, Split, load_dataset
from faap.detectors import load_detector
from faap.errors import FaapError
from faap.evaluation import (
    NONE_WORTH_IT,
    check_resampling,
    detect,
    detect_baseline,
    group_metrics,
    is_worth_deploying,
    validation_row,
)
from faap.perturbation import Generator, load_generator, save_generator
from faap.report.measure import measure
from faap.runs import Run, differences
from faap.training.checkpoints import read_checkpoint
from faap.training.monitor import Monitor, NullMonitor, keep_best
from faap.training.trainer import Trainer, seeded


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


def train(recipe: Recipe, *, beside: Sequence[str] = (), console: Console | None = None) -> TrainResult:
    """Train a generator in front of a frozen detector, choose an epoch on validation, measure it once on test.

    Started in several processes by torchrun or accelerate, it trains on all their devices as on one: each takes its
    share of every batch, the loss is that of the whole batch, and only the first process writes.

    Args:
        recipe: a complete configuration; see `load_recipe`.
        beside: other generators, as `load_generator` takes them, to be measured with it on the test images.
        console: where to print; standard output by default.

    Returns:
        The run directory, the test metrics and the chosen epoch.

    Raises:
        FaapError: if data, detector, output folder or the checkpoint to resume from cannot be used, or the loss stops
            being finite.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", recipe.precision):
        said = f"accelerate was started with mixed precision {asked}, and the recipe's is {recipe.precision}"
        raise FaapError(f"{said}: say it with --precision (no or bf16) and leave accelerate's at no.")
    try:
        with seeded(recipe.seed):
            return _train(recipe, beside, console or Console())
    except TorchDynamoException as error:
        if not recipe.compile:
            raise
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise FaapError(f"the detector cannot be compiled here: {reason}\nTrain without --compile.") from error


def _train(recipe: Recipe, beside: Sequence[str], console: Console) -> TrainResult:
    device = distributed.resolve_device(recipe.device)
    if distributed.rank():
        console = NullMonitor.console
    dataset = distributed.host_first(lambda: load_dataset(**recipe.data()))
    for said in dataset.usable("train", "val", "test"):
        console.print(said, style="yellow", markup=False)
    training, validation = dataset.split("train"), dataset.split("val")
    # so that a test split that cannot be used is found now and not after the training
    check_resampling(dataset.split("test"))
    check_resampling(validation)
    detector = load_detector(recipe.detr_checkpoint, device)
    distributed.host_first(lambda: [load_generator(each) for each in beside])  # what cannot be loaded is said now
    frozen = detector.tensors_sha256()
    if recipe.compile:
        detector.compile(dynamic=False)  # a graph for each shape, up to torch's limit; those beyond it are not compiled
    validation = validation.with_categories(detector.label_map(validation.categories))

    trainer = Trainer(recipe, device, detector, training)
    if recipe.resume:
        _resume(trainer, console)
    run = distributed.main_only(lambda: _claim(recipe, trainer.finished, console))
    monitor = NullMonitor()
    if distributed.rank() == 0:
        monitor = Monitor(run, trainer.finished * len(trainer.batches), console)
    # decoded once for all epochs; training has the other three quarters of the memory
    options: Any = {"memory": recipe.memory * 2**18}
    images = FaapImages(validation, detector.preprocessing, detector.label_map(validation.categories), **options)
    loading: Any = {"images": images, "num_workers": recipe.num_workers}
    before = detect_baseline(detector, validation, **loading)
    measured = group_metrics(validation, before)
    console.print(_opening(trainer, training, validation, measured, run), highlight=False, markup=False)
    for epoch in range(trainer.finished, recipe.epochs):
        started = time.perf_counter()
        row = trainer.epoch(epoch, monitor)
        after = detect(detector, validation, trainer.kept, **loading)
        row["validation"] = validation_row(validation, before, after)
        row["seconds"] = round(time.perf_counter() - started, 2)
        monitor.epoch(row, trainer.state_dict())
    monitor.close()
    assert detector.tensors_sha256() == frozen, "the frozen detector has changed"

    def best() -> tuple[dict[str, Any], Generator]:
        chosen = keep_best(run)
        generator = load_generator(run.best)
        save_generator(generator, run.generator)
        return chosen, generator

    chosen, generator = distributed.main_only(best)
    warnings = [] if is_worth_deploying(chosen) else [NONE_WORTH_IT]
    how: Any = {"num_workers": recipe.num_workers, "console": console, "warnings": warnings}
    metrics = measure(detector, generator.to(device), dataset, run, trained_in=run, beside=beside, **how)
    assert detector.tensors_sha256() == frozen, "the frozen detector has changed"
    return TrainResult(run.path, metrics, chosen["epoch"])


def _resume(trainer: Trainer, console: Console) -> None:
    """Bring a trainer to where a checkpoint was, and say what is not as it was then."""
    recipe = trainer.recipe
    state = read_checkpoint(Path(recipe.resume))
    trainer.load_state_dict(state, recipe.resume)
    # where data and detector lie may change; what they are is held against their hashes
    if changed := differences(state["recipe"], recipe, "run", "data"):
        said = f"Going on with other settings than the checkpoint's: {'; '.join(changed)}."
        console.print(said, style="yellow", markup=False)
    if trainer.finished >= recipe.epochs:
        console.print(f"{recipe.resume} is the last of {recipe.epochs} epochs: nothing left to train.", markup=False)


def _claim(recipe: Recipe, finished: int, console: Console) -> Run:
    """Make the run's folder, which is the resumed one's unless another is named."""
    resumed = Run.of(recipe.resume) if recipe.resume else None
    run = Run(recipe.output_dir or (resumed.path if resumed else f"faap_outputs/faap_outputs_{recipe.name}"))
    if aside := run.claim(recipe, resumed, finished):
        console.print(f"{run.path} held an earlier run: it is now {aside}.", markup=False)
    return run


def _opening(trainer: Trainer, training: Split, validation: Split, baseline: dict[str, Any], run: Run) -> str:
    recipe, detector = trainer.recipe, trainer.detector
    parameters = sum(p.numel() for p in trainer.generator.parameters())
    counts = ", ".join(f"{count} {group}" for group, count in training.counts().items())
    if mixed := sum(not record.group for record in training.records):
        counts += f"; {mixed} with people of several groups are not trained on"
    aps = ", ".join(f"{group} {values['AP']:.4f}" for group, values in baseline.items())
    return (
        f"{recipe.name}: {recipe.epochs} epochs of {len(trainer.batches)} steps of {recipe.batch_size} images "
        f"({counts}); generator {recipe.arch}, {parameters:,} parameters; detector {detector.name} "
        f"({detector.file_sha256[:12]}…), frozen\nvalidation AP without the generator: {aps} "
        f"({len(validation.records)} images)\nrun directory: {run.path}"
    )
