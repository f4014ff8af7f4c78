import errno
import io
import math
from contextlib import nullcontext
from pathlib import Path

import pytest

from faap.config import load_recipe
from faap.errors import FaapError
from faap.process import Terminal
from faap.runs import Run
from faap.training.monitor import COLLAPSE_STEPS, CollapseAlarm, Monitor


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


@pytest.mark.parametrize("stop", [False, True])
def test_a_collapse_is_said_or_ends_the_training(stop: bool, tmp_path: Path) -> None:
    out = Terminal(file=io.StringIO(), width=300)
    monitor = Monitor(Run(tmp_path), load_recipe("infonce_4th", stop_on_collapse=stop), 0, 100, out)
    values = {"contrastive_weight": 1.0, "sim_f2m": 0.99, "sim_f2f": 0.99}
    with pytest.raises(FaapError, match="COLLAPSE SUSPECTED") if stop else nullcontext():
        for number in range(COLLAPSE_STEPS):
            monitor.step(number, values)
    assert ("COLLAPSE SUSPECTED" in out.file.getvalue()) is not stop
    monitor.close()


def test_a_state_is_due_by_steps_or_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    recipe = load_recipe("infonce_4th", save_steps=3, save_minutes=2)
    monitor = Monitor(Run(tmp_path), recipe, 0, 100, Terminal(quiet=True))
    assert [step for step in range(1, 8) if monitor.due(step)] == [3, 6]
    now[0] += 119
    assert not monitor.due(7)
    now[0] += 1
    assert monitor.due(7)
    monitor.close()


def test_a_disk_that_is_full_for_tensorboard_is_said_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monitor = Monitor(Run(tmp_path), load_recipe("infonce_4th"), 0, 100, Terminal(quiet=True))
    said = f"output_dir {tmp_path}: .*No space left.*make room, and repeat"
    (tracker,) = monitor.trackers
    monkeypatch.setattr(tracker.writer, "add_scalar", full)
    with pytest.raises(FaapError, match=said):
        monitor.step(1, {"contrastive_weight": 0.0})


def test_a_tracker_that_fails_is_told_no_more_and_ends_nothing(tmp_path: Path) -> None:
    class Far:
        name, told = "far", 0

        def log(self, *rest: object) -> None:
            self.told += 1
            raise ConnectionError("nobody there")

        def finish(self) -> None:
            raise ConnectionError("nobody there either")

    out = Terminal(file=io.StringIO(), width=300)
    monitor = Monitor(Run(tmp_path), load_recipe("infonce_4th"), 0, 100, out)
    far = Far()
    monitor.trackers.append(far)
    for number in range(3):
        monitor.step(number, {"contrastive_weight": 0.0})
    assert far.told == 1
    assert "far is told no more: output_dir" in out.file.getvalue() or "nobody there" in out.file.getvalue()
    monitor.trackers.append(far)
    monitor.close()
    assert "far was not closed: nobody there either" in out.file.getvalue()
