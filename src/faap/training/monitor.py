"""What is kept of a training: every step in TensorBoard, every epoch in the run's folder, and the collapse alarm."""

import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from rich.console import Console
from rich.markup import escape

from faap.config import Recipe
from faap.data.fields import called
from faap.errors import FaapError, nearest
from faap.evaluation import best_epoch
from faap.files import write_text
from faap.report.words import number
from faap.runs import Run, copy_file, writing
from faap.training.checkpoints import save_checkpoint
from faap.training.stopping import Stopping

COLLAPSE_STEPS = 50
COLLAPSE_SIMILARITY = 0.98
# the tracker that writes into the run's folder
_OURS = "tensorboard"
# between two times that is written how far it is
STATUS_SECONDS = 5


class CollapseAlarm:
    """Suspects collapse when all features have become one: both mean similarities above 0.98 over the last 50 steps."""

    def __init__(self) -> None:
        self.recent: deque[tuple[float, float]] = deque(maxlen=COLLAPSE_STEPS)
        self.raised = False

    def __call__(self, sim_f2m: float, sim_f2f: float) -> str | None:
        """Take one step's similarities; return a warning the first time collapse is suspected, else None.

        A step without a pair of anchor images has no similarity (nan) and is left out.
        """
        if self.raised or math.isnan(sim_f2m) or math.isnan(sim_f2f):
            return None
        self.recent.append((sim_f2m, sim_f2f))
        f2m, f2f = (sum(values) / len(values) for values in zip(*self.recent, strict=True))
        if len(self.recent) < COLLAPSE_STEPS or min(f2m, f2f) <= COLLAPSE_SIMILARITY:
            return None
        self.raised = True
        return (
            f"COLLAPSE SUSPECTED: over the last {COLLAPSE_STEPS} steps sim_f2m is {f2m:.3f} and sim_f2f {f2f:.3f}: the "
            "projected features no longer tell images apart. Try a higher --temperature, a lower --lambda_contrastive "
            "or --lr_g, or a larger --batch_size."
        )


class NullMonitor:
    """Takes what a training says, and keeps and shows nothing: for the processes that are not the first."""

    console = Console(quiet=True)
    stopping = Stopping()

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Take one training step's numbers."""

    def due(self, step: int) -> bool:
        """Say whether the state after so many steps of an epoch should be kept."""
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        """Take the trainer's state within an epoch."""

    def epoch(self, row: dict[str, Any], state: Mapping[str, Any]) -> None:
        """Take one epoch's line of the log, and the trainer's state after it."""

    def show(self, images: Callable[[], Mapping[str, "np.ndarray[Any, Any]"]]) -> None:
        """Take pictures of what the generator does."""

    def close(self) -> None:
        """End."""


class Monitor(NullMonitor):
    """Writes a run's log and checkpoints, what is tracked elsewhere, and what the terminal shows.

    Args:
        run: whose log has the finished epochs.
        recipe: of the training.
        steps: how many are finished; what TensorBoard has of later ones is about to be written again.
        per_epoch: how many an epoch has.
        console: where to print.
    """

    def __init__(self, run: Run, recipe: Recipe, steps: int, per_epoch: int, console: Console) -> None:
        self.run, self.recipe, self.console = run, recipe, console
        self.rows = run.read_log()
        self.alarm = CollapseAlarm()
        with writing(run.path):
            self.trackers = [_tracker(name, run, recipe, steps) for name in trackers_of(recipe)]
        self.saved = self.told = self.started = time.monotonic()
        self.steps, self.per_epoch = steps, per_epoch
        self.tell(steps % per_epoch)

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Record one training step."""
        self._track({f"step/{name}": value for name, value in values.items()}, number)
        watched = values["contrastive_weight"] > 0  # without it, features are alike from the start and may be
        if watched and (warning := self.alarm(values["sim_f2m"], values["sim_f2f"])):
            if self.recipe.stop_on_collapse:
                raise FaapError(warning)
            self.console.print(warning, style="bold red")

    def due(self, step: int) -> bool:
        """Say whether steps or minutes enough have gone by since a state was kept."""
        if time.monotonic() - self.told > STATUS_SECONDS:
            self.tell(step)
        every = self.recipe.save_steps
        return bool(every and step % every == 0) or time.monotonic() - self.saved >= 60 * self.recipe.save_minutes

    def tell(self, step: int = 0) -> None:
        """Write how far it is, for who looks from outside."""
        self.told = time.monotonic()
        made = len(self.rows) * self.per_epoch + step
        rate = (made - self.steps) / max(self.told - self.started, 1e-9)
        left = self.recipe.epochs * self.per_epoch - made
        found: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "recipe": self.recipe.name}
        found |= {"epoch": len(self.rows), "epochs": self.recipe.epochs, "step": step, "steps": self.per_epoch}
        found |= {"steps_a_second": round(rate, 3)} | ({"seconds_left": round(left / rate)} if rate > 0 else {})
        found |= {"memory_gib": round(psutil.Process().memory_info().rss / 2**30, 2)}
        states = [path for path in (self.run.within, *map(self.run.checkpoint, self.run.epochs())) if path.exists()]
        found["newest_state"] = max(states, key=lambda path: path.stat().st_mtime).name if states else "none yet"
        found["written"] = datetime.now(UTC).isoformat(timespec="seconds")
        with writing(self.run.path):
            write_text(self.run.status, json.dumps(found, indent=2) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state within an epoch, in place of the one before."""
        with writing(self.run.path):
            save_checkpoint(self.run.within, {**state, "log": self.rows})
        self.saved = time.monotonic()
        self.tell(state["running"]["step"])

    def epoch(self, row: dict[str, Any], state: Mapping[str, Any]) -> None:
        """Record one epoch: a checkpoint, a line of the log, the best so far, curves, and a line on the terminal."""
        self.rows.append(row)
        with writing(self.run.path):
            # all else can be made again from this one file
            save_checkpoint(self.run.checkpoint(row["epoch"]), {**state, "log": self.rows})
            self.run.write_log(self.rows)
            best = keep_best(self.run)["epoch"]
            self.run.within.unlink(missing_ok=True)
            for epoch in self.run.epochs()[: -self.recipe.keep] if self.recipe.keep else ():
                path = self.run.checkpoint(epoch)  # the same command reads again what it goes on from
                if epoch != best and path.resolve() != Path(self.recipe.resume).resolve():
                    path.unlink()
        self.saved = time.monotonic()
        self.tell()
        parts = {"train": row["train"], "schedule": row["schedule"], "validation/gap": row["validation"]["gap"]}
        parts |= {f"validation/{group}": metrics for group, metrics in row["validation"]["perturbed"].items()}
        curves = {f"{place}/{name}": value for place, values in parts.items() for name, value in values.items()}
        self._track(curves, len(self.rows) * self.per_epoch - 1)
        if self.recipe.log_format == "json":
            print(json.dumps(row), flush=True)
        else:
            self.console.print(_line(row, self.recipe.epochs), highlight=False, markup=True)
        for each in row.get("skipped", ()):
            names = ", ".join(each["images"][:8])
            self.console.print(f"left out, as it was not finite: step {each['step']} ({names})", markup=False)

    def show(self, images: Callable[[], Mapping[str, "np.ndarray[Any, Any]"]]) -> None:
        """Track pictures, (H, W, 3) uint8, where somebody takes them."""
        if takers := [each for each in self.trackers if hasattr(each, "log_images")]:
            found, last = {name: image[None] for name, image in images().items()}, len(self.rows) * self.per_epoch - 1
            own = {_OURS: {"dataformats": "NHWC"}}
            self._tell(lambda each: each.log_images(found, last, **own.get(each.name, {})), takers)

    def _track(self, values: Mapping[str, float | None], step: int) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        self._tell(lambda tracker: tracker.log(known, step), self.trackers)

    def _tell(self, what: Callable[[Any], object], trackers: Sequence[Any]) -> None:
        """Tell trackers; one that fails is told no more, as no training is worth ending for it, but for a disk."""
        for each in [*trackers]:
            try:
                with writing(self.run.path):
                    what(each)
            except Exception as error:
                if each.name == _OURS:
                    raise
                self.trackers.remove(each)
                self.console.print(f"{each.name} is told no more: {error}", style="yellow", markup=False)

    def close(self) -> None:
        """Close what tracks, however the training ends."""
        for each in self.trackers:
            try:
                each.finish()
            except Exception as error:
                self.console.print(f"{each.name} was not closed: {error}", style="yellow", markup=False)


def trackers_of(recipe: Recipe) -> list[str]:
    """Return the names of a recipe's trackers.

    Raises:
        FaapError: there is no such tracker, or its package is not installed.
    """
    names = recipe.log_with.replace(",", " ").split()
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            hint = nearest(name, LOGGER_TYPE_TO_CLASS)
            raise FaapError(f"log_with is {name!r}; it must be of {', '.join(LOGGER_TYPE_TO_CLASS)}.{hint}")
        if name in LoggerType and LoggerType(name) not in get_available_trackers():
            raise FaapError(f"log_with: {name} is not installed here (pip install {name}).")
    return names


def _tracker(name: str, run: Run, recipe: Recipe, steps: int) -> Any:
    """Start one of accelerate's trackers; TensorBoard's forgets what it has of later steps."""
    kind, own = LOGGER_TYPE_TO_CLASS[name], name == _OURS
    place = [str(run.path)] if kind.requires_logging_directory else []
    PartialState()  # without it some, as wandb's, cannot say what they do
    try:
        tracker = kind(run.events.name if own else "faap", *place, **({"purge_step": steps} if own else {}))
        tracker.start()
        if own:  # whose table of settings would be a run of its own
            tracker.log({"recipe": yaml.safe_dump(recipe.to_dict(), sort_keys=False)}, steps)
        else:
            tracker.store_init_configuration(recipe.to_dict())
    except OSError:
        raise
    except Exception as error:  # of many kinds: not installed, nobody logged in
        raise FaapError(f"log_with: {name} cannot be started: {str(error).strip() or type(error).__name__}") from error
    return tracker


def keep_best(run: Run) -> dict[str, Any]:
    """Copy the checkpoint of the best epoch that has one, and return that epoch's line of the log.

    Raises:
        FaapError: if no epoch has both a checkpoint and a line of the log.
    """
    kept = [row for row in run.read_log() if run.checkpoint(row["epoch"]).exists()]
    if not kept:
        raise FaapError(f"{run.path}: no epoch has both a line in {run.log.name} and a checkpoint; nothing to measure.")
    chosen = best_epoch(kept)
    copy_file(run.checkpoint(chosen), run.best)
    return next(row for row in kept if row["epoch"] == chosen)


def _line(row: Mapping[str, Any], epochs: int) -> str:
    before, after, gaps = (row["validation"][name] for name in ("baseline", "perturbed", "gap"))
    aps = {escape(called(group)): (number(after[group]["AP"]), number(before[group]["AP"])) for group in before}
    groups = ", ".join(f"{group} {ap} (baseline {earlier})" for group, (ap, earlier) in aps.items())
    terms = "  ".join(f"{name} {number(value)}" for name, value in row["train"].items())
    settings = "  ".join(f"{name} {value:.4g}" for name, value in row["schedule"].items())
    said = f"[bold]epoch {row['epoch']} of 0 to {epochs - 1}[/bold]  validation AP gap {number(gaps['AP'])}, {groups}"
    return f"{said}, {row['seconds']:.0f} s\n[dim]  {terms}\n  {settings}[/dim]"
