"""Loading batches, by other processes if there are any, and what it means when one of them fails."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from faap.data.dataset import Batch, FaapImages, collate
from faap.errors import FaapError

_ENDED = "A process that loads images cannot start or has ended"
_LESS = "use a smaller --batch_size, more shared memory (/dev/shm; docker run --shm-size)"
# what torch and the system say where processes that load images fail -> what it means, and what else may help
_TROUBLES = {
    "Too many open files|ancdata": "Too many files are open at once: allow more (ulimit -n 65536)",
    r"^(EOF|BrokenPipe|Connection\w*|BlockingIO)Error|Cannot allocate memory": f"{_ENDED}: give it more memory",
    r"DataLoader worker \(pid|shared memory|torch_shm": f"{_ENDED}, perhaps for want of memory: {_LESS}",
}


def load(
    images: FaapImages, batches: Iterable[Sequence[Any]], *, batch_size: int, num_workers: int, device: torch.device
) -> Iterable[Batch]:
    """Return what loads batches, ready to go to a device; to be used under `loading`.

    Args:
        images: what to load.
        batches: keys of `images`, batch by batch.
        batch_size: the most that are in one.
        num_workers: processes that load; 0: this one does.
        device: where the batches will be needed.

    Raises:
        FaapError: if the system does not let the processes open the files that they need.
    """
    _allow_files(num_workers, batch_size)
    options: Any = {"batch_sampler": batches, "num_workers": num_workers, "pin_memory": device.type == "cuda"}
    return DataLoader(images, collate_fn=collate, **options)


def _allow_files(num_workers: int, batch_size: int) -> None:
    """Let workers send what they load: each tensor on its way is an open file, and one too many may stop them all."""
    if os.name != "posix" or not num_workers:
        return
    import resource  # it is not everywhere

    # a worker is two batches ahead; an image has two tensors of its own, a batch six
    need = 256 + 2 * num_workers * (2 * batch_size + 6)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < need and hard != resource.RLIM_INFINITY:
        said = f"{num_workers} workers may have {need} files open with a batch_size of {batch_size}"
        advice = f"use fewer --num_workers, or allow more (ulimit -n {need})"
        raise FaapError(f"{said}, and {hard} are allowed: {advice}.")
    if soft < need and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


@contextmanager
def loading() -> Iterator[None]:
    """Say what the end of a process that loads images means to who started it; torch may say it at any moment."""
    try:
        yield
    except (FaapError, RuntimeError, OSError, EOFError) as error:
        name, said = type(error).__name__, str(error).strip()
        # a worker wraps a message in its traceback
        own = said.rpartition(f"{name}: ")[2]
        for signs, trouble in _TROUBLES.items():
            if re.search(signs, f"{name}: {said}"):
                line = (own.splitlines() or [name])[-1]
                raise FaapError(f"{line}\n{trouble}, or use fewer --num_workers.") from error
        if isinstance(error, FaapError):
            raise FaapError(own) from None
        raise
