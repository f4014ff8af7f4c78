"""Which steps are recorded and replayed. The CPU plays the GPU: it makes the step anew at each replay."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from faap.data import Batch
from faap.data.targets import Targets
from faap.perturbation.jitter import draw
from faap.perturbation.way import Way
from faap.training import graph
from faap.training.graph import WARM_UP, Recorded

CONSTANT = {"epsilon": 0.1, "learning_rate": 1.0}


def batch(value: int, size: int = 4, people: int = 2) -> Batch:
    images = torch.full((size, 3, 8, 8), value, dtype=torch.uint8)
    targets = Targets.of([{"labels": torch.zeros(people, dtype=torch.long), "boxes": torch.rand(people, 4)}] * size)
    numbers = torch.zeros(size, 2, dtype=torch.long)
    return Batch(images, None, targets, ("f",) * size, numbers[:, 0], numbers, numbers)


class Replay:
    def __init__(self, again: Callable[[], None]) -> None:
        self.replay = again


class Chance:
    """A GPU's generator of random numbers; a recording that fails leaves it unable to draw."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def clone_state(self) -> str:
        return "a copy"

    def graphsafe_set_state(self, state: str) -> None:
        self.done.append(f"draws from {state}")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorded, list[str]]:
    done: list[str] = []

    def step(batch: Batch, way: Way, schedule: Any) -> dict[str, Tensor]:
        done.append("step")
        return {"total": batch.images.float().mean(), "n_f": torch.tensor(float(len(batch.images)))}

    def aside(self: Recorded, batch: Batch, schedule: Any) -> dict[str, Tensor]:
        done.append("aside")
        return step(batch, Way(), schedule)

    def record(self: Recorded, batch: Batch, schedule: Any) -> Any:
        done.append("record")
        inputs, row = batch.to("cpu", copy=True), torch.zeros(2)

        def again() -> None:
            done.append("replay")
            row.copy_(torch.stack(list(step(inputs, Way(), schedule).values())))

        return Replay(again), inputs, ["total", "n_f"], row

    monkeypatch.setattr(Recorded, "_aside", aside)
    monkeypatch.setattr(Recorded, "_record", record)
    monkeypatch.setattr(graph.torch.cuda, "current_stream", lambda: "here")
    monkeypatch.setattr(graph.torch.cuda, "set_stream", lambda stream: done.append(f"back {stream}"))
    monkeypatch.setattr(graph.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(graph.torch.cuda, "default_generators", (Chance(done),))
    return Recorded(step, 3), done


def test_a_kind_is_made_plainly_then_recorded_once_and_replayed_with_each_batch(recorded: Any) -> None:
    make, done = recorded
    seen = [make(batch(value), Way(), CONSTANT) for value in range(6)]
    assert done == ["aside", "step"] * WARM_UP + ["record"] + ["replay", "step"] * 3
    assert [float(each["total"]) for each in seen] == [0, 1, 2, 3, 4, 5]  # kept apart, though one tensor is written
    assert float(seen[-1]["n_f"]) == 4


def test_other_shapes_are_another_kind_and_another_rate_is_not(recorded: Any) -> None:
    make, done = recorded
    for value in range(WARM_UP + 1):
        make(batch(value), Way(), CONSTANT | {"learning_rate": value})
    assert done.count("record") == 1
    for other in (batch(1, size=2), batch(1, people=1)):
        make(other, Way(), CONSTANT)
    assert done.count("record") == 1
    assert len(make.kinds) == 3
    make(batch(9), Way(), CONSTANT)
    assert done[-2:] == ["replay", "step"]
    make(batch(9), Way(), CONSTANT | {"epsilon": 0.2})  # a number that a recording would keep
    assert done[-2:] == ["aside", "step"]
    assert len(make.kinds) == 1


@pytest.mark.parametrize(
    ("changed", "way"),
    [
        ({}, Way(colours=draw("weak", [(0, 0, 0)]))),
        ({}, Way([0, 75])),
        ({}, Way([0, 0], moves=torch.ones(4, 5))),
        ({"pixel_mask": torch.ones(4, 8, 8, dtype=torch.bool)}, Way()),
        ({"targets": batch(0, people=4).targets}, Way([0, 0])),
    ],
)
def test_what_is_drawn_or_padded_is_made_plainly(recorded: Any, changed: Any, way: Way) -> None:
    make, done = recorded
    for value in range(WARM_UP + 2):
        make(replace(batch(value), **changed), way, CONSTANT)
    assert set(done) == {"step"}


def test_what_cannot_be_recorded_is_made_plainly_for_good(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make, done = recorded

    def fails(*_: Any) -> Any:
        done.append("record")
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Recorded, "_record", fails)
    seen = [make(batch(value), Way(), CONSTANT) for value in range(6)]
    assert done[2 * WARM_UP :] == ["record", "back here", "draws from a copy", *["step"] * 3]
    assert [float(each["total"]) for each in seen] == [0, 1, 2, 3, 4, 5]
