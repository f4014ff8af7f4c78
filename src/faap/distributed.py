"""Where to compute, and several processes that work as one, as torchrun or accelerate start them."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from faap.errors import FaapError

T = TypeVar("T")


def resolve_device(name: str) -> torch.device:
    """Turn a device's name into a device that is there; of several processes, which meet here, each gets its own.

    Args:
        name: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        FaapError: if the name means nothing, there is no such device, or the processes cannot meet.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise FaapError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N.")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FaapError(f"device is {name!r}, but there are {torch.cuda.device_count()} CUDA devices; use auto or cpu.")
    device = _join(device) if os.environ.get("WORLD_SIZE", "1") != "1" else device
    if device.index is not None:
        torch.cuda.set_device(device)  # streams, and what is recorded on them, are the current device's
    return device


def _join(device: torch.device) -> torch.device:
    """Meet the other processes; return this one's own device."""
    count, local = _launched()
    if device.type == "cuda":
        if device.index is not None:
            raise FaapError(f"device is '{device}', and there are {count} processes: use cuda, and each has its own.")
        if local >= (here := torch.cuda.device_count()):
            # each of Slurm's tasks may see its own GPUs alone; torchrun counts among those of its task
            if "SLURM_GPUS_PER_TASK" not in os.environ or "LOCAL_WORLD_SIZE" in os.environ:
                raise FaapError(f"process {local} of this host has no GPU of its own: there are {here}; start no more.")
            local = 0
        device = torch.device("cuda", local)
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            where = "{MASTER_ADDR}:{MASTER_PORT} (MASTER_ADDR, MASTER_PORT)".format(**os.environ)
            raise FaapError(f"the {count} processes cannot meet at {where}: {error}") from None
    return device


def _launched() -> tuple[int, int]:
    """Return how many processes a launcher started, and this one's number on its host, from 0 on."""
    wanted = dict.fromkeys(("RANK", "LOCAL_RANK", "MASTER_PORT"), r"\d+")
    wanted |= {"WORLD_SIZE": r"0*[1-9]\d*", "MASTER_ADDR": ".+"}
    given = {"LOCAL_RANK": "0"} | os.environ
    for name, pattern in wanted.items():
        if not re.fullmatch(pattern, given.get(name, "")):
            found = repr(given[name]) if name in given else "not set"
            said = f"WORLD_SIZE is {given['WORLD_SIZE']!r}, for several processes, but {name} is {found}: start them"
            raise FaapError(f"{said} with torchrun or accelerate launch, or unset WORLD_SIZE for a single one.")
    count, number, local = (int(given[name]) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if number >= count:
        raise FaapError(f"RANK is {number}; of {count} processes (WORLD_SIZE) the last is {count - 1}.")
    return count, local


def shutdown() -> None:
    """Take leave of the other processes."""
    if world() > 1:
        dist.destroy_process_group()


def is_loss_of_others(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    return world() > 1 and (isinstance(error, dist.DistError) or "by peer" in str(error))


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0 on."""
    return dist.get_rank() if world() > 1 else 0


def gather(part: Tensor) -> Tensor:
    """Join the processes' parts along the first dimension, in the order of ranks.

    Every process is to compute the same function of the whole. Then its gradient, of which each process keeps what is
    its own, is that of the function: nothing is to be summed over processes until the gradient reaches weights.

    Args:
        part: (n, ...), n of each process's own, also 0.

    Returns:
        (sum of all n, ...), the same everywhere.
    """
    if world() == 1:
        return part
    sizes = gather_objects([len(part)])
    # all processes send equally much
    sent = F.pad(part.detach(), [0] * (2 * part.ndim - 1) + [max(sizes) - len(part)])
    parts = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(parts, sent)
    parts = [each[:size] for each, size in zip(parts, sizes, strict=True)]
    parts[rank()] = part  # with its gradient
    return torch.cat(parts)


def gather_objects(part: Sequence[T]) -> list[T]:
    """Join the processes' lists, in the order of ranks; what they hold is sent pickled, tensors from the CPU."""
    if world() == 1:
        return list(part)
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, list(part))
    return [each for one in parts for each in one]


def main_only(function: Callable[[], T]) -> T:
    """Call a function in the first process only and return its result, or raise its error, in all of them."""
    answer: list[Any] = [*_outcome(function)] if rank() == 0 else [None, None]
    if world() > 1:
        dist.broadcast_object_list(answer)
    for error in filter(None, answer[1:]):
        raise error
    return answer[0]  # type: ignore[no-any-return]


def host_first(function: Callable[[], T]) -> T:
    """Call a function in one process of each host, and then in the others, who find what it made.

    If it fails for the user's fault anywhere, every process raises such an error.
    """
    answer: Any = None, None
    for turn in (True, False):
        if (os.environ.get("LOCAL_RANK", "0") == "0") is turn:
            answer = _outcome(function)
        for error in filter(None, [answer[1], *gather_objects([answer[1]])]):
            raise error
    result: T = answer[0]
    return result


def _outcome(function: Callable[[], Any]) -> Any:
    try:
        return function(), None
    except (FaapError, OSError) as error:
        return None, error


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the processes, in one message."""
    if world() == 1:
        return
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(whole)
    for tensor, total in zip(tensors, torch.split(whole, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
