"""What of a run is there already, and how it goes on."""

from dataclasses import dataclass, replace

from faap.compare.gather import read, read_log
from faap.config import Recipe, fields_of
from faap.errors import FaapError
from faap.recipes import read as read_recipe
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
    if not _is_trained_with(folder, run):
        note = f"{folder.path} holds a run with other settings, or one that cannot be read; it is moved aside."
        return Standing(run, note=note if folder.config.exists() or folder.last_checkpoint() else "")
    notes = []
    if folder.log.exists():
        try:
            read_log(run)
        except FaapError as error:
            return Standing(run, note=f"{error} The run is moved aside, and starts anew.")
    if folder.is_complete():
        try:
            read(run)
            return Standing(run, finished=True)
        except FaapError as error:
            notes.append(f"{error} It is measured again.")
    for checkpoint in sorted(folder.checkpoints.glob("epoch_*.pth"), reverse=True):
        try:
            read_checkpoint(checkpoint)
            return Standing(replace(run, resume=str(checkpoint)), note=" ".join(notes))
        except FaapError as error:
            notes.append(f"{error} The run goes on without it.")
    return Standing(run, note=" ".join(notes))


def _is_trained_with(folder: Run, run: Recipe) -> bool:
    """Whether what lies in the folder was trained with the run's settings."""
    try:
        # the run's own class reads the file, so that nothing it names is imported
        stored = type(run).of(read_recipe(folder.config), folder.config).to_dict()
    except (FaapError, RecursionError):
        return False
    return all(stored[key] == value for key, value in run.to_dict().items() if key not in fields_of("run"))
