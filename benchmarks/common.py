"""What the benchmarks share: their flags, Promenade pictures, and the memory of a job."""

import argparse
import ctypes
import gc
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from faap.bench import Job, Size, pictures, training_step
from faap.config import load_recipe
from faap.data import Batch, Dataset
from faap.detectors import FrozenDetector
from faap.distributed import resolve_device


def arguments(doc: str | None, repeats: int = 5, threads: int = 2, **own: object) -> argparse.Namespace:
    """Parse the flags that every benchmark has, and its own with their defaults; set torch's threads."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=threads, help="of torch, on the CPU")
    parser.add_argument("--repeats", type=int, default=repeats, help="turns whose median is reported")
    for name, default in own.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.device = resolve_device(given.device)
    return given


def parse_size(text: str) -> Size:
    """Read HEIGHTxWIDTH."""
    height, width = map(int, text.split("x"))
    return height, width


@contextmanager
def scenes() -> Iterator[Dataset]:
    """Lend a small Promenade."""
    with tempfile.TemporaryDirectory() as folder:
        yield pictures(Path(folder))


def one_step(detector: FrozenDetector, batch: int, scenes: Dataset) -> tuple[Job, Batch]:
    """Return a training step of infonce_4th, and the batch of an even number of scenes that it is made with."""
    recipe = load_recipe("infonce_4th", batch_size=batch, images_per_epoch=batch)
    step, [images] = training_step(recipe, detector, scenes)
    return step, images


def peak_memory(job: Job, device: torch.device) -> float | None:
    """Return how many bytes a job needs at most, beyond what is there before it; None where the system cannot tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        there = torch.cuda.memory_allocated(device)
        job()
        return float(torch.cuda.max_memory_allocated(device) - there)
    if not sys.platform.startswith("linux"):
        return None
    try:
        # what was freed goes back to the system, and the high-water mark to where we are
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):  # another C library, or a closed /proc
        return None
    before = _memory("VmRSS")
    job()
    return float(_memory("VmHWM") - before)


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
