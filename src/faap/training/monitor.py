"""What is kept of a training: every step in TensorBoard, every epoch in the run's folder, and the collapse alarm."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from faap.errors import FaapError
from faap.evaluation import best_epoch
from faap.report.words import number
from faap.runs import Run, copy_file
from faap.training.checkpoints import save_checkpoint

COLLAPSE_STEPS = 50
COLLAPSE_SIMILARITY = 0.98


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

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Take one training step's numbers."""

    def epoch(self, row: dict[str, Any], state: Mapping[str, Any]) -> None:
        """Take one epoch's line of the log, and the trainer's state after it."""

    def close(self) -> None:
        """End."""


class Monitor(NullMonitor):
    """Writes a run's log, checkpoints and TensorBoard events, and what the terminal shows.

    Args:
        run: whose log has the finished epochs.
        steps: how many are finished; what TensorBoard has of later ones is about to be written again.
        console: where to print.
    """

    def __init__(self, run: Run, steps: int, console: Console) -> None:
        self.run, self.console = run, console
        self.alarm = CollapseAlarm()
        self.events = SummaryWriter(str(run.events), purge_step=steps or None)

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Record one training step."""
        self._curves("step", values, number)
        watched = values["contrastive_weight"] > 0  # without it, features are alike from the start and may be
        if watched and (warning := self.alarm(values["sim_f2m"], values["sim_f2f"])):
            self.console.print(warning, style="bold red")

    def epoch(self, row: dict[str, Any], state: Mapping[str, Any]) -> None:
        """Record one epoch: a checkpoint, a line of the log, the best so far, curves, and a line on the terminal."""
        save_checkpoint(self.run.checkpoint(row["epoch"]), state)
        self.run.write_log([*self.run.read_log(), row])
        keep_best(self.run)
        parts = {"train": row["train"], "schedule": row["schedule"], "validation/gap": row["validation"]["gap"]}
        parts |= {f"validation/{group}": metrics for group, metrics in row["validation"]["perturbed"].items()}
        for place, values in parts.items():
            self._curves(place, values, row["epoch"])
        self.events.flush()
        self.console.print(_line(row), highlight=False, soft_wrap=True)

    def _curves(self, place: str, values: Mapping[str, float | None], when: int) -> None:
        for name, value in values.items():
            if value is not None:
                self.events.add_scalar(f"{place}/{name}", value, when)

    def close(self) -> None:
        """Close the event file."""
        self.events.close()


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


def _line(row: Mapping[str, Any]) -> str:
    before, after, gaps = (row["validation"][name] for name in ("baseline", "perturbed", "gap"))
    groups = [f"{group} {number(after[group]['AP'])} (baseline {number(before[group]['AP'])})" for group in before]
    gap = f"validation AP gap {number(gaps['AP'])}, {', '.join(groups)}"
    terms = "  ".join(f"{name} {number(value)}" for name, value in row["train"].items())
    settings = "  ".join(f"{name} {value:.4g}" for name, value in row["schedule"].items())
    return f"[bold]epoch {row['epoch']}[/bold]  {gap}, {row['seconds']:.0f} s\n[dim]  {terms}\n  {settings}[/dim]"
