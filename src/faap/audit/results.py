"""COCO results: the detections of any detector, of any framework."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from faap.conform import Between, conform
from faap.data import Split
from faap.errors import FaapError
from faap.evaluation import Detections
from faap.files import read_text, reading

_ID = Between(-(2**63), 2**63 - 1, 1)
_ENTRY = {"image_id": _ID, "category_id": _ID, "bbox": [float] * 4, "score": Between(0, 1)}


def read_results(path: Path, split: Split) -> tuple[list[Detections], list[str]]:
    """Read a COCO results file: a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.

    Detections in images or of categories that the split does not have are left out.

    Args:
        path: the JSON file.
        split: what was detected in; image and category ids are those of its annotations.

    Returns:
        One entry a record, in order, and what to know of the file, a sentence each.

    Raises:
        FaapError: it cannot be read, an entry is none, or nothing in it is of the split.
    """
    with reading(path, "not JSON"):
        entries = json.loads(read_text(path))
    try:
        keys = [(each["image_id"], each["category_id"]) for each in entries]
        values = [(*each["bbox"], each["score"]) for each in entries]
        fine = {type(value) for key in keys for value in key} <= {int} and {len(row) for row in values} <= {5}
        fine = fine and {type(value) for row in values for value in row} <= {int, float}
        ids = np.array(keys if fine else [], dtype=np.int64).reshape(-1, 2)
        numbers = np.array(values if fine else [], dtype=np.float64).reshape(-1, 5)
        fine = fine and bool(np.isfinite(numbers).all() and (numbers[:, 2:] >= 0).all() and (numbers[:, 4] <= 1).all())
    except (TypeError, ValueError, KeyError, OverflowError):
        fine = False
    if not fine:  # which is it?
        conform(entries, [_ENTRY], str(path))
        wrong = next((i for i, each in enumerate(entries) if min(each["bbox"][2:]) < 0), 0)
        raise FaapError(
            f"{path}[{wrong}]: bbox should be [x, y, width, height] in pixels, none of the last two negative."
        )
    position = {record.image_id: i for i, record in enumerate(split.records)}
    known = np.array([image in position for image in ids[:, 0].tolist()], dtype=bool)
    ours = known & np.isin(ids[:, 1], list(split.categories))
    if not ours.any():
        there = f"images {split.records[0].image_id}, … and categories {split.categories}"
        raise FaapError(f"{path}: none of its {len(ids)} detections is of the {split.name} split, which has {there}.")
    order = np.argsort([position[image] for image in ids[ours, 0].tolist()], kind="stable")
    mine, numbers = ids[ours][order], numbers[ours][order]
    counts = np.bincount([position[image] for image in mine[:, 0].tolist()], minlength=len(split.records))
    ends = np.cumsum(counts)[:-1]
    rows: Any = zip(
        split.records, *(np.split(part, ends) for part in (numbers[:, 4], mine[:, 1], numbers[:, :4])), strict=True
    )
    told = {
        "are of images that the split does not have, and are left out": int((~known).sum()),
        "are of categories that the split does not have, and are left out": int((known & ~ours).sum()),
    }
    notes = [f"{count} of the {len(ids)} detections in {path} {what}." for what, count in told.items() if count]
    if empty := int((counts == 0).sum()):
        notes.append(f"{path} has no detection in {empty} of {len(split.records)} images.")
    return [Detections(record.image_id, *parts) for record, *parts in rows], notes
