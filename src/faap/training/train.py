"""The story of a run."""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from rich.console import Console
from torch._dynamo.exc import TorchDynamoException

from faap import distributed
from faap.config import Recipe
from faap.data import FaapImages, Split, collate, load_dataset
from faap.data.fields import called
from faap.detectors import load_detector
from faap.detectors.base import unchanged
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
from faap.evaluation.detections import perturb_as_deployed
from faap.perturbation import Generator, load_generator, save_generator
from faap.process import Terminal
from faap.report.measure import measure, to_uint8
from faap.report.page import Pixels
from faap.runs import AUTO, Run, differences, writing
from faap.training.checkpoints import is_from, newest_state, reached, read_checkpoint, state_at
from faap.training.monitor import Monitor, NullMonitor, keep_best, trackers_of
from faap.training.stopping import Stop, Stopping
from faap.training.trainer import Trainer, seeded
from faap.weights import a_weight

# torch's random numbers are one training's at a time; others in the process wait
_ALONE = RLock()


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

    Where the same training lies unfinished in the folder, it goes on from its newest state; where it is finished, what
    it left is returned.

    Started in several processes by torchrun or accelerate, it trains on all their devices as on one: each takes its
    share of every batch, the loss is that of the whole batch, and only the first process writes.

    Args:
        recipe: a complete configuration; see `load_recipe`.
        beside: other generators, as `load_generator` takes them, to be measured with it on the test images.
        console: where to print; standard output by default.

    Returns:
        The run directory, the test metrics and the chosen epoch.

    Raises:
        FaapError: if data, detector, output folder, a tracker or the checkpoint to resume from cannot be used, another
            process is at work in the folder, or the loss stops being finite.
        Stop: SIGTERM or SIGINT came; the state is kept, and the same call goes on from it.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", recipe.precision):
        said = f"accelerate was started with mixed precision {asked}, and the recipe's is {recipe.precision}"
        raise FaapError(f"{said}: say it with --precision (no or bf16) and leave accelerate's at no.")
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        raise FaapError("train was called under torch.autocast; call it outside, and give the recipe a precision.")
    trackers_of(recipe)  # before what takes long
    stopping = Stopping()
    try:
        # whoever calls may have switched gradients off
        with _ALONE, torch.inference_mode(False), seeded(recipe.seed), ExitStack() as until, stopping.listening():
            return _train(recipe, beside, console or Terminal(), stopping, until)
    except TorchDynamoException as error:
        if not recipe.compile:
            raise
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise FaapError(f"the detector cannot be compiled here: {reason}\nTrain without --compile.") from error


def _train(
    recipe: Recipe, beside: Sequence[str], console: Console, stopping: Stopping, until: ExitStack
) -> TrainResult:
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
    frozen = until.enter_context(ExitStack())
    frozen.enter_context(unchanged(detector))
    if recipe.compile:
        detector.compile(dynamic=False)  # a graph for each shape, up to torch's limit; those beyond it are not compiled
    validation = validation.with_categories(detector.label_map(validation.categories))

    trainer, run = Trainer(recipe, device, detector, training), _place(recipe)
    test = dataset.split("test").fingerprint()
    if earlier := distributed.main_only(lambda: _finished(trainer, run, test, console)):
        return earlier
    distributed.main_only(lambda: until.enter_context(run.locked()))
    state = distributed.main_only(lambda: _newest(trainer, run, console))
    rows, resumed = (_resume(trainer, state, console), Run.of(state)) if state else ([], None)

    def claim() -> None:
        run.refuse_others()
        ours = resumed is not None and resumed.path.resolve() == run.path.resolve()
        source = resumed
        if (not ours or _goes_back(trainer, run, state)) and (aside := run.move_aside()):
            console.print(f"{run.path} held an earlier run: it is now {aside}.", markup=False)
            source = Run(aside) if ours else resumed
        run.claim(recipe, rows, source)

    distributed.main_only(claim)
    monitor = NullMonitor()
    if distributed.rank() == 0:
        done = trainer.finished * len(trainer.batches) + trainer.running["step"]
        monitor = Monitor(run, recipe, done, len(trainer.batches), console)
    monitor.stopping = stopping
    # decoded once for all epochs; training has the other three quarters of the memory
    options: Any = {"memory": recipe.memory * 2**18}
    images = FaapImages(validation, detector.preprocessing, detector.label_map(validation.categories), **options)
    loading: Any = {"images": images, "num_workers": recipe.num_workers}
    before = detect_baseline(detector, validation, **loading)
    measured = group_metrics(validation, before)
    console.print(_opening(trainer, training, validation, measured, run), highlight=False, markup=False)
    try:
        for epoch in range(trainer.finished, recipe.epochs):
            started = time.perf_counter() - trainer.running["seconds"]
            row = trainer.epoch(epoch, monitor)
            after = detect(detector, validation, trainer.kept, **loading)
            row["validation"] = validation_row(validation, before, after)
            row["seconds"] = round(time.perf_counter() - started, 2)
            with stopping.held():
                monitor.epoch(row, trainer.state_dict())
                trainer.good = {}  # there is a newer one
                monitor.show(lambda: _pictures(trainer.kept, images, validation))
    except Stop:
        if trainer.good:
            monitor.save(trainer.good)
        raise
    finally:
        monitor.close()

    frozen.close()  # before anything is measured that might not hold

    def best() -> tuple[dict[str, Any], Generator]:
        with writing(run.path):
            chosen = keep_best(run)
            generator = load_generator(run.best)
            save_generator(generator, run.generator)
            return chosen, generator

    chosen, generator = distributed.main_only(best)
    warnings = [] if is_worth_deploying(chosen) else [NONE_WORTH_IT]
    if left_out := sum(len(row.get("skipped", ())) for row in run.read_log()):
        warnings.append(f"Steps that the training left out, as their numbers were not finite: {left_out}.")
    how: Any = {"num_workers": recipe.num_workers, "console": console, "warnings": warnings}
    metrics = measure(detector, generator.to(device), dataset, run, trained_in=run, beside=beside, **how)
    return TrainResult(run.path, metrics, chosen["epoch"])


def _pictures(generator: Generator, images: FaapImages, split: Split) -> dict[str, Pixels]:
    """What a generator makes of the first image of each group, (H, W, 3)."""
    found = {}
    for group in (split.anchor, split.reference):
        batch = collate([images[split.positions(group)[0]]]).to(a_weight(generator).device)
        with torch.no_grad():
            found[group] = to_uint8(perturb_as_deployed(generator, batch.pixel_values))
    return found


def _finished(trainer: Trainer, run: Run, test_sha256: str, console: Console) -> TrainResult | None:
    """Return what the same training left, of the same data, detector and code, if it has come to its end here."""
    recipe = trainer.recipe
    if recipe.fresh or recipe.resume not in AUTO or not (run.is_complete() and run.is_trained_with(recipe)):
        return None
    try:
        metrics, log = run.read_metrics(), run.read_log()
        result = TrainResult(run.path, metrics, run.chosen(log))
    except FaapError as error:
        console.print(f"{error} It is measured again.", style="yellow", markup=False)
        return None
    if len(log) < recipe.epochs or not is_from(run, trainer.origin):
        return None  # why, is said where it would go on
    if metrics.get("provenance", {}).get("split_sha256", test_sha256) != test_sha256:  # an earlier faap did not say
        said = f"{run.path}: was measured on other test images. It is measured again."
        console.print(said, style="yellow", markup=False)
        return None
    console.print(f"{run.path} holds this training, finished; --fresh starts anew.", markup=False)
    return result


def _goes_back(trainer: Trainer, run: Run, state: Path | None) -> bool:
    """Whether a folder holds what is later than the state from which a training goes on as the person said."""
    recipe = trainer.recipe
    if recipe.resume in AUTO or state is None:
        return False
    within = run.within.exists() and run.within.resolve() != state.resolve()
    unfinished = trainer.finished < recipe.epochs and run.metrics.exists()
    return within or unfinished or any(epoch >= trainer.finished for epoch in run.epochs())


def _place(recipe: Recipe) -> Run:
    """Return the run's folder, which is the resumed one's unless another is named."""
    resumed = None if recipe.resume in AUTO else Run.of(recipe.resume)
    return Run(recipe.output_dir or (resumed.path if resumed else f"faap_outputs/faap_outputs_{recipe.name}"))


def _newest(trainer: Trainer, run: Run, console: Console) -> Path | None:
    """Return the state from which a run goes on, in its own folder or where the recipe says; None: it starts anew.

    Where the recipe says a place, and its own folder holds the same training further on, the command was repeated.

    Raises:
        FaapError: what lies in the folder has other settings, or no state can be read where the recipe says.
    """
    recipe = trainer.recipe
    if recipe.fresh:
        return None
    typed = recipe.resume not in AUTO
    here, notes = newest_state(run)
    mine = read_checkpoint(here) if here else None
    changed = differences(mine["recipe"], recipe, "run", "data") if mine else []
    if mine and mine.get("terms_sha256", "") not in ("", trainer.origin.get("terms_sha256")):
        changed.append(f"the code of {recipe.terms} has changed")
    state = here
    if typed:
        state, notes = state_at(recipe.resume)
        same = mine and not changed and all(mine.get(key) == value for key, value in trainer.origin.items())
        if mine and same and reached(mine) >= reached(read_checkpoint(state)):
            state = here
    for note in notes:
        console.print(note, style="yellow", markup=False)
    if not typed and changed:
        advice = "go on with --resume and the run's folder, start anew with --fresh, or give another --output_dir"
        kept = "What goes on keeps the settings that it had, but for those that are typed."
        raise FaapError(f"{run.path} holds a training with other settings: {'; '.join(changed)}; {advice}. {kept}")
    return state


def _resume(trainer: Trainer, place: Path, console: Console) -> list[dict[str, Any]]:
    """Bring a trainer to where a state was, say what is not as it was then, and return its log."""
    recipe, state = trainer.recipe, read_checkpoint(place)
    trainer.load_state_dict(state, str(place))
    if reached(state) > (recipe.epochs - 1, 0):
        said = f"{place}: is later than the {recipe.epochs} epochs that are asked for"
        raise FaapError(f"{said}; take an earlier checkpoint, or a higher --epochs.")
    # where data and detector lie may change; what they are is held against their hashes
    if changed := differences(state["recipe"], recipe, "run", "data"):
        said = f"Going on with other settings than the checkpoint's: {'; '.join(changed)}."
        console.print(said, style="yellow", markup=False)
    step = f", step {trainer.running['step']}" if trainer.running["step"] else ""
    said = f"{place}: goes on at epoch {trainer.finished}{step}."
    last = f"{place} is the last of {recipe.epochs} epochs: nothing left to train."
    console.print(said if trainer.finished < recipe.epochs else last, markup=False)
    return [row for row in state.get("log", ()) if row["epoch"] < trainer.finished]


def _opening(trainer: Trainer, training: Split, validation: Split, baseline: dict[str, Any], run: Run) -> str:
    recipe, detector = trainer.recipe, trainer.detector
    parameters = sum(p.numel() for p in trainer.generator.parameters())
    counts = ", ".join(f"{count} {called(group)}" for group, count in training.counts().items())
    if mixed := sum(not record.group for record in training.records):
        counts += f"; {mixed} with people of several groups are not trained on"
    aps = ", ".join(f"{called(group)} {values['AP']:.4f}" for group, values in baseline.items())
    count, threads = distributed.world(), torch.get_num_threads()
    return (
        f"{recipe.name}: {recipe.epochs} epochs of {len(trainer.batches)} steps of {recipe.batch_size} images "
        f"({counts}); generator {recipe.arch}, {parameters:,} parameters; detector "
        f"{detector.name} ({detector.file_sha256[:12]}…), frozen; "
        f"{count} process{'es' * (count > 1)} of {threads} thread{'s' * (threads > 1)}\n"
        f"validation AP without the generator: {aps} ({len(validation.records)} images)\nrun directory: {run.path}"
    )
