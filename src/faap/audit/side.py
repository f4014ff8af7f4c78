"""One group's images, with weights for its boxes and for its mistakes."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from faster_coco_eval import mask

from faap.audit.errors import ABOUT, KINDS, Errors, error_costs, find_errors
from faap.data import Record, Split
from faap.evaluation.bootstrap import drawn_anew
from faap.evaluation.detections import Detections
from faap.evaluation.matching import Bools, Ints, Matched, Weights, average_precision, match_image
from faap.evaluation.metrics import by_group, category_means, shared_categories
from faap.evaluation.statistics import Floats

_BACKGROUND = KINDS.index("background")


class Side:
    """What a detector does in one group's images, measured in R redrawn data sets.

    Args:
        records: of the group, ignoring others.
        detections: one entry a record, in the same order.
        copies: (images, R) of each image in each data set.
        categories: that are measured.

    Attributes:
        image: (boxes,) of each box that is to be found, where its image lies.
        wanted: (boxes,) of each such box, its position in its record.
    """

    def __init__(
        self, records: Sequence[Record], detections: Sequence[Detections], copies: Weights, categories: Sequence[int]
    ) -> None:
        self.records, self.detections, self.copies, self.categories = records, detections, copies, categories
        each = [~record.crowd & np.isin(record.labels, categories) for record in records]
        self.image = np.repeat(np.arange(len(records)), [mine.sum() for mine in each])
        self.wanted = np.concatenate([np.flatnonzero(mine) for mine in each])
        # of every box, how many that are to be found come before it
        ends = np.cumsum([len(mine) for mine in each])[:-1]
        self._numbers = np.split(np.cumsum(np.concatenate(each)) - 1, ends)
        self.labels = np.concatenate([record.labels[mine] for record, mine in zip(records, each, strict=True)])

    @property
    def box_copies(self) -> Weights:
        """How often each box occurs, (boxes, R)."""
        return self.copies[self.image]

    def values(self, described: Sequence[Mapping[str, Floats]], name: str) -> Floats:
        """Return a property, by each record's boxes, of those that are to be found; nan where it is not known."""
        places = zip(self.image.tolist(), self.wanted.tolist(), strict=True)
        return np.array([described[i][name][n] if name in described[i] else np.nan for i, n in places])

    @cached_property
    def errors(self) -> list[Errors]:
        """What is wrong in each image."""
        pairs = zip(self.records, self.detections, strict=True)
        return [find_errors(record, found, self.categories) for record, found in pairs]

    @cached_property
    def _matched(self) -> dict[int, list[Matched]]:
        result: dict[int, list[Matched]] = {}
        for category in self.categories:
            each = [match_image(*pair, category) for pair in zip(self.records, self.detections, strict=True)]
            # numbered over all images; of what is no hit the number is never read
            result[category] = [
                found._replace(truth=numbers[found.truth] if len(numbers) else found.truth)
                for found, numbers in zip(each, self._numbers, strict=True)
            ]
        return result

    def unexplained(self, score: float) -> list[Ints]:
        """Return in each image the detections of that score or more that are about nothing annotated, by position."""
        result = []
        for record, found, each in zip(self.records, self.detections, self.errors, strict=True):
            there = each.chosen[(each.kinds == _BACKGROUND) & (each.scores >= score)]
            # whatever it is, and whosever
            iou = mask.iou(found.boxes[there], record.boxes, np.zeros(len(record.boxes), dtype=bool))
            result.append(there[np.reshape(iou, (len(there), len(record.boxes))).max(axis=1, initial=0.0) <= ABOUT])
        return result

    def average_precision(
        self, factors: Floats | None = None, apart: Sequence[Ints] | None = None, worth: Floats | float = 1.0
    ) -> Floats:
        """Return AP, a mean over IoU .50 to .95, (categories, R); nan where there is nothing to find.

        Args:
            factors: (boxes, R) by which a box counts more, or less; a mistake counts as its image's boxes in the mean.
            apart: in each image, detections that count in their own way if they are wrong, by position.
            worth: (R,) how much these count.
        """
        boxes, images = self.box_copies.astype(float), self.copies.astype(float)
        if factors is not None:
            boxes = boxes * factors
            total, count = np.zeros(images.shape), np.bincount(self.image, minlength=len(images))[:, None]
            np.add.at(total, self.image, factors)
            images = images * np.where(count > 0, total / np.maximum(count, 1), 1.0)
        weights = images if apart is None else np.concatenate([images, images * worth])
        weights, boxes = np.ascontiguousarray(weights.T), np.ascontiguousarray(boxes.T)
        found = []
        for category, matched in self._matched.items():
            parts = matched if apart is None else [*_part(matched, apart, False), *_part(matched, apart, True)]
            positives = boxes[:, self.labels == category].sum(axis=1)
            precision = average_precision(parts, weights, np.maximum(positives, 1e-300), boxes)
            found.append(np.where(positives > 0, precision.mean(axis=1), np.nan))
        return np.array(found)


def sides_of(split: Split, detections: Sequence[Detections], weights: Weights) -> dict[str, Side]:
    """Return each group's images, with weights (images, R) from `draw`, in the categories that all groups share."""
    categories = shared_categories(split)
    return {
        group: Side(records, found, weights[positions] * drawn_anew(weights, positions), categories)
        for group, (positions, records, found) in by_group(split, detections).items()
    }


def costs_of(sides: Mapping[str, Side]) -> dict[str, Floats]:
    """Return what `error_costs` says of each group in the mean of the categories, (1 + kinds, R)."""
    return category_means(
        {group: error_costs(each.records, each.errors, each.categories, each.copies) for group, each in sides.items()}
    )


def _part(matched: Sequence[Matched], apart: Sequence[Ints], inside: bool) -> list[Matched]:
    result = []
    for each, positions in zip(matched, apart, strict=True):
        mine: Bools = np.isin(each.chosen, positions) == inside
        parts: Any = (values[..., mine] for values in each)
        result.append(Matched(*parts))
    return result
