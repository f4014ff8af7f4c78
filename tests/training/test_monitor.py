import math

import pytest

from faap.training.monitor import COLLAPSE_STEPS, CollapseAlarm


def feed(alarm: CollapseAlarm, f2m: float, f2f: float, steps: int) -> list[str]:
    return [warning for _ in range(steps) if (warning := alarm(f2m, f2f))]


def test_collapse_is_said_once_and_says_what_to_try() -> None:
    alarm = CollapseAlarm()
    assert feed(alarm, 0.99, 0.99, COLLAPSE_STEPS - 1) == []
    (warning,) = feed(alarm, 0.99, 0.99, 100)
    assert "--temperature" in warning


@pytest.mark.parametrize(("f2m", "f2f"), [(0.99, 0.5), (0.5, 0.99), (0.9, 0.9)])
def test_no_collapse_while_something_is_told_apart(f2m: float, f2f: float) -> None:
    assert feed(CollapseAlarm(), f2m, f2f, 200) == []


def test_only_the_last_steps_count() -> None:
    alarm = CollapseAlarm()
    feed(alarm, 0.1, 0.1, 500)
    assert len(feed(alarm, 0.999, 0.999, COLLAPSE_STEPS)) == 1


def test_steps_without_a_pair_are_left_out() -> None:
    assert feed(CollapseAlarm(), 0.99, math.nan, 200) == []
