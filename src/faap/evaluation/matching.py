"""COCO's per-image matching of detections to ground truth, and AP and AR accumulated from it under image weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask

from faap.data import Record
from faap.evaluation.detections import Detections
from faap.evaluation.metrics import IOU_THRESHOLDS, MAX_DETECTIONS, Bools
from faap.evaluation.statistics import Floats

Ints = npt.NDArray[np.integer[Any]]

_RECALLS = np.linspace(0.0, 1.0, 101)
# entries of the (detections × data sets) table worked on at once: large enough to be fast, some tens of megabytes
_TABLE = 2_000_000


def match_image(record: Record, detected: Detections, category: int) -> tuple[Floats, Bools, Bools]:
    """Match one image's best 100 detections of a category greedily, best score first, at every IoU threshold.

    Each detection takes the free ground truth it overlaps most (the later of two equal ones); one that reaches only
    crowds is ignored, and a crowd can be taken again and again.

    Returns:
        Scores (D,), falling; hits and ignored, each (10, D): true positives, and detections that count neither as right
        nor as wrong.
    """
    truth = record.labels == category
    crowd = record.crowd[truth]
    chosen = np.flatnonzero(detected.labels == category)
    chosen = chosen[np.argsort(-detected.scores[chosen], kind="stable")][:MAX_DETECTIONS]
    # to a crowd, COCO's overlap is relative to the detection alone; without either there is none, and no shape
    iou = np.reshape(mask.iou(detected.boxes[chosen], record.boxes[truth], crowd), (len(chosen), len(crowd)))
    hits = np.zeros((len(IOU_THRESHOLDS), len(chosen)), dtype=bool)
    real = iou[:, ~crowd]
    free = np.ones((len(IOU_THRESHOLDS), real.shape[1]), dtype=bool)
    for d in np.flatnonzero(real.max(axis=1, initial=0.0) >= IOU_THRESHOLDS[0]):
        reachable = np.where(free & (real[d] >= IOU_THRESHOLDS[:, None]), real[d], -1.0)  # (10, real)
        best = real.shape[1] - 1 - np.argmax(reachable[:, ::-1], axis=1)
        taken = reachable.max(axis=1) >= 0
        hits[taken, d] = True
        free[taken, best[taken]] = False
    ignored = ~hits & (iou[:, crowd].max(axis=1, initial=0.0) >= IOU_THRESHOLDS[:, None])
    return detected.scores[chosen], hits, ignored


def count_found(record: Record, detected: Detections, score: float) -> int:
    """How many of an image's people, or other ground truth, a detection of that score or more meets at IoU .50."""
    matched = (match_image(record, detected, category) for category in np.unique(record.labels))
    return sum(int(hits[0, scores >= score].sum()) for scores, hits, _ in matched)


def weighted_averages(
    records: Sequence[Record], detections: Sequence[Detections], category: int, weights: Ints
) -> Floats:
    """AP@[.50:.95] and AR@100 of the data sets in which every image occurs as often as its weight says.

    Equal to COCO's own accumulation over such a data set with copies of an image next to each other. Detections of
    equal score keep the order of the images, as COCO's stable sort does; only equal scores *within* an image can
    differ, because COCO then interleaves the copies.

    Args:
        records: one image or more.
        detections: one entry a record, in the same order.
        category: data set category id.
        weights: (images, R) copies of each image in each of R data sets.

    Returns:
        (2, R): AP and AR, nan where a data set has no ground truth of the category; of COCO's area range "all" and its
        best 100 detections an image.
    """
    matched = [match_image(*each, category) for each in zip(records, detections, strict=True)]
    image = np.repeat(np.arange(len(matched)), [len(scores) for scores, _, _ in matched])
    scores, hits, ignored = (np.concatenate(parts, axis=-1) for parts in zip(*matched, strict=True))
    order = np.argsort(-scores, kind="stable")
    # what comes after the last true positive changes neither the interpolated precision nor the recall
    order = order[: int(np.flatnonzero(hits[:, order].any(axis=0)).max(initial=-1)) + 1]
    truths = np.array([np.count_nonzero(record.labels[~record.crowd] == category) for record in records])
    parts = np.array_split(weights, 1 + len(order) * weights.shape[1] // _TABLE, axis=1)
    ranked = image[order], hits[:, order], ignored[:, order], truths
    return np.concatenate([_accumulate(*ranked, part) for part in parts], axis=1)


def _accumulate(image: npt.NDArray[np.int64], hits: Bools, ignored: Bools, truths: Ints, weights: Ints) -> Floats:
    """Accumulate ranked detections, of which `image` says where they are and the (10, n) others what they are."""
    positives = truths @ weights
    copies = weights[image]  # (n, R)
    seen = np.cumsum(copies, axis=0, dtype=np.int64)
    total = np.zeros((2, weights.shape[1]))
    for right, neither in zip(map(np.flatnonzero, hits), map(np.flatnonzero, ignored), strict=True):
        found = np.cumsum(copies[right], axis=0, dtype=np.int64)  # (hits, R)
        uncounted = np.vstack([np.zeros_like(seen[:1]), np.cumsum(copies[neither], axis=0)])
        counted = seen[right] - uncounted[np.searchsorted(neither, right)]
        precision = np.maximum.accumulate((found / np.maximum(counted, 1))[::-1], axis=0)[::-1]
        recall = found / np.maximum(positives, 1)
        # a precision counts once for every recall level that its true positive is the first to reach
        levels = np.diff(np.searchsorted(_RECALLS, recall, side="right"), axis=0, prepend=0)
        total[0] += (precision * levels).sum(axis=0) / len(_RECALLS)
        total[1] += recall.max(axis=0, initial=0.0)
    return np.where(positives == 0, np.nan, total / len(hits))
