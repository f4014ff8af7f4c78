"""What a detector finds of each group as its threshold moves: precision over recall, and recall over scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from faap.data import Split
from faap.evaluation.bootstrap import draw
from faap.evaluation.detections import Detections
from faap.evaluation.matching import match_image
from faap.evaluation.metrics import Images, by_group, category_means
from faap.evaluation.statistics import Floats, percentile_interval

# where the curves are known: recalls of the first, scores of the second
LEVELS = np.linspace(0.0, 1.0, 101)
# one data set after another, of few hundred: a band in a chart needs no more
_SAMPLES = 200

Curves = dict[str, dict[str, Floats]]


def curves_of(split: Split, *detections: Sequence[Detections], samples: int = _SAMPLES, seed: int = 0) -> list[Curves]:
    """Draw each group's curves at IoU .50, means over the categories of which every group has ground truth.

    Args:
        split: the images.
        detections: of each detector, one entry a record in the same order.
        samples: redrawn data sets for the bands, as `bootstrap.draw` draws them.
        seed: of these.

    Returns:
        For each detector: group → "precision", COCO's interpolated one, whose mean is AP50, at a recall of `LEVELS`,
        and "recall", the share of the objects found with a score of `LEVELS` or more; each (3, 101): the value and its
        95 % band, nan where there is none.
    """
    copies = draw(split, samples, seed)

    def measured(found: Sequence[Detections]) -> Curves:
        each = {
            group: np.array([_measure(images, one, copies[images[0]]) for one in split.categories])
            for group, images in by_group(split, found).items()
        }  # (categories, 2, R, 101)
        means = category_means(each).items()
        return {group: dict(zip(("precision", "recall"), map(_band, mean), strict=True)) for group, mean in means}

    return list(map(measured, detections))


def _measure(images: Images, category: int, copies: Any) -> Floats:
    _, records, found = images
    matched = [match_image(*each, category) for each in zip(records, found, strict=True)]
    image = np.repeat(np.arange(len(matched)), [len(each.scores) for each in matched])
    scores, hits, ignored, _, _ = (np.concatenate(parts, axis=-1) for parts in zip(*matched, strict=True))
    order = np.argsort(-scores, kind="stable")
    order = order[~ignored[0, order]]
    image, scores, right = image[order], scores[order], hits[0, order]
    wanted = np.array([((record.labels == category) & ~record.crowd).sum() for record in records]) @ copies
    above = np.searchsorted(-scores, -LEVELS, side="right")  # of falling scores, how many are not below
    result = np.full((2, copies.shape[1], len(LEVELS)), np.nan)
    for column in np.flatnonzero(wanted):
        seen = copies[image, column]
        alike = np.cumsum(seen * right)
        precision = alike / np.maximum(np.cumsum(seen), 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        recall = alike / wanted[column]
        result[0, column] = precision[np.searchsorted(recall, LEVELS, side="left")]
        result[1, column] = np.insert(recall, 0, 0.0)[above]
    return result


def _band(values: Floats) -> Floats:
    intervals = [percentile_interval(column) or [np.nan, np.nan] for column in values[1:].T]
    return np.vstack([values[0], np.transpose(intervals)])
