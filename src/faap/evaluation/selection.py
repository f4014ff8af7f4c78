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
        return not is_worth_deploying(row), _cost(row), row["epoch"]

    return order(min(log, key=order))[2]


def _cost(row: Row) -> float:
    harm = _harm(row)
    return harm if math.isinf(harm) else abs(row["validation"]["gap"]["AP"]) + harm


def is_worth_deploying(row: Row) -> bool:
    """Whether an epoch made the gap smaller and lowered no group's AP, each by more than its standard error.

    A log without errors, which an earlier faap wrote, is taken at its word.
    """
    validation = row["validation"]
    before, after = (_known(each["AP"]) for each in (_gap_before(validation), validation["gap"]))
    return _harm(row) == 0 and abs(before) - abs(after) > _error(validation, "gap")


def _gap_before(validation: Row) -> dict[str, float | None]:
    anchor, reference = (values["AP"] for values in list(validation["baseline"].values())[:2])
    return {"AP": None if anchor is None or reference is None else reference - anchor}


def _harm(row: Row) -> float:
    """The most that a group's AP lies below its baseline, beyond its standard error."""
    validation = row["validation"]
    before, after = validation["baseline"], validation["perturbed"]
    losses = {group: _known(before[group]["AP"]) - _known(after[group]["AP"]) for group in before}
    beyond = [loss - _error(validation, group) for group, loss in losses.items()]
    gap = _known(validation["gap"]["AP"])
    return math.inf if any(map(math.isnan, [gap, *beyond])) else max(0.0, *beyond)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _error(validation: Row, name: str) -> float:
    return validation.get("errors", {}).get(name) or 0.0
