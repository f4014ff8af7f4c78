"""Two recipes with two seeds each, trained once for all tests of the room."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import faap
from faap.compare import LocalRunner, compare, recipes_to_compare
from faap.config import Recipe
from faap.errors import FaapError


class Here(LocalRunner):
    """Trains in this process, remembers what it was asked for, and fails where it is told to."""

    def __init__(self, fails: Callable[[Recipe], bool] = lambda recipe: False) -> None:
        super().__init__()
        self.seen: list[Recipe] = []
        self.fails = fails

    def train(self, recipe: Recipe, log: Path, threads: int) -> None:
        self.seen.append(recipe)
        if self.fails(recipe):
            raise FaapError("out of luck")
        faap.train(recipe, console=Console(quiet=True))


@pytest.fixture(scope="session")
def here() -> type[Here]:
    return Here


@pytest.fixture(scope="session")
def small(tiny_promenade: Path, tiny_detector: Path) -> dict[str, Any]:
    """Overrides that make a training a matter of seconds."""
    return {
        "dataset_root": tiny_promenade,
        "detr_checkpoint": tiny_detector,
        "device": "cpu",
        "epochs": 2,
        "batch_size": 4,
        "images_per_epoch": 4,
    }


@dataclass
class Finished:
    root: Path
    recipes: list[Recipe]
    result: dict[str, Any]


@pytest.fixture(scope="session")
def finished(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("compare")
    recipes = recipes_to_compare(["infonce_4th", "wgan_7th"], **small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("faap.report.charts.embed", lambda figure: "data:,")  # as in all tests but those of reports
        return Finished(root, recipes, compare(recipes, root, seeds=2, console=Console(quiet=True), runner=Here()))
