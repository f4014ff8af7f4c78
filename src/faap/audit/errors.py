"""What is wrong with detections, in TIDE's six kinds, and how much AP each of them costs each group."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from faster_coco_eval import mask

from faap.data import Record
from faap.evaluation.detections import Detections
from faap.evaluation.matching import Bools, Ints, Matched, Weights, average_precision, match_image
from faap.evaluation.statistics import Floats

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
# all that is wrong, however, and all that is not found, however
TOTALS = ("false positives", "false negatives")
# a detection is right from the first overlap on, and about nothing up to the second
_RIGHT, ABOUT = 0.5, 0.1


@dataclass(frozen=True, slots=True)
class Errors:
    """What is wrong in one image.

    Attributes:
        chosen: (n,) positions of the detections that count, category after category, best score first in each.
        scores: (n,) theirs.
        labels: (n,) category ids.
        hits: (n,) true positives at IoU .50.
        ignored: (n,) neither right nor wrong.
        kinds: (n,) index into `KINDS` of what is wrong with each, -1 for nothing.
        truth: (n,) position in the record's boxes of what each found, or would have found without its error; -1 where
            that is nothing.
        missed: (k,) positions of boxes that no detection is about.
    """

    chosen: Ints
    scores: Floats
    labels: Ints
    hits: Bools
    ignored: Bools
    kinds: Ints
    truth: Ints
    missed: Ints


def find_errors(record: Record, detected: Detections, categories: Collection[int]) -> Errors:
    """Say of each of an image's detections what is wrong with it at IoU .50.

    Localisation: it overlaps an object of its category by .10 to .50. Classification: it overlaps one of another
    category by .50 or more. Duplicate: it overlaps one that has been found already. Background: it overlaps nothing by
    more than .10. Both: all others. Missed are objects without a hit that no localisation or classification error is
    about.

    Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors (ECCV 2020).
    """
    matched = [(category, match_image(record, detected, category)) for category in categories]
    chosen = np.concatenate([each.chosen for _, each in matched])
    hits, ignored, truth = (
        np.concatenate([getattr(each, name)[0] for _, each in matched]) for name in ("hits", "ignored", "truth")
    )
    labels, scores = detected.labels[chosen], detected.scores[chosen]
    objects = np.flatnonzero(~record.crowd & np.isin(record.labels, list(categories)))
    boxes, known = detected.boxes[chosen], record.boxes[objects]
    iou = np.reshape(mask.iou(boxes, known, np.zeros(len(known), dtype=bool)), (len(chosen), len(objects)))
    found = np.isin(objects, truth[hits])
    same = labels[:, None] == record.labels[objects]
    own, others, taken = (np.where(mine, iou, -1.0) for mine in (same, ~same, same & found))
    best_own, best_other, best_taken, best = (each.max(axis=1, initial=-1.0) for each in (own, others, taken, iou))
    tests = {
        -1: hits | ignored,
        1: (best_own >= ABOUT) & (best_own < _RIGHT),
        0: best_other >= _RIGHT,
        3: best_taken >= _RIGHT,
        4: best <= ABOUT,
    }
    kinds = np.select(list(tests.values()), list(tests), 2)
    about = np.where(hits, truth, -1)
    if len(objects):
        for kind, overlaps in ((0, others), (1, own)):
            about[kinds == kind] = objects[overlaps[kinds == kind].argmax(axis=1)]
    missed = objects[~found & ~np.isin(objects, about)]
    return Errors(chosen, scores, labels, hits, ignored, kinds, about, missed)


def _fixed(record: Record, errors: Errors, kind: int) -> tuple[Errors, Bools]:
    """Return an image's detections with one kind of error mended, and which of them are left.

    Of what would have found an object that nobody found, the best scored does find it; every other is left out.
    """
    wrong = errors.kinds == kind
    best: dict[int, int] = {}
    for d in np.flatnonzero(np.isin(errors.kinds, (0, 1)) & ~np.isin(errors.truth, errors.truth[errors.hits])).tolist():
        first = best.setdefault(int(errors.truth[d]), d)
        if errors.scores[d] > errors.scores[first]:
            best[int(errors.truth[d])] = d
    mended = wrong & np.isin(np.arange(len(wrong)), list(best.values()))
    labels = errors.labels.copy()
    labels[mended] = record.labels[errors.truth[mended]]
    return replace(errors, labels=labels, hits=errors.hits | mended), ~wrong | mended


def error_costs(
    records: Sequence[Record], errors: Sequence[Errors], categories: Collection[int], weights: Weights
) -> Floats:
    """Measure AP50 as it is, and how much it would be with one kind of error mended.

    Detections of the wrong category or place are put right, or left out if what they are about is found without them;
    duplicates, background and both are left out; missed objects are not asked for. Of the totals, the first leaves out
    whatever is wrong (what is found then ranks above every mistake), the second does not ask for what is not found.

    Args:
        records: of one group.
        errors: what `find_errors` says of each, in the same order.
        categories: that are measured.
        weights: (images, R) copies of each image in each of R data sets.

    Returns:
        (categories, 1 + kinds, R) AP50, and the AP50 that each of `KINDS` and `TOTALS` costs, mended less as it is; nan
        where there is nothing to find.
    """
    weights = np.ascontiguousarray(weights.T)

    def measured(states: Sequence[tuple[Errors, Bools]], unasked: Sequence[Ints] = ()) -> Floats:
        found = []
        for category in categories:
            matched = []
            wanted = [(~record.crowd & (record.labels == category)) for record in records]
            for positions, mine in zip(unasked, wanted, strict=False):
                mine[positions] = False
            for each, kept in states:
                rows = kept & (each.labels == category)
                hits, ignored, truth = (getattr(each, name)[None, rows] for name in ("hits", "ignored", "truth"))
                matched.append(Matched(each.scores[rows], hits, ignored, truth, each.chosen[rows]))
            positives = weights @ np.array([each.sum() for each in wanted])
            found.append(average_precision(matched, weights, np.maximum(positives, 1))[:, 0])
        return np.array(found)

    there = [np.array([(~r.crowd & (r.labels == category)).sum() for r in records]) for category in categories]
    nothing = np.array([np.where(weights @ counts > 0, 0.0, np.nan) for counts in there])
    whole = [(each, np.ones(len(each.kinds), dtype=bool)) for each in errors]
    base = measured(whole) + nothing
    mended = [
        measured([_fixed(record, each, kind) for record, each in zip(records, errors, strict=True)])
        for kind in range(len(KINDS) - 1)
    ]
    right = [(each, each.hits | each.ignored) for each in errors]
    lost = [np.setdiff1d(np.arange(len(r.boxes)), e.truth[e.hits]) for r, e in zip(records, errors, strict=True)]
    mended += [measured(whole, [each.missed for each in errors]), measured(right), measured(whole, lost)]
    return np.stack([base, *(each - base for each in mended)], axis=1)
