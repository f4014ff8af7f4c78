"""Which epoch of a run is kept, and whether it is worth deploying."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
NONE_WORTH_IT = (
    "No epoch is worth deploying: none made the validation gap smaller by more than its standard error and lowered no "
    "group's AP by more than its own. The one that was chosen has the smallest gap and loss, added up."
)


def best_epoch(log: Sequence[Row]) -> int:
    """The epoch with the smallest validation AP gap among those that are worth deploying (`is_worth_deploying`).

    If none is, the one with the smallest sum of that gap and the most that a group's AP lies below its baseline beyond
    its standard error. Gaps count by their size; the earliest of equals wins; an epoch without numbers comes last.

    Args:
        log: one or more lines of train_log.jsonl, each with epoch and validation {baseline, perturbed, gap, errors}.

    Returns:
        The value of "epoch" of the chosen line.
    """

    def order(row: Row) -> tuple[bool, float, int]:
        _, gap, loss = _judged(row)
        return not is_worth_deploying(row), math.inf if math.isnan(gap + loss) else gap + loss, row["epoch"]

    return order(min(log, key=order))[2]


def is_worth_deploying(row: Row) -> bool:
    """Whether an epoch made the gap smaller and lowered no group's AP, each by more than its standard error.

    A log without errors, which an earlier faap wrote, is taken at its word.
    """
    narrowed, _, loss = _judged(row)
    return narrowed > 0 and loss == 0


def _judged(row: Row) -> tuple[float, float, float]:
    """By how much the gap shrank beyond its error, its size, and the most that a group lost beyond its own."""
    validation = row["validation"]
    errors = validation.get("errors", {})
    before, after = (
        {group: math.nan if values["AP"] is None else values["AP"] for group, values in validation[name].items()}
        for name in ("baseline", "perturbed")
    )
    losses = [before[group] - after[group] - (errors.get(group) or 0) for group in before]
    old, new = (abs(reference - anchor) for anchor, reference, *_ in (list(before.values()), list(after.values())))
    # nan, where a number is missing, is neither more nor less than anything
    return old - new - (errors.get("gap") or 0), new, sum(losses) if math.isnan(sum(losses)) else max(0.0, *losses)
