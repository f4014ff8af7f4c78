"""Checkpoints: everything a run needs to go on exactly, readable without unpickling anything but tensors."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faap.config import Recipe, resumed_recipe
from faap.errors import FaapError
from faap.files import atomic_write, read_tensors
from faap.perturbation import Generator

# What a run that resumes decides anew: where and how it computes, not what.
FREE_FIELDS = frozenset({"description", "output_dir", "resume", "device", "num_workers"})
# Where data and detector lie may change; what they are is held against their hashes.
_PLACES = frozenset({"dataset_root", "annotations", "images_dir", "group_csv", "detr_checkpoint"})
_KEYS = frozenset(
    {
        "epoch",
        "generator",
        "generator_config",
        "objective",
        "optimizer",
        "recipe",
        "detector_file_sha256",
        "data_sha256",
    }
)


def checkpoint_path(run_dir: Path, epoch: int) -> Path:
    """Return the place of one epoch's checkpoint."""
    return run_dir / "checkpoints" / f"epoch_{epoch:04d}.pth"


def save_checkpoint(
    path: Path,
    *,
    epoch: int,
    recipe: Recipe,
    generator: Generator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    detector_file_sha256: str,
    data_sha256: str,
) -> None:
    """Write one epoch's checkpoint; the file is complete or absent.

    Args:
        path: where.
        epoch: the epoch that is finished, counted from 0.
        recipe: the run's recipe.
        generator: trained so far, with its configuration.
        objective: with the state of its terms.
        optimizer: over generator and objective.
        detector_file_sha256: of the frozen detector's weights file.
        data_sha256: fingerprint of the training split.
    """
    content = {
        "epoch": epoch,
        "generator": generator.state_dict(),
        "generator_config": generator.config(),
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "recipe": recipe.to_dict(),
        "detector_file_sha256": detector_file_sha256,
        "data_sha256": data_sha256,
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target is complete or unchanged."""
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to resume from.

    Args:
        path: the file.

    Returns:
        Its entries, tensors on the CPU.

    Raises:
        FaapError: if the file is missing, broken or not a checkpoint.
    """
    if not path.is_file():
        raise FaapError(f"{path}: no such checkpoint to resume from.")
    content = read_tensors(path)
    missing = _KEYS - set(content if isinstance(content, dict) else ())
    if missing:
        raise FaapError(f"{path}: not a checkpoint of faap's training: it lacks {', '.join(sorted(missing))}.")
    return dict(content)


def recipe_to_resume(path: Path, name: str, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe with which a run goes on: the checkpoint's, but for the fields that are given.

    Args:
        path: the checkpoint.
        name: the recipe that was asked for; it must be the checkpoint's.
        overrides: fields that the user gave.

    Raises:
        FaapError: if the checkpoint cannot be read or is of another recipe.
    """
    return resumed_recipe(name, read_checkpoint(path)["recipe"], path, **overrides)


def differences(stored: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Say where a checkpoint's recipe and the one that goes on with it compute different things."""
    return [
        f"{key} was {stored.get(key)!r}, is {value!r}"
        for key, value in recipe.to_dict().items()
        if key not in FREE_FIELDS | _PLACES and stored.get(key, getattr(type(recipe)(), key)) != value
    ]
