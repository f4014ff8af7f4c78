"""COCO's matching of detections to ground truth, image by image, and its twelve numbers under image weights."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask

from faap.data import Record
from faap.evaluation.detections import Detections
from faap.evaluation.statistics import Floats

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
Weights = npt.NDArray[np.integer[Any] | np.floating[Any]]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100
# area ranges by the suffix of their numbers, in square pixels; both ends belong to them
AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
_RECALLS = np.linspace(0.0, 1.0, 101)
# a weight that is as good as none, and the recall of everything, which sums of real weights may fall short of
_LEAST, _ALL = 1e-300, 1 - 1e-9
# entries of the (data sets × detections) table worked on at once: what the processor's cache can hold
_TABLE = 500_000


class Matched(NamedTuple):
    """What one image's best detections of a category are, best score first, at each of some IoU thresholds.

    Attributes:
        scores: (D,), falling.
        hits: (thresholds, D) true positives.
        ignored: (thresholds, D) detections that count neither as right nor as wrong.
        truth: (thresholds, D) of a hit, the position in its record's boxes of what it found.
        chosen: (D,) positions of the detections.
    """

    scores: Floats
    hits: Bools
    ignored: Bools
    truth: Ints
    chosen: Ints


def match_image(record: Record, detected: Detections, category: int, area: tuple[float, float] = AREAS[""]) -> Matched:
    """Match one image's best 100 detections of a category greedily, best score first, at every IoU threshold.

    Each detection takes the free ground truth it overlaps most (the later of two equal ones). Crowds, and what is
    outside the area range, come second: a detection that takes one of these is ignored, and a crowd can be taken again.
    """
    truth = np.flatnonzero(record.labels == category)
    crowd, sizes = record.crowd[truth], record.areas[truth]
    passed_over = crowd | (sizes < area[0]) | (sizes > area[1])
    chosen = np.flatnonzero(detected.labels == category)
    chosen = chosen[np.argsort(-detected.scores[chosen], kind="stable")][:MAX_DETECTIONS]
    boxes = detected.boxes[chosen]
    # to a crowd, COCO's overlap is relative to the detection alone; without either there is none, and no shape
    iou = np.reshape(mask.iou(boxes, record.boxes[truth], crowd), (len(chosen), len(crowd)))
    hits, ignored = (np.zeros((len(IOU_THRESHOLDS), len(chosen)), dtype=bool) for _ in range(2))
    found = np.zeros(hits.shape, dtype=np.intp)
    free = np.ones((len(IOU_THRESHOLDS), len(crowd)), dtype=bool)
    kinds = [(result, kind) for result, kind in ((hits, ~passed_over), (ignored, passed_over)) if kind.any()]
    for d in np.flatnonzero(iou.max(axis=1, initial=0.0) >= IOU_THRESHOLDS[0]):
        reachable = free & (iou[d] >= IOU_THRESHOLDS[:, None])
        for result, kind in kinds:
            overlaps = np.where(reachable & kind, iou[d], -1.0)  # (10, ground truth)
            best = len(crowd) - 1 - np.argmax(overlaps[:, ::-1], axis=1)
            taken = (overlaps.max(axis=1) >= 0) & ~hits[:, d]
            result[taken, d] = True
            found[taken, d] = truth[best[taken]]
            free[taken, best[taken]] = crowd[best[taken]]
    detected_area = boxes[:, 2] * boxes[:, 3]
    outside = (detected_area < area[0]) | (detected_area > area[1])
    return Matched(detected.scores[chosen], hits, ignored | (~hits & outside), found, chosen)


def count_found(record: Record, detected: Detections, score: float) -> int:
    """How many of an image's people, or other ground truth, a detection of that score or more meets at IoU .50."""
    matched = (match_image(record, detected, category) for category in np.unique(record.labels))
    return sum(int(each.hits[0, each.scores >= score].sum()) for each in matched)


def weighted_metrics(
    records: Sequence[Record], detections: Sequence[Detections], category: int, weights: Ints, wanted: Collection[str]
) -> dict[str, Floats]:
    """COCO's numbers of the data sets in which every image occurs as often as its weight says.

    Equal to COCO's own accumulation over such a data set with copies of an image next to each other. Detections of
    equal score keep the order of the images, as COCO's stable sort does; only equal scores *within* an image can
    differ, because COCO then interleaves the copies.

    Args:
        records: one image or more.
        detections: one entry a record, in the same order.
        category: data set category id.
        weights: (images, R) copies of each image in each of R data sets.
        wanted: which of AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.

    Returns:
        Each of them (R,), nan where a data set has no ground truth of the category and size.
    """
    result: dict[str, Floats] = {}
    # what has nothing of the category, as most images of many categories, changes none of its numbers
    pairs = zip(records, detections, strict=True)
    there = [i for i, pair in enumerate(pairs) if any(category in each.labels for each in pair)] or [0]
    records, detections = [records[i] for i in there], [detections[i] for i in there]
    weights = np.ascontiguousarray(weights[there].T)  # (R, images)
    for suffix, area in AREAS.items():
        if suffix and not {f"AP{suffix}", f"AR{suffix}"} & set(wanted):
            continue
        matched = [match_image(*each, category, area) for each in zip(records, detections, strict=True)]
        counted = [
            (record.labels == category) & ~record.crowd & (record.areas >= area[0]) & (record.areas <= area[1])
            for record in records
        ]
        positives = weights @ np.array([each.sum() for each in counted])
        nothing = np.where(positives == 0, np.nan, 0.0)
        precision = average_precision(matched, weights, np.maximum(positives, 1)) + nothing[:, None]  # (R, 10)
        result[f"AP{suffix}"] = precision.mean(axis=1)
        if not suffix:
            result |= {"AP50": precision[:, 0], "AP75": precision[:, 5]}
        for most in (MAX_DETECTIONS,) if suffix else (1, 10, MAX_DETECTIONS):
            found = np.stack([each.hits[:, :most].sum(axis=1) for each in matched])  # (images, 10)
            recall = (weights @ found) / np.maximum(positives, 1)[:, None]
            result[f"AR{suffix or most}"] = recall.mean(axis=1) + nothing
    return {name: result[name] for name in wanted}


def average_precision(
    matched: Sequence[Matched], weights: Weights, positives: Weights, truths: Weights | None = None
) -> Floats:
    """Average the interpolated precision over 101 recall levels, in data sets where images and boxes have weights.

    Args:
        matched: of every image, at the same T thresholds.
        weights: (R, images) how often an image's false positives count in each of R data sets.
        positives: (R,) the sum of the weights of what there is to find, more than 0.
        truths: (R, boxes) how often each of all boxes counts if it is found, by the numbers in `Matched.truth`; by
            default as its image.

    Returns:
        (R, T).
    """
    image = np.repeat(np.arange(len(matched)), [len(each.scores) for each in matched])
    scores, hits, ignored, truth, _ = (np.concatenate(parts, axis=-1) for parts in zip(*matched, strict=True))
    order = np.argsort(-scores, kind="stable")
    # what is ignored at every threshold, or comes after the last true positive, changes no interpolated precision
    order = order[~ignored[:, order].all(axis=0)]
    order = order[: int(np.flatnonzero(hits[:, order].any(axis=0)).max(initial=-1)) + 1]
    image, hits, ignored, truth = image[order], hits[:, order], ignored[:, order], truth[:, order]
    places = [(np.flatnonzero(right), np.flatnonzero(neither)) for right, neither in zip(hits, ignored, strict=True)]

    def measured(rows: Ints) -> Floats:
        copies = weights[rows].take(image, axis=1)  # (r, n)
        seen = np.cumsum(copies, axis=1, dtype=weights.dtype)
        result = np.zeros((len(rows), len(hits)))
        for threshold, (right, neither) in enumerate(places):
            alike = np.cumsum(copies.take(right, axis=1), axis=1, dtype=weights.dtype)
            found = alike
            if truths is not None:
                found = np.cumsum(truths[rows].take(truth[threshold, right], axis=1), axis=1)
            uncounted = np.cumsum(np.insert(copies.take(neither, axis=1), 0, 0, axis=1), axis=1, dtype=weights.dtype)
            wrong = seen.take(right, axis=1) - uncounted.take(np.searchsorted(neither, right), axis=1) - alike
            precision = found / np.maximum(found + wrong, _LEAST)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            # a precision counts once for every level that its true positive is the first to reach
            recall = found / positives[rows, None]
            recall = np.where(recall > _ALL, 1.0, recall)
            levels = np.diff(np.searchsorted(_RECALLS, recall, side="right"), axis=1, prepend=0)
            result[:, threshold] = np.multiply(precision, levels, order="C").sum(axis=1) / len(_RECALLS)
        return result

    pieces = np.array_split(np.arange(len(weights)), 1 + len(image) * len(weights) // _TABLE)
    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(measured, pieces)))
