"""The images that tell most: of every kind of error the worst, and what is found but scores least."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from faster_coco_eval import mask

from faap.audit.errors import KINDS
from faap.audit.side import Side

RANKED_LOW = "found, but scored low"
# by what the worst of a kind is chosen, for who reads the page
RULES = {RANKED_LOW: "the object whose box scores least", "missed": "the largest object that is missed"}
OTHERS = "the mistake that scores most"


def telling(side: Side, group: str) -> Iterator[dict[str, Any]]:
    """Pick a group's worst image of each kind, by `RULES`.

    Yields:
        kind, group, rule, image_id, file; score and box (xywh in pixels) of the detection, None where there is none;
        object, the box that it is about, None for nothing.
    """
    for kind in (RANKED_LOW, *KINDS):
        worst: tuple[float, int, int, int] | None = None
        for i, (record, errors) in enumerate(zip(side.records, side.errors, strict=True)):
            sizes = record.boxes[:, 2] * record.boxes[:, 3]
            if kind == "missed":
                found = [(float(sizes[t]), i, -1, int(t)) for t in errors.missed]
            else:
                rows = errors.hits if kind == RANKED_LOW else errors.kinds == KINDS.index(kind)
                sign = -1 if kind == RANKED_LOW else 1
                columns = (sign * errors.scores[rows], errors.chosen[rows], errors.truth[rows])
                found = [(float(s), i, int(d), int(t)) for s, d, t in zip(*columns, strict=True)]
            worst = max([*found, *([worst] if worst else [])], key=lambda each: each[0], default=None)
        if worst:
            yield {"kind": kind, "group": group, "rule": RULES.get(kind, OTHERS)} | _shown(side, *worst[1:])


def _shown(side: Side, i: int, detection: int, truth: int) -> dict[str, Any]:
    record, detected = side.records[i], side.detections[i]
    if detection < 0 and len(detected.boxes):  # what comes nearest to the object
        overlaps = mask.iou(detected.boxes, record.boxes[[truth]], np.zeros(1, dtype=bool))
        detection = int(np.argmax(overlaps)) if np.max(overlaps) > 0 else -1
    about: dict[str, Any] = {"image_id": record.image_id, "file": record.path.name, "score": None, "box": None}
    if detection >= 0:
        about |= {"score": float(detected.scores[detection]), "box": detected.boxes[detection].tolist()}
    return about | {"object": record.boxes[truth].tolist() if truth >= 0 else None}
