"""Which epoch of a run is kept."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def best_epoch(log: Sequence[Mapping[str, Any]], reference: str) -> int:
    """The epoch with the smallest validation AP gap among those that leave the reference group's AP at its baseline.

    If every epoch lowers it, the one that loses least of it. Gaps count by their size; the earliest of equals wins; an
    epoch whose gap or AP is missing comes last.

    Args:
        log: one or more lines of train_log.jsonl, each with epoch and validation {baseline, perturbed, gap}.
        reference: name of the reference group.

    Returns:
        The value of "epoch" of the chosen line.
    """

    def order(row: Mapping[str, Any]) -> tuple[float, float, int]:
        validation = row["validation"]
        before, after = (validation[name][reference]["AP"] for name in ("baseline", "perturbed"))
        gap = validation["gap"]["AP"]
        known = all(value is not None and math.isfinite(value) for value in (before, after, gap))
        return (max(0.0, before - after), abs(gap), row["epoch"]) if known else (math.inf, math.inf, row["epoch"])

    return order(min(log, key=order))[2]
