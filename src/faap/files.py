"""Files that are there in full or not at all, and reading what others wrote without running anything of it."""

import hashlib
import json
import math
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faap.conform import conform
from faap.errors import FaapError

if TYPE_CHECKING:
    from torch import Tensor

_LFS_POINTER = re.compile(rb"version https://(git-lfs|hawser)\.github\.com/spec/")
# bytes of a text that is read at once
MOST_TEXT = 2**32


def cache_dir() -> Path:
    """Return faap's cache folder: `$FAAP_CACHE_DIR`, else `$XDG_CACHE_HOME/faap`, else `~/.cache/faap`."""
    own = os.environ.get("FAAP_CACHE_DIR")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faap")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes its place when the block ends well."""
    refuse_device(path)  # which a file would take the place of, for all programs
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # Windows opens no folder, and network drives may flush none
            _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until what is written lies on the disk; of a folder, its names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> Path:
    """Write text in UTF-8, in full or not at all; return the path."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def file_sha256(*paths: Path) -> str:
    """Return the hex SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        refuse_device(path)
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def reading(place: object, trouble: str) -> Iterator[None]:
    """Turn what goes wrong in the block into a FaapError: what the system says of a file, or else what is wrong.

    The libraries that read for us let through whatever a wrong value runs into, which is of many kinds.
    """
    try:
        yield
    except FaapError:
        raise
    except Exception as error:
        line = str(error).strip().partition("\n")[0] or type(error).__name__
        told = isinstance(error, OSError) and str(error.filename) == str(place) and error.strerror
        raise FaapError(f"{place}: {told or f'{trouble}: {line}'}") from error


def lfs_pointer(path: Path) -> str:
    """Say that a file is what Git leaves in place of one that Git LFS keeps, and what to do; empty where it is none."""
    with suppress(OSError):
        if path.is_file():  # a pipe would be waited for
            with path.open("rb") as file:
                if _LFS_POINTER.match(file.read(64)):
                    return "is a pointer of Git LFS, not the file itself; run: git lfs pull"
    return ""


def refuse_device(path: Path) -> None:
    """Raise a FaapError if what lies there is neither a file nor a folder."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FaapError(f"{path}: is a pipe or a device; only ordinary files are read and written.")


def refuse_odd(path: Path, most: float = math.inf) -> None:
    """Raise a FaapError if a file is a pointer of Git LFS, none that ends, or of more bytes; pass if there is none."""
    if said := lfs_pointer(path):
        raise FaapError(f"{path}: {said}")
    refuse_device(path)
    if path.is_file() and (size := path.stat().st_size) > most:
        raise FaapError(f"{path}: has {size:,} bytes, more than the {most:,} that are read of such a file.")


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 or -32, with or without a byte-order mark; else raise a FaapError."""
    refuse_odd(path, MOST_TEXT)
    with reading(path, "cannot be read"):
        content = path.read_bytes()
    with reading(path, "is no text in UTF-8; save it with that encoding"):
        return content.decode(json.detect_encoding(content))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a FaapError says what is wrong with the file."""
    text = read_text(path)
    with reading(path, "not valid JSON"):
        content: dict[str, Any] = json.loads(text)
    conform(content, {str: object}, str(path))
    return content


def read_tensors(path: Path) -> Any:
    """Read what `torch.save` wrote, onto the CPU; beside tensors and plain values it may hold an `argparse.Namespace`.

    Raises:
        FaapError: if the file cannot be read, or holds anything else.
    """
    import argparse

    import torch  # here, because the command line's help needs this module and not torch

    refuse_odd(path)
    # the original scripts keep their arguments beside the weights
    safe = torch.serialization.safe_globals([argparse.Namespace])
    with reading(path, "cannot be read as a checkpoint; it may be truncated"), safe:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "Unsupported operand" in str(error):
                raise FaapError(f"{path}: is no checkpoint, but something else under its name, or damaged.") from error
            reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error)).strip()[:200]
            never = "holds more than tensors and plain values, and nothing else is ever unpickled: it could run code"
            advice = "Where you trust the file, save its tensors alone in a new one."
            raise FaapError(f"{path}: {never} ({reason}). {advice}") from error


def read_safetensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file onto the CPU; a FaapError says what is wrong with it, such as numbers that are NaN."""
    from safetensors.torch import load_file

    from faap.weights import check_finite

    refuse_odd(path)
    with reading(path, "is not a complete safetensors file"):
        weights: dict[str, Tensor] = load_file(path)
    check_finite(weights, path)
    return weights


def hub_folder(name: str, patterns: list[str], **options: Any) -> Path:
    """Fetch a model's files from the Hugging Face hub, or find them in its cache; else raise a FaapError."""
    from huggingface_hub import snapshot_download

    with reading(name, "is no file or directory here, and cannot be had from the Hugging Face hub"):
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
