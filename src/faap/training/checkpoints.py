"""Checkpoints: a trainer's state in a file, readable without unpickling anything but tensors and plain values."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faap.config import Recipe, resumed_recipe
from faap.conform import conform
from faap.errors import FaapError
from faap.files import atomic_write, file_sha256, read_tensors, reading
from faap.runs import ROW, Run
from faap.weights import check_finite, check_fit, content_sha256

ADAM = {"state": {int: {str: Tensor}}, "param_groups": list}
CHECKPOINT: dict[str, Any] = {"epoch": int, "recipe": {str: (str, int, float, bool, tuple, list)}}
CHECKPOINT |= {"generator": {str: Tensor}, "generator_config": {"arch": str, "epsilon": float}}
CHECKPOINT |= {"trained?": {str: Tensor}}  # where the generator is an average
CHECKPOINT |= {"objective": {str: object}, "optimizer": ADAM, "detector_file_sha256": str, "data_sha256": str}
# of the epoch under way: steps that are made, sums and counts of their numbers, steps left out, and where chance is
RUNNING = {"step": int, "seconds": float, "sums": {str: [float, int]}, "skipped": [{"step": int, "images": [int]}]}
CHECKPOINT |= {"running?": RUNNING | {"random": {str: Tensor}}, "averaged?": Tensor, "log?": [ROW], "sha256?": str}
CHECKPOINT["terms_sha256?"] = str  # of the file of a user's own terms
_NEVER_NEGATIVE = ("step", "exp_avg_sq", "running_var")
_LARGEST_COUNT = 2**53


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a trainer's state, with a digest of all that it holds; the file is complete or absent."""
    buffer = io.BytesIO()  # of a disk that is full, torch says less than the system
    torch.save(dict(state) | {"sha256": content_sha256(state)}, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a trainer's state, tensors on the CPU.

    Raises:
        FaapError: if the file is missing, broken, not as it was written, or not a state of an epoch of its recipe.
    """
    content = read_tensors(path)
    check_state(content, f"{path}: not a checkpoint of faap's training")
    state = dict(content)
    digest = state.pop("sha256", None)
    with reading(path, "is damaged"):
        found = content_sha256(state, path)
    if digest not in (None, found):
        raise FaapError(f"{path}: is not as it was written (its digest is wrong): damaged. Take an earlier checkpoint.")
    return state


def check_state(state: Any, place: str) -> None:
    """Raise unless a trainer's state is what `CHECKPOINT` describes, of an epoch that its recipe has."""
    conform(state, CHECKPOINT, place)
    epoch, epochs = state["epoch"], state["recipe"].get("epochs")
    conform(epochs, int, f"{place}: recipe: epochs")
    if not 0 - ("running" in state) <= epoch < epochs:
        raise FaapError(f"{place}: epoch: is {epoch}; its recipe has the epochs 0 to {epochs - 1}.")


def recipe_to_resume(path: Path, name: str, typed: Mapping[str, Any]) -> Recipe:
    """Return the recipe with which a run goes on: what its checkpoint stores, but for the fields that are typed.

    Args:
        path: see `state_at`.
        name: the recipe that was asked for.
        typed: fields of it.

    Raises:
        FaapError: if there is none that can be read, it is of another recipe, or names code that is not typed.
    """
    place, _ = state_at(path)
    return resumed_recipe(name, read_checkpoint(place)["recipe"], place, **typed)


def state_at(path: str | Path) -> tuple[Path, list[str]]:
    """Return the state that a path names, a checkpoint or the newest of a run, and why newer ones cannot be read.

    Args:
        path: the checkpoint, the run's folder, or one in it.

    Raises:
        FaapError: if no state there can be read.
    """
    if not os.path.isdir(path):
        return Path(path), []
    run = Run(path)
    place, notes = newest_state(run if run.is_begun() else Run(run.path.parent))
    if place is None:
        raise FaapError(f"{path}: no checkpoint there can be read. {' '.join(notes)}".strip())
    return place, notes


def newest_state(run: Run) -> tuple[Path | None, list[str]]:
    """Return where the newest state of a run lies that can be read, and why newer ones cannot, a sentence each."""
    notes: list[str] = []

    def read(path: Path) -> tuple[int, int] | None:
        try:
            return reached(read_checkpoint(path)) if path.exists() else None
        except FaapError as error:
            notes.append(f"{error} It is left out.")
            return None

    within, whole = read(run.within), map(run.checkpoint, reversed(run.epochs()))
    newest = next(((far, path) for path in whole if (far := read(path))), None)
    if within and (newest is None or within > newest[0]):
        return run.within, notes
    return newest and newest[1], notes


def origin_of(recipe: Recipe, data_sha256: str, detector_file_sha256: str) -> dict[str, str]:
    """Return what a training cannot go on without: data, detector, and the code of a user's own terms."""
    code = {"terms_sha256": file_sha256(Path(recipe.own.file))} if recipe.own else {}
    return {"data_sha256": data_sha256, "detector_file_sha256": detector_file_sha256} | code


def is_from(run: Run, origin: Mapping[str, str]) -> bool:
    """Whether a run is of such data, detector and code; so is one that has no state."""
    state, _ = newest_state(run)
    then = {**origin, **(read_checkpoint(state) if state else {})}
    return all(then[key] == value for key, value in origin.items())


def reached(state: Mapping[str, Any]) -> tuple[int, int]:
    """Return how far a state is: its last finished epoch, and the steps after it."""
    return state["epoch"], state.get("running", {}).get("step", 0)


def check_tensors(theirs: Mapping[str, Any], mine: Mapping[str, Any], place: str) -> None:
    """Raise unless tensors that were read can take the place of others: by name, shape, type and range."""
    # what a term keeps beside tensors is its own affair
    beside = {name: object for name, value in mine.items() if not isinstance(value, Tensor)}
    conform(theirs, beside or {str: object}, place)
    found, wanted = ({name: value for name, value in each.items() if name not in beside} for each in (theirs, mine))
    conform(found, {str: Tensor}, place)
    check_finite(found, place)
    check_fit(found, wanted, place)
    for name, value in found.items():
        if value.dtype != wanted[name].dtype:
            raise FaapError(f"{place}: {name} is of {value.dtype}; it should be of {wanted[name].dtype}.")
        counts = not value.is_floating_point()
        negative = (counts or name.rpartition(".")[2] in _NEVER_NEGATIVE) and (value < 0).any()
        if negative or (counts and (value > _LARGEST_COUNT).any()):
            raise FaapError(f"{place}: {name} is out of range.")


def adam_state(theirs: Any, optimizer: torch.optim.Optimizer, place: str) -> dict[str, Any]:
    """Return the moments that were read, held against an optimizer's parameters, with its own settings."""
    conform(theirs, ADAM, place)
    parameters = dict(enumerate((each, group) for group in optimizer.param_groups for each in group["params"]))
    for number, moments in theirs["state"].items():
        like, group = parameters.get(number, (None, {}))
        kept = ("exp_avg",) if group.get("matrices") else ("exp_avg", "exp_avg_sq")
        mine = {} if like is None else {"step": torch.zeros(())} | dict.fromkeys(kept, like)
        check_tensors(moments, mine, f"{place}: state: {number}")
    return {"state": theirs["state"], "param_groups": optimizer.state_dict()["param_groups"]}
