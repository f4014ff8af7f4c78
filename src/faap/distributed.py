"""Several processes that work as one, as torchrun or accelerate start them; a single process is the plain case."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from faap.errors import FaapError

T = TypeVar("T")


def join(device: torch.device) -> torch.device:
    """Meet the other processes, if torchrun or accelerate started several.

    Args:
        device: the same of all processes.

    Returns:
        This process's own device.

    Raises:
        FaapError: if all processes would use the same GPU, or a host has more of them than GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return device
    if device.type == "cuda":
        if device.index is not None:
            raise FaapError(
                f"device is '{device}', but {count} processes were started: use cuda, and each has its own."
            )
        local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= here:
            raise FaapError(f"process {local} of this host has no GPU of its own: there are {here}; start no more.")
    from accelerate import PartialState

    own: torch.device = PartialState(cpu=device.type == "cpu").device
    return own


def leave() -> None:
    """Part from the other processes."""
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
    whole: Tensor = _Gather.apply(part) if world() > 1 else part  # type: ignore[no-untyped-call]
    return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        length = torch.tensor([len(part)], device=part.device)
        lengths = [torch.zeros_like(length) for _ in range(world())]
        dist.all_gather(lengths, length)
        sizes = [int(each) for each in lengths]
        # all processes send equally much
        sent = part.new_zeros(max(sizes), *part.shape[1:])
        sent[: len(part)] = part
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        ctx.own = slice(sum(sizes[: rank()]), sum(sizes[: rank() + 1]))
        return torch.cat([each[:size] for each, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.own]


def merge(part: Sequence[T]) -> list[T]:
    """Join the processes' lists, in the order of ranks; what they hold is sent pickled, tensors from the CPU."""
    if world() == 1:
        return list(part)
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, list(part))
    return [each for one in parts for each in one]


def first(function: Callable[[], T]) -> T:
    """Call a function in the first process only and return its result, or raise its error, in all of them."""
    if world() == 1:
        return function()
    answer: list[Any] = [None, None]
    if rank() == 0:
        answer = _outcome(function)
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result


def one_first(function: Callable[[], T]) -> T:
    """Call a function in one process of each host, and then in the others, who find what it made.

    If it fails for the user's fault anywhere, every process raises such an error.
    """
    if world() == 1:
        return function()
    leads = int(os.environ.get("LOCAL_RANK", "0")) == 0
    answer: list[Any] = [None, None]
    for turn in (True, False):
        if leads is turn:
            answer = _outcome(function)
        errors = merge([answer[1]])
        if any(errors):
            raise next(filter(None, [answer[1], *errors]))
    result: T = answer[0]
    return result


def _outcome(function: Callable[[], Any]) -> list[Any]:
    try:
        return [function(), None]
    except (FaapError, OSError) as error:
        return [None, error]


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the processes, in one message."""
    if world() == 1:
        return
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(whole)
    for tensor, total in zip(tensors, torch.split(whole, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
