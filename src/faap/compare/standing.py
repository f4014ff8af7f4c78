"""What of a run is there already, and how it goes on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from faap.compare.gather import read
from faap.config import Recipe
from faap.errors import FaapError
from faap.runs import Run
from faap.training.checkpoints import read_checkpoint


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        recipe: with which it goes on; its `resume` is the newest checkpoint that can be read, if there is one.
        finished: whether it is complete, with these settings, and what it left can be read.
        note: what a user wants to know of what lies there, or nothing.
    """

    recipe: Recipe
    finished: bool = False
    note: str = ""


def standing(run: Recipe) -> Standing:
    """Look at what lies in a run's folder; nothing there is trusted, and nothing there is an error."""
    folder = Run(run.output_dir)
    if not folder.is_trained_with(run):
        note = f"{folder.path} holds a run with other settings, or one that cannot be read; it is moved aside."
        return Standing(run, note=note if folder.config.exists() or folder.epochs() else "")
    if wrong := _problem(folder.read_log):
        return Standing(run, note=f"{wrong} The run is moved aside, and starts anew.")
    note = ""
    if folder.is_complete():
        if not (wrong := _problem(read, run)):
            return Standing(run, finished=True)
        note = f"{wrong} It is measured again. "
    for checkpoint in map(folder.checkpoint, reversed(folder.epochs())):
        if not (wrong := _problem(read_checkpoint, checkpoint)):
            return Standing(replace(run, resume=str(checkpoint)), note=note.strip())
        note += f"{wrong} The run goes on without it. "
    return Standing(run, note=note.strip())


def _problem(look: Callable[..., object], *place: Any) -> str:
    """Return why what was left cannot be read, or nothing."""
    try:
        look(*place)
    except FaapError as error:
        return str(error)
    return ""
