"""Trainers on a tiny data set in front of a tiny detector, without any evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import faap
from faap.training import Trainer

MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="session")
def places(tiny_promenade: Path, tiny_detector: Path) -> dict[str, Any]:
    return {"dataset_root": tiny_promenade, "detr_checkpoint": tiny_detector, "device": "cpu"}


@pytest.fixture(scope="session")
def make_trainer(places: dict[str, Any]) -> MakeTrainer:
    """Build a trainer of a recipe with one step of four images an epoch; the caller's randomness is nothing to it."""
    detector = faap.load_detector(places["detr_checkpoint"])
    split = faap.load_dataset(places["dataset_root"]).split("train")

    def make(name: str = "infonce_4th", **changes: Any) -> Trainer:
        recipe = faap.load_recipe(name, **places, **{"epochs": 3, "batch_size": 4, "images_per_epoch": 4} | changes)
        torch.rand(1)
        return Trainer(recipe, torch.device("cpu"), detector, split)

    return make
