"""Which epoch of a run is kept, and whether it is worth deploying."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from faap.data import Split
from faap.evaluation.detections import Detections
from faap.evaluation.frame import MetricFrame
from faap.evaluation.gaps import GAPS, without_nan

Row = Mapping[str, Any]
NONE_WORTH_IT = (
    "No epoch is worth deploying: none made the validation gap smaller by more than its standard error and lowered no "
    "group's AP by more than its own. The one that was chosen has the smallest gap and loss, added up."
)


def validation_row(
    split: Split, before: Sequence[Detections], after: Sequence[Detections], *, samples: int = 200
) -> dict[str, Any]:
    """Return what a line of train_log.jsonl says of the validation split.

    Returns:
        baseline and perturbed {group: {AP, AR100}}, gap {AP, AR} that is left, and errors, the standard errors of the
        changes of each group's AP and of "gap", the AP gap.
    """
    frame = MetricFrame(split, before, after, samples=samples, metrics=list(GAPS.values()))
    row: dict[str, Any] = {
        side: {group: {name: number[side] for name, number in each.items()} for group, each in frame.by_group.items()}
        for side in ("baseline", "perturbed")
    }
    gap = frame.difference[split.anchor]
    row["gap"] = {name: gap[metric]["perturbed"] for name, metric in GAPS.items()}
    changes = frame.by_group | {"gap": gap}
    return without_nan(row | {"errors": {name: each["AP"]["standard_error"] for name, each in changes.items()}})


def best_epoch(log: Sequence[Row]) -> int:
    """Choose an epoch by its validation AP: a small gap, and of small gaps the one at which the worse group fares best.

    Of those that are worth deploying (`is_worth_deploying`) it has the highest AP of the group that is found worse,
    among all whose gap exceeds the smallest by no more than the standard error of its change: less is chance. If none
    is worth deploying, it has the smallest sum of the gap and the most that a group's AP lies below its baseline beyond
    its standard error. Gaps count by their size; the earliest of equals wins; an epoch without numbers comes last. A
    further group without anything to find has no say.

    Args:
        log: one or more lines of train_log.jsonl, each with epoch and validation {baseline, perturbed, gap, errors}.

    Returns:
        The value of "epoch" of the chosen line.
    """

    worth = [row for row in log if is_worth_deploying(row)]
    if worth:
        least = min(_judged(row)[1] for row in worth)
        alike = [row for row in worth if _judged(row)[1] <= least + _error(row, "gap")]
        return -int(max((min(_aps(row, "perturbed").values()), -row["epoch"]) for row in alike)[1])
    sums = [(sum(_judged(row)[1:]), row["epoch"]) for row in log]
    return int(min((math.isnan(total), total, epoch) for total, epoch in sums)[2])


def is_worth_deploying(row: Row) -> bool:
    """Whether an epoch made the gap smaller and lowered no group's AP, each by more than its standard error.

    A log without errors, which an earlier faap wrote, is taken at its word.
    """
    narrowed, _, loss = _judged(row)
    return narrowed > 0 and loss == 0


def _judged(row: Row) -> tuple[float, float, float]:
    """By how much the gap shrank beyond its error, its size, and the most that a group lost beyond its own."""
    before, after = _aps(row, "baseline"), _aps(row, "perturbed")
    # of a further group that has nothing to find, nothing is known from the start, and it loses nothing
    known = [group for n, (group, ap) in enumerate(before.items()) if n < 2 or not math.isnan(ap)]
    losses = [before[group] - after[group] - _error(row, group) for group in known]
    old, new = (abs(reference - anchor) for anchor, reference, *_ in (list(before.values()), list(after.values())))
    # nan, where a number is missing, is neither more nor less than anything
    return old - new - _error(row, "gap"), new, sum(losses) if math.isnan(sum(losses)) else max(0.0, *losses)


def _aps(row: Row, which: str) -> dict[str, float]:
    values = {group: each["AP"] for group, each in row["validation"][which].items()}
    return {group: math.nan if value is None else value for group, value in values.items()}


def _error(row: Row, what: str) -> float:
    return float(row["validation"].get("errors", {}).get(what) or 0)
