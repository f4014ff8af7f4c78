"""COCO's per-image matching of detections to ground truth, and AP and AR accumulated from it under image weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask

from faap.data import Record
from faap.evaluation.detections import Detections
from faap.evaluation.metrics import IOU_THRESHOLDS, MAX_DETECTIONS, Bools
from faap.evaluation.statistics import Floats

Ints = npt.NDArray[np.int64]

_RECALLS = np.linspace(0.0, 1.0, 101)


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


@dataclass(frozen=True, slots=True)
class Ranking:
    """All detections of one category over a set of images, best score first, cut after the last true positive.

    What comes after the last true positive changes neither the interpolated precision nor the recall.

    Attributes:
        image: (n,) position of each detection's image in the set.
        hits: for each of the 10 IoU thresholds the ranks that are true positives.
        ignored: for each threshold the ranks that count neither way.
        positives: (images,) ground truths of the category, crowds left out.
    """

    image: Ints
    hits: tuple[Ints, ...]
    ignored: tuple[Ints, ...]
    positives: Ints

    def accumulate(self, weights: npt.NDArray[np.int32]) -> Floats:
        """AP@[.50:.95] and AR@100 of the data set in which every image occurs as often as its weight says.

        Equal to COCO's own accumulation over that data set with copies of an image next to each other. Detections of
        equal score keep the order of the images, as COCO's stable sort does; only equal scores *within* an image can
        differ, because COCO then interleaves the copies.

        Args:
            weights: (images, R) copies of each image in each of R data sets.

        Returns:
            (2, R): AP and AR, nan where a data set has no ground truth of the category.
        """
        positives = self.positives @ weights
        copies = weights[self.image]  # (n, R)
        seen = np.cumsum(copies, axis=0, dtype=np.int64)
        total = np.zeros((2, weights.shape[1]))
        for hits, ignored in zip(self.hits, self.ignored, strict=True):
            found = np.cumsum(copies[hits], axis=0, dtype=np.int64)  # (hits, R)
            counted = seen[hits]
            if len(ignored):
                uncounted = np.vstack([np.zeros_like(seen[:1]), np.cumsum(copies[ignored], axis=0)])
                counted = counted - uncounted[np.searchsorted(ignored, hits)]
            precision = np.maximum.accumulate((found / np.maximum(counted, 1))[::-1], axis=0)[::-1]
            recall = found / np.maximum(positives, 1)
            # a precision counts once for every recall level that its true positive is the first to reach
            levels = np.diff(np.searchsorted(_RECALLS, recall, side="right"), axis=0, prepend=0)
            total[0] += (precision * levels).sum(axis=0) / len(_RECALLS)
            total[1] += recall.max(axis=0, initial=0.0)
        return np.where(positives == 0, np.nan, total / len(self.hits))


def rank(records: Sequence[Record], detections: Sequence[Detections], category: int) -> Ranking:
    """Match every image's detections of one category and sort them all by score.

    Args:
        records: one image or more.
        detections: one entry a record, in the same order.
        category: data set category id.

    Returns:
        The ranking; COCO's area range "all" and its best 100 detections an image.
    """
    matched = [match_image(*each, category) for each in zip(records, detections, strict=True)]
    image = np.repeat(np.arange(len(matched)), [len(scores) for scores, _, _ in matched])
    scores, hits, ignored = (np.concatenate(parts, axis=-1) for parts in zip(*matched, strict=True))
    order = np.argsort(-scores, kind="stable")
    order = order[: int(np.flatnonzero(hits[:, order].any(axis=0)).max(initial=-1)) + 1]
    return Ranking(
        image=image[order],
        hits=tuple(np.flatnonzero(row) for row in hits[:, order]),
        ignored=tuple(np.flatnonzero(row) for row in ignored[:, order]),
        positives=np.array([np.count_nonzero(record.labels[~record.crowd] == category) for record in records]),
    )
