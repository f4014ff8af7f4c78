"""Where to compute, and how several processes meet."""

import pytest
import torch

from faap import distributed
from faap.errors import FaapError

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}


def started(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in (LAUNCHED | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"RANK": None},
            "WORLD_SIZE is '2', .* but RANK is not set: start them with torchrun or accelerate launch, or",
        ),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is ''"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "2"}, "RANK is 2; of 2 processes .* the last is 1"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', .* unset WORLD_SIZE for a single one"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "-4"}, "WORLD_SIZE is '-4'"),
        ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE is '1.5'"),
    ],
)
def test_processes_that_no_launcher_started_are_an_error(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], said: str
) -> None:
    started(monkeypatch, **changes)
    with pytest.raises(FaapError, match=said):
        distributed.resolve_device("cpu")


def test_processes_that_cannot_meet_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(backend: str) -> None:
        assert backend == "gloo"
        raise torch.distributed.DistNetworkError("The server socket has failed to listen: address already in use")

    started(monkeypatch)
    monkeypatch.setattr(torch.distributed, "init_process_group", fails)
    with pytest.raises(FaapError, match=r"2 processes cannot meet at 127.0.0.1:29999 .*: .*already in use"):
        distributed.resolve_device("cpu")


@pytest.mark.parametrize("world", [None, "1"])
def test_a_single_process_asks_for_nothing(monkeypatch: pytest.MonkeyPatch, world: str | None) -> None:
    started(monkeypatch, WORLD_SIZE=world, RANK=None, MASTER_ADDR=None)
    assert distributed.resolve_device("cpu") == torch.device("cpu")
    assert (distributed.world(), distributed.rank()) == (1, 0)


def test_a_gpu_that_is_named_is_where_streams_and_recordings_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made_current: list[torch.device] = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    for name in ("cpu", "cuda", "cuda:1"):
        assert distributed.resolve_device(name) == torch.device(name)
    assert made_current == [torch.device("cuda:1")]


@pytest.mark.parametrize(("process", "order"), [("0", ["call", "meet", "meet"]), ("1", ["meet", "call", "meet"])])
def test_one_process_of_a_host_goes_first(process: str, order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setenv("LOCAL_RANK", process)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "gather_objects", lambda part: seen.append("meet") or [*part, *part])
    assert distributed.host_first(lambda: seen.append("call") or "made") == "made"
    assert seen == order
    monkeypatch.setattr(distributed, "gather_objects", lambda part: [FaapError("of another"), *part])
    seen.clear()
    with pytest.raises(FaapError, match="of another"):
        distributed.host_first(lambda: seen.append("call"))
    assert seen == (["call"] if process == "0" else [])  # what failed there is not tried here


@pytest.mark.parametrize(
    ("changes", "index"),
    [({}, None), ({"SLURM_GPUS_PER_TASK": "1"}, 0), ({"SLURM_GPUS_PER_TASK": "1", "LOCAL_WORLD_SIZE": "2"}, None)],
)
def test_a_task_of_slurm_that_sees_its_own_gpu_alone_takes_it(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], index: int | None
) -> None:
    none: dict[str, str | None] = {"SLURM_GPUS_PER_TASK": None, "LOCAL_WORLD_SIZE": None}
    started(monkeypatch, **none | changes)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    if index is None:
        with pytest.raises(FaapError, match="process 1 of this host has no GPU of its own: there are 1"):
            distributed.resolve_device("cuda")
    else:
        assert distributed.resolve_device("cuda") == torch.device("cuda", index)
