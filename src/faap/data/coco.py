"""Reading COCO JSON with the checks that cost nothing: whatever is wrong is named with its file and record."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from faap.data.records import Record
from faap.errors import FaapError

BOX_TOLERANCE = 1.0


def read_coco(path: Path, folder: Path, group: str) -> tuple[list[Record], dict[int, str]]:
    """Read the images and annotations of one COCO JSON file whose images all belong to one group.

    Boxes that leave their image by at most 1 pixel are cut at its border. An annotation without `area` gets that of
    its box. An image's optional `scene` becomes the record's `pair`.

    Args:
        path: the JSON file.
        folder: what its file names are relative to.
        group: the group of all its images.

    Returns:
        The records in the order of the file, and its categories, id -> name.

    Raises:
        FaapError: the file is missing, is not COCO JSON, holds no image, or has a broken record; the first one found
            is named.
    """
    content = _read_json(path)
    categories = _categories(content, path)
    images: dict[int, dict[str, Any]] = {}
    for where, entry in _entries(content, "images", path):
        key = _integer(entry, "id", where)
        if not 0 <= key < 2**63:
            raise FaapError(f"{where}: id is {key}; it must be from 0 to 2^63 − 1")
        if key in images:
            raise FaapError(f"{where}: id {key} is used by an earlier image; ids must differ")
        images[key] = _image(entry, folder, f"{path}: image {key}")
    if not images:
        raise FaapError(f"{path}: holds no image; an empty split cannot be used")
    rows: dict[int, list[tuple[list[float], int, float, bool]]] = {key: [] for key in images}
    seen: set[int] = set()
    for where, entry in _entries(content, "annotations", path):
        key = _integer(entry, "id", where)
        where = f"{path}: annotation {key}"
        if key in seen:
            raise FaapError(f"{where}: the id is used by an earlier annotation; ids must differ")
        seen.add(key)
        image_id = _integer(entry, "image_id", where)
        if image_id not in images:
            raise FaapError(f"{where}: image_id {image_id} is not the id of any image in this file")
        rows[image_id].append(_annotation(entry, images[image_id], categories, where))
    records = []
    for image_id, image in images.items():
        boxes, labels, areas, crowd = zip(*rows[image_id], strict=True) if rows[image_id] else ([], [], [], [])
        records.append(
            Record(
                image_id=image_id,
                group=group,
                boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
                labels=np.array(labels, dtype=np.int64),
                areas=np.array(areas, dtype=np.float64),
                crowd=np.array(crowd, dtype=bool),
                **image,
            )
        )
    return records, categories


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise FaapError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FaapError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise FaapError(f"{path}: should hold a JSON object with images, annotations and categories")
    return content


def _entries(content: dict[str, Any], key: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(content.get(key), list):
        state = "should be a list" if key in content else "is missing"
        raise FaapError(f"{path}: '{key}' {state}; COCO JSON has images, annotations and categories")
    for position, entry in enumerate(content[key]):
        where = f"{path}: {key}[{position}]"
        if not isinstance(entry, dict):
            raise FaapError(f"{where}: should be a JSON object, found {entry!r:.80}")
        yield where, entry


def _categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    categories: dict[int, str] = {}
    for where, entry in _entries(content, "categories", path):
        key, name = _integer(entry, "id", where), entry.get("name")
        if not isinstance(name, str) or not name:
            raise FaapError(f"{where}: name should be a word, found {name!r:.80}")
        if key in categories:
            raise FaapError(f"{where}: id {key} is used by an earlier category; ids must differ")
        categories[key] = name
    return categories


def _image(entry: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    name, scene = entry.get("file_name"), entry.get("scene")
    if not isinstance(name, str) or not name:
        raise FaapError(f"{where}: file_name should be the name of a file in {folder}, found {name!r:.80}")
    # By its name alone: a link inside the folder may well point to a store elsewhere.
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise FaapError(f"{where}: file_name {name!r:.80} leaves the folder {folder}")
    width, height = (_integer(entry, key, where) for key in ("width", "height"))
    if width < 1 or height < 1:
        raise FaapError(f"{where}: width and height should be at least 1, found {width} and {height}")
    if scene is not None and (isinstance(scene, bool) or not isinstance(scene, int | str)):
        raise FaapError(f"{where}: scene should be a number or a word, found {scene!r:.80}")
    file = folder / name
    try:
        found = file.is_file()
    # What no file system takes as a name.
    except (OSError, ValueError):
        found = False
    if not found:
        raise FaapError(f"{where}: file_name {name!r:.80} does not exist in {folder}")
    return {"path": file, "width": width, "height": height, "pair": None if scene is None else str(scene)}


def _annotation(
    entry: dict[str, Any], image: dict[str, Any], categories: dict[int, str], where: str
) -> tuple[list[float], int, float, bool]:
    category = _integer(entry, "category_id", where)
    if category not in categories:
        raise FaapError(f"{where}: category_id {category} is unknown; the categories are {_listed(categories)}")
    box, crowd = entry.get("bbox"), entry.get("iscrowd", 0)
    values = [_finite(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
    if None in values:
        raise FaapError(f"{where}: bbox should be four finite numbers [x, y, width, height], found {box!r:.80}")
    left, top, across, down = (value for value in values if value is not None)
    size = f"{image['width']}x{image['height']}"
    if across <= 0 or down <= 0:
        raise FaapError(f"{where}: bbox {box} has no area; width and height should be positive")
    right, bottom = left + across, top + down
    if min(left, top) < -BOX_TOLERANCE or max(right - image["width"], bottom - image["height"]) > BOX_TOLERANCE:
        raise FaapError(f"{where}: bbox {box} leaves its image, which is {size} pixels")
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, image["width"]), min(bottom, image["height"])
    if right <= left or bottom <= top:
        raise FaapError(f"{where}: bbox {box} lies outside its image, which is {size} pixels")
    area = _finite(entry["area"]) if "area" in entry else (right - left) * (bottom - top)
    if area is None or area < 0:
        raise FaapError(f"{where}: area should be a number of at least 0, found {entry['area']!r:.80}")
    if crowd not in (0, 1):
        raise FaapError(f"{where}: iscrowd should be 0 or 1, found {crowd!r:.80}")
    return [left, top, right - left, bottom - top], category, area, bool(crowd)


def _integer(entry: dict[str, Any], key: str, where: str) -> int:
    value = _finite(entry.get(key))
    if value is None or not value.is_integer() or abs(value) >= 2**53:
        state = f"should be a whole number, found {entry[key]!r:.80}" if key in entry else "is missing"
        raise FaapError(f"{where}: '{key}' {state}")
    return int(value)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _listed(categories: dict[int, str]) -> str:
    return ", ".join(f"{key} ({name})" for key, name in sorted(categories.items())) or "none"
