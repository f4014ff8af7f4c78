"""What the detector finds on its own, kept on disk: it is the same for every generator that is measured."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers

from faap import distributed
from faap.data import Split
from faap.detectors import FrozenDetector
from faap.evaluation.arrival import AS_MADE
from faap.evaluation.detections import Detections, detect
from faap.files import atomic_write, cache_dir
from faap.weights import a_weight

_COLUMNS = ("scores", "labels", "boxes")


def detect_baseline(
    detector: FrozenDetector, split: Split, *, batch_size: int = 16, **options: Any
) -> list[Detections]:
    """`detect` without a generator and with what else it takes, kept in faap's cache for detectors of faap's own code.

    Raises:
        FaapError: as `detect`.
    """
    path, found = distributed.main_only(lambda: _look_up(detector, split, batch_size, options.get("arrival", AS_MADE)))
    if found is None:
        found = detect(detector, split, batch_size=batch_size, **options)
        if path is not None and distributed.rank() == 0:
            _write(path, found)
    return found


def _look_up(detector: FrozenDetector, split: Split, *how: object) -> tuple[Path | None, list[Detections] | None]:
    """Return where the detections are kept, if they can be, and the detections, if they are there."""
    if not type(detector).__module__.startswith("faap.detectors."):
        return None, None
    try:
        path = cache_dir() / "baselines" / f"{_key(detector, split, how)}.npz"
    except (OSError, RuntimeError):  # an image that is missing, which is the reader's to tell; a user without a home
        return None, None
    try:
        with np.load(path) as file:
            ends = np.cumsum(file["counts"])[:-1]
            columns = [np.split(file[name], ends) for name in _COLUMNS]
        rows = zip(split.records, *columns, strict=True)
        return path, [Detections(record.image_id, *row) for record, *row in rows]
    except Exception:  # absent, cut short, or whatever else: it is computed again
        return path, None


def _key(detector: FrozenDetector, split: Split, how: Sequence[object]) -> str:
    """Hash all that detections depend on: detector, annotations, images, device, and code, installed or under work."""
    device = a_weight(detector).device
    settings: Any = getattr(detector.model, "config", None)
    package = Path(__file__).parents[1]
    sources = [path for room in ("data", "detectors", "evaluation") for path in (package / room).glob("*.py")]
    parts = (
        detector.tensors_sha256(),
        # what a tensor does not tell: strides, heads, activations, how scores are read
        (detector, settings, detector.activation, detector.criterion, detector.preprocessing),
        (split.fingerprint(), sorted(detector.label_map(split.categories).items()), how),
        [(file.st_size, file.st_mtime_ns) for file in (record.path.stat() for record in split.records)],
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        detector._compiled_call_impl is not None,
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
        (torch.__version__, transformers.__version__, PIL.__version__),
        [source.read_bytes() for source in sorted(sources)],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _write(path: Path, found: Sequence[Detections]) -> None:
    columns: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in found]) for name in _COLUMNS}
    counts = [len(each.scores) for each in found]
    with suppress(OSError), atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, counts=counts, **columns)
