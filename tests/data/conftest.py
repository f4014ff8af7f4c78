"""A small data set in the split-folder layout, drawn in code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

SIZE = (40, 30)


def _annotations(first_id: int, count: int) -> dict[str, Any]:
    images, annotations = [], []
    for number in range(count):
        image_id = first_id + number
        images.append(
            {"id": image_id, "file_name": f"{number}.jpg", "width": SIZE[0], "height": SIZE[1], "scene": number}
        )
        for person in range(number % 3):
            box = [2.0 + 12 * person, 4.0 + number, 10, 12.5]
            annotations.append(
                {
                    "id": 10 * image_id + person,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": box,
                    "area": 100.0 + person,
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def _write(root: Path, women: int = 5, men: int = 4, splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    for word, count, first_id in (("women", women, 1), ("men", men, 101)):
        for split in splits:
            folder = root / f"{word}_split" / split
            folder.mkdir(parents=True)
            content = _annotations(first_id, count)
            (root / f"{word}_split" / f"gender_{word}_{split}.json").write_text(json.dumps(content))
            for image in content["images"]:
                picture = Image.new("RGB", SIZE, (image["id"] % 255, 80, 120))
                draw = ImageDraw.Draw(picture)
                for entry in content["annotations"]:
                    if entry["image_id"] == image["id"]:
                        x, y, w, h = entry["bbox"]
                        draw.rectangle((x, y, x + w, y + h), fill=(230, 200, 30))
                picture.save(folder / image["file_name"])
    return root


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """A writer: `write_dataset(root, women=5, men=4, splits=("train", "val", "test"))`."""
    return _write


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good data set, not to be changed."""
    return _write(tmp_path_factory.mktemp("data") / "good")


@pytest.fixture
def edit(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Write a data set and change the women's training annotations: `edit(change)` returns its root."""

    def apply(change: Callable[[dict[str, Any]], object]) -> Path:
        root = _write(tmp_path / "edited", splits=("train",))
        path = root / "women_split" / "gender_women_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return root

    return apply


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
