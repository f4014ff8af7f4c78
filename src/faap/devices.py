"""Which device to compute on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from faap import distributed
from faap.errors import FaapError


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave torch's random numbers as they were; on a GPU only where something has used one."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        yield


def resolve_device(name: str) -> torch.device:
    """Turn a device's name into a device that is there; of several processes each gets its own.

    Args:
        name: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        FaapError: if the name means nothing, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise FaapError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FaapError(f"device is {name!r}, but there are {torch.cuda.device_count()} CUDA devices; use auto or cpu.")
    return distributed.join(device)
