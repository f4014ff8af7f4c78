"""What of a run is there already, and how it goes on."""

from dataclasses import dataclass, replace

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
    try:
        folder.read_log()
    except FaapError as error:
        return Standing(run, note=f"{error} The run is moved aside, and starts anew.")
    notes = []
    if folder.is_complete():
        try:
            read(run)
            return Standing(run, finished=True)
        except FaapError as error:
            notes.append(f"{error} It is measured again.")
    for epoch in reversed(folder.epochs()):
        checkpoint = folder.checkpoint(epoch)
        try:
            read_checkpoint(checkpoint)
            return Standing(replace(run, resume=str(checkpoint)), note=" ".join(notes))
        except FaapError as error:
            notes.append(f"{error} The run goes on without it.")
    return Standing(run, note=" ".join(notes))
