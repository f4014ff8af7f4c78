"""The epoch that is kept, and whether it is worth deploying."""

from typing import Any

import pytest

from faap.evaluation import best_epoch, is_worth_deploying

BEFORE = {"f": 0.4, "m": 0.5}


def row(epoch: int, f: float | None, m: float | None, *errors: float) -> dict[str, Any]:
    """An epoch's APs of both groups, and the standard errors of their changes and of the gap's."""
    before, after = ({g: {"AP": value} for g, value in each.items()} for each in (BEFORE, {"f": f, "m": m}))
    gap = None if f is None or m is None else m - f
    validation: dict[str, Any] = {"baseline": before, "perturbed": after, "gap": {"AP": gap}}
    if errors:
        validation["errors"] = dict(zip(("f", "m", "gap"), errors, strict=True))
    return {"epoch": epoch, "validation": validation}


@pytest.mark.parametrize(
    ("rows", "chosen", "worth"),
    [
        # the smallest gap of those that cost nobody
        ([row(0, 0.42, 0.50), row(1, 0.46, 0.51), row(2, 0.47, 0.49)], 1, True),
        ([row(0, 0.46, 0.51), row(1, 0.53, 0.51), row(2, 0.55, 0.51)], 1, True),
        # what is lost within its error is chance
        ([row(0, 0.45, 0.50, 0.01, 0.01, 0.01), row(1, 0.48, 0.495, 0.01, 0.01, 0.01)], 1, True),
        ([row(0, 0.45, 0.50, 0.01, 0.01, 0.01), row(1, 0.48, 0.485, 0.01, 0.01, 0.01)], 0, True),
        # levelling down is not worth it, of whomever
        ([row(0, 0.40, 0.46), row(1, 0.39, 0.44)], 0, False),
        ([row(0, 0.38, 0.50), row(1, 0.39, 0.50)], 1, False),
        # but of what is not, a gap that closes for a smaller loss comes before one that stays
        ([row(0, 0.40, 0.499), row(1, 0.45, 0.48)], 1, False),
        # what has hardly begun is not worth it either, and comes after what helps
        ([row(0, 0.401, 0.50, 0.002, 0.002, 0.002), row(1, 0.41, 0.50, 0.002, 0.002, 0.002)], 1, True),
        ([row(0, 0.401, 0.50, 0.002, 0.002, 0.002), row(1, 0.40, 0.45, 0.002, 0.002, 0.002)], 1, False),
        ([row(0, 0.40, 0.50)], 0, False),
        # of gaps that differ by less than the error, the one at which the worse group is found best
        ([row(0, 0.45, 0.51, 0.01, 0.01, 0.02), row(1, 0.47, 0.531, 0.01, 0.01, 0.02)], 1, True),
        ([row(0, 0.45, 0.51, 0.01, 0.01, 0.02), row(1, 0.53, 0.46, 0.05, 0.05, 0.02)], 1, True),
        ([row(0, 0.50, 0.505, 0.01, 0.01, 0.02), row(1, 0.51, 0.54, 0.01, 0.01, 0.02)], 0, True),
        ([row(0, 0.50, 0.505, 0.01, 0.01, 0.02), row(1, 0.51, 0.50, 0.01, 0.01, 0.02)], 0, True),
        # the earliest of equals, and numbers before none
        ([row(4, 0.45, 0.50), row(5, 0.45, 0.50)], 4, True),
        ([row(0, None, 0.50), row(1, 0.3, 0.45), row(2, float("nan"), 0.5)], 1, False),
        ([row(3, None, None)], 3, False),
    ],
)
def test_a_small_gap_of_those_that_cost_nobody(rows: list[dict[str, Any]], chosen: int, worth: bool) -> None:
    assert best_epoch(rows) == best_epoch(rows[::-1]) == chosen
    assert is_worth_deploying(next(row for row in rows if row["epoch"] == chosen)) == worth


def with_third(one: dict[str, Any], before: float | None, after: float | None) -> dict[str, Any]:
    for side, value in (("baseline", before), ("perturbed", after)):
        one["validation"][side]["third"] = {"AP": value}
    return one


def test_a_further_group_without_anything_to_find_has_no_say() -> None:
    values = [(0.42, 0.50), (0.46, 0.51), (0.47, 0.49)]
    rows = [with_third(row(n, *each), None, None) for n, each in enumerate(values)]
    assert [is_worth_deploying(each) for each in rows] == [True, True, False]
    assert best_epoch(rows) == 1
    # one that is found, and of which nothing is known afterwards, has
    rows = [with_third(row(n, *each), 0.4, None if n == 1 else 0.4) for n, each in enumerate(values)]
    assert [is_worth_deploying(each) for each in rows] == [True, False, False]
    assert best_epoch(rows) == 0
