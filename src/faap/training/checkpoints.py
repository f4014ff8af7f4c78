"""Checkpoints: a trainer's state in a file, readable without unpickling anything but tensors and plain values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faap.config import Recipe, resumed_recipe
from faap.conform import conform
from faap.errors import FaapError
from faap.files import atomic_write, read_tensors
from faap.weights import check_finite, check_fit

CHECKPOINT = {
    "epoch": int,
    "generator": {str: Tensor},
    "generator_config": {"arch": str, "epsilon": float},
    "objective": {str: object},
    "optimizer": {"state": {int: {str: Tensor}}, "param_groups": [{"params": [int]}]},
    "recipe": {str: (str, int, float, bool, tuple, list)},
    "detector_file_sha256": str,
    "data_sha256": str,
}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_NEVER_NEGATIVE = ("step", "exp_avg_sq", "running_var")
_LARGEST = 2**53  # of what is counted


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a trainer's state; the file is complete or absent."""
    with atomic_write(path) as temporary:
        torch.save(dict(state), temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a trainer's state, tensors on the CPU.

    Raises:
        FaapError: if the file is missing, broken or not such a state.
    """
    if not path.is_file():
        raise FaapError(f"{path}: no such checkpoint to resume from.")
    content = read_tensors(path)
    missing = CHECKPOINT.keys() - (content.keys() if isinstance(content, Mapping) else ())
    if missing:
        raise FaapError(f"{path}: not a checkpoint of faap's training: it lacks {', '.join(sorted(missing))}.")
    check_state(content, str(path))
    return dict(content)


def recipe_to_resume(path: Path, name: str, typed: Mapping[str, Any]) -> Recipe:
    """Return the recipe with which a run goes on: what its checkpoint stores, but for the fields that are typed.

    Raises:
        FaapError: if the checkpoint cannot be read, is of another recipe, or names code that is not typed.
    """
    return resumed_recipe(name, read_checkpoint(path)["recipe"], path, **typed)


def check_state(state: Mapping[str, Any], place: str) -> None:
    """Raise unless a trainer's state is what `CHECKPOINT` describes, of an epoch that its recipe has."""
    conform(state, CHECKPOINT, place)
    epoch, epochs = state["epoch"], state["recipe"].get("epochs")
    conform(epochs, int, f"{place}: recipe: epochs")
    if not 0 <= epoch < epochs:
        raise FaapError(f"{place}: epoch: is {epoch}; its recipe has the epochs 0 to {epochs - 1}.")


def fitting(theirs: Mapping[str, Any], mine: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return what was read, held against the tensors whose place it is to take.

    Raises:
        FaapError: if names, shapes or types differ, or numbers are not finite or out of range.
    """
    # what a term keeps beside tensors is its own affair
    beside = {name: object for name, value in mine.items() if not isinstance(value, Tensor)}
    conform(theirs, beside or {str: object}, place)
    tensors = {name: value for name, value in theirs.items() if name not in beside}
    conform(tensors, {str: Tensor}, place)
    check_finite(tensors, place)
    check_fit(tensors, {name: value for name, value in mine.items() if name not in beside}, place)
    for name, value in tensors.items():
        counts = not value.is_floating_point()
        if value.dtype != mine[name].dtype:
            raise FaapError(f"{place}: {name} is of {value.dtype}; it should be of {mine[name].dtype}.")
        if ((counts or name.rpartition(".")[2] in _NEVER_NEGATIVE) and (value < 0).any()) or (
            counts and (value > _LARGEST).any()
        ):
            raise FaapError(f"{place}: {name} is out of range.")
    return dict(theirs)


def adam_state(theirs: Any, optimizer: torch.optim.Optimizer, place: str) -> dict[str, Any]:
    """Return the moments that were read, held against an optimizer's parameters, with its own settings."""
    conform(theirs, CHECKPOINT["optimizer"], place)
    own = optimizer.state_dict()["param_groups"]
    if [list(group["params"]) for group in theirs["param_groups"]] != [group["params"] for group in own]:
        raise FaapError(f"{place}: param_groups: it is of other parameters than this recipe's.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for number, moments in theirs["state"].items():
        if not 0 <= number < len(parameters):
            raise FaapError(f"{place}: state: there is no parameter {number}; there are {len(parameters)}.")
        like = [torch.zeros(()), *(parameters[number],) * 2]
        state[number] = fitting(moments, dict(zip(_MOMENTS, like, strict=True)), f"{place}: state: {number}")
    return {"state": state, "param_groups": own}
