"""Writing files so that each is there in full or not at all, and reading tensors without running anything."""

import argparse
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from faap.errors import FaapError


def cache_dir() -> Path:
    """Return faap's cache folder: `$FAAP_CACHE_DIR`, else `$XDG_CACHE_HOME/faap`, else `~/.cache/faap`."""
    if own := os.environ.get("FAAP_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faap"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> Any:
    """Read what `torch.save` wrote, onto the CPU; beside tensors and plain values it may hold an `argparse.Namespace`.

    Raises:
        FaapError: if the file cannot be read, or holds anything else.
    """
    try:
        # the original scripts keep their arguments beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error)).strip()
        raise FaapError(
            f"{path}: holds more than tensors and plain values, and nothing else is ever unpickled, since it could run "
            f"code ({reason[:200]}). Where you trust the file, save its tensors alone in a new one."
        ) from error
    # what torch's reader runs into on a broken file is of many kinds
    except Exception as error:
        raise FaapError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}); it may be truncated."
        ) from error
