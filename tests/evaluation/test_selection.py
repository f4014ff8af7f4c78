"""The epoch that is kept."""

import pytest

from faap.evaluation import best_epoch


def row(epoch, gap, reference_ap):
    before = {"f": {"AP": 0.4}, "m": {"AP": 0.5}}
    return {
        "epoch": epoch,
        "validation": {"baseline": before, "perturbed": {"m": {"AP": reference_ap}}, "gap": {"AP": gap}},
    }


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([row(0, 0.09, 0.50), row(1, 0.07, 0.51), row(2, 0.05, 0.49)], 1),
        ([row(0, 0.03, 0.46), row(1, 0.08, 0.49), row(2, 0.05, 0.48)], 1),
        ([row(0, 0.09, 0.50), row(1, -0.20, 0.51)], 0),
        ([row(4, 0.08, 0.50), row(5, 0.08, 0.52)], 4),
        ([row(0, None, 0.50), row(1, 0.3, 0.45), row(2, float("nan"), 0.5)], 1),
        ([row(3, None, None)], 3),
    ],
)
def test_smallest_gap_that_leaves_the_reference_group_its_ap(rows, chosen):
    assert best_epoch(rows, "m") == chosen
    assert best_epoch(rows[::-1], "m") == chosen
