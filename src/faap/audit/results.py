"""COCO results: the detections of any detector, of any framework."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from faap.conform import Between, conform
from faap.data import Split
from faap.data.boxes import BOX_TOLERANCE
from faap.errors import FaapError
from faap.evaluation import Detections
from faap.evaluation.statistics import Floats
from faap.files import read_text, reading

_ID = Between(-(2**63), 2**63 - 1, 1)
# a share of the boxes that no detector leaves its images with
_MANY = 0.1
_ENTRY = {"image_id": _ID, "category_id": _ID, "bbox": [float] * 4, "score": Between(0, 1)}


def read_results(path: str | Path, split: Split, *, renumbered: bool = False) -> tuple[list[Detections], list[str]]:
    """Read a COCO results file: a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.

    Detections in images or of categories that the split does not have are left out.

    Args:
        path: the JSON file.
        split: what was detected in; image and category ids are those of its annotations. An image may be named by its
            file's name, too, with its ending or without.
        renumbered: whether image ids are faap's own, so that a file cannot know them.

    Returns:
        One entry a record, in order, and what to know of the file, a sentence each.

    Raises:
        FaapError: it cannot be read, an entry is none, nothing in it is of the split, or its boxes are in other units.
    """
    path = Path(path)
    with reading(path, "not JSON"):
        entries = json.loads(read_text(path))
    _put_ids(path, entries, split, renumbered)
    try:
        keys = [(each["image_id"], each["category_id"]) for each in entries]
        values = [(*each["bbox"], each["score"]) for each in entries]
        if {type(value) for key in keys for value in key} - {int} or {len(row) for row in values} - {5}:
            raise TypeError
        if {type(value) for row in values for value in row} - {int, float}:
            raise TypeError
        ids, numbers = np.array(keys, np.int64).reshape(-1, 2), np.array(values, np.float64).reshape(-1, 5)
        if not (np.isfinite(numbers).all() and (numbers[:, 2:] >= 0).all() and (numbers[:, 4] <= 1).all()):
            raise ValueError
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        conform(entries, [_ENTRY], str(path))  # which is it?
        wrong = next((i for i, each in enumerate(entries) if min(each["bbox"][2:]) < 0), 0)
        right = "bbox should be [x, y, width, height] in pixels, none of the last two negative"
        raise FaapError(f"{path}[{wrong}]: {right}.") from error
    position = {record.image_id: i for i, record in enumerate(split.records)}
    places = np.array([position.get(image, -1) for image in ids[:, 0].tolist()], dtype=np.int64)
    known, named = places >= 0, np.isin(ids[:, 1], list(split.categories))
    ours = np.flatnonzero(known & named)
    if not len(ours):
        there = f"images {split.records[0].image_id}, … and categories {split.categories}"
        raise FaapError(f"{path}: none of its {len(ids)} detections is of the {split.name} split, which has {there}.")
    ours = ours[np.argsort(places[ours], kind="stable")]
    _check_units(path, numbers[ours, :4], np.array([(each.width, each.height) for each in split.records])[places[ours]])
    ends = np.cumsum(np.bincount(places[ours], minlength=len(split.records)))[:-1]
    parts = [np.split(each[ours], ends) for each in (numbers[:, 4], ids[:, 1], numbers[:, :4])]
    found = [Detections(record.image_id, *mine) for record, *mine in zip(split.records, *parts, strict=True)]
    lost = {"images": ~known, "categories": known & ~named}
    said = "that the split does not have, and are left out."
    notes = [
        f"{n} of the {len(ids)} detections in {path} are of {what} {said}" for what in lost if (n := lost[what].sum())
    ]
    if empty := sum(not len(each.scores) for each in found):
        notes.append(f"{path} has no detection in {empty} of {len(split.records)} images.")
    return found, notes


def _put_ids(path: Path, entries: Any, split: Split, renumbered: bool) -> None:
    """Put ids in place of the names of files by which Ultralytics, too, names images; -1 where the split has none."""
    called: defaultdict[str, set[int]] = defaultdict(set)
    for record in split.records:
        for name in (record.path.name, record.path.stem):
            called[name].add(record.image_id)
    listed = [each for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []
    named = [each for each in listed if isinstance(each.get("image_id"), str)]
    if len(named) < len(listed) and (named or renumbered):
        wrong = "faap numbers these images itself" if renumbered else "some images have names, and others numbers"
        raise FaapError(f"{path}: {wrong}; name all by their files, or give annotations in one COCO JSON, and its ids.")
    if named and not any(each["image_id"] in called for each in named):
        known = f"an id of the annotations, or the name of a file, such as {split.records[0].path.name!r}"
        raise FaapError(f"{path}[0]: image_id: is {named[0]['image_id']!r}; it should be {known}.")
    for each in named:
        several = called.get(each["image_id"], {-1})
        if len(several) > 1:
            raise FaapError(f"{path}: image_id {each['image_id']!r} is the name of several images; give their ids.")
        [each["image_id"]] = several


def _check_units(path: Path, boxes: Floats, sizes: npt.NDArray[np.int64]) -> None:
    """Raise if boxes, in images of these sizes, both (n, ...), are fractions, or many would fit as corners alone."""
    if boxes.max() <= 1:
        raise FaapError(f"{path}: its boxes lie in [0, 1], as fractions of the image do; they should be in pixels.")
    starts, spans = boxes[:, :2], boxes[:, 2:]
    # detectors leave images, too, but not by a tenth
    odd = (starts + spans > 1.1 * sizes).any(axis=1) & ((spans > starts) & (spans <= sizes + BOX_TOLERANCE)).all(axis=1)
    if odd.mean() > _MANY:
        wrong = f"{odd.sum()} of its boxes, such as {boxes[odd][0].tolist()}, leave their images"
        right = "they would fit as [left, top, right, bottom], but should be [x, y, width, height]"
        raise FaapError(f"{path}: {wrong}; {right}.")
