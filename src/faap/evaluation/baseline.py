"""What the detector finds on its own, kept on disk: it is the same for every generator that is measured."""

import hashlib
import os
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
from faap.evaluation.detections import Detections, detect
from faap.files import atomic_write, cache_dir

_COLUMNS = ("scores", "labels", "boxes")


def detect_baseline(detector: FrozenDetector, split: Split, *, batch_size: int = 16) -> Sequence[Detections]:
    """`detect` without a generator, kept in faap's cache folder for detectors of faap's own code.

    Raises:
        FaapError: as `detect`.
    """
    if not type(detector).__module__.startswith("faap.detectors."):
        return detect(detector, split, batch_size=batch_size)
    path, found = distributed.main_only(lambda: _look_up(detector, split, batch_size))
    if found is None:
        found = detect(detector, split, batch_size=batch_size)
        if path is not None and distributed.rank() == 0:
            _write(path, found)
    return found


def _look_up(
    detector: FrozenDetector, split: Split, batch_size: int
) -> tuple[Path | None, Sequence[Detections] | None]:
    try:
        path = cache_dir() / "baselines" / f"{_key(detector, split, batch_size)}.npz"
    except RuntimeError:  # a user without a home
        return None, None
    return path, _read(path, split)


def _key(detector: FrozenDetector, split: Split, batch_size: int) -> str:
    """Hash all that detections depend on: detector, annotations, images, device, and code, installed or under work."""
    digest = hashlib.sha256(f"{detector.tensors_sha256()} {split.fingerprint()}".encode())
    labels = sorted(detector.label_map(split.categories).items())
    device = next(detector.parameters()).device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = (torch.__version__, transformers.__version__, PIL.__version__)
    settings: Any = getattr(detector.model, "config", None)
    # what a tensor does not tell: strides, heads, activations, how scores are read
    parts = (detector, settings, detector.activation, detector.criterion, detector.preprocessing)
    compiled = detector._compiled_call_impl is not None
    digest.update(repr((*parts, labels, batch_size, kind, compiled, versions)).encode())
    for record in split.records:
        with suppress(OSError):  # an image that is missing is the reader's to tell
            stat = os.stat(record.path)
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    package = Path(__file__).parents[1]
    sources = [*package.glob("data/*.py"), *package.glob("detectors/*.py"), package / "evaluation" / "detections.py"]
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _read(path: Path, split: Split) -> list[Detections] | None:
    try:
        with np.load(path) as file:
            image_ids, ends = file["image_ids"].tolist(), np.cumsum(file["counts"])[:-1]
            columns = [np.split(file[name], ends) for name in _COLUMNS]
        if image_ids == [record.image_id for record in split.records]:
            return [Detections(*row) for row in zip(image_ids, *columns, strict=True)]
    except Exception:  # absent, cut short, or whatever else: it is computed again
        pass
    return None


def _write(path: Path, found: Sequence[Detections]) -> None:
    columns: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in found]) for name in _COLUMNS}
    counts = [len(each.scores) for each in found]
    with suppress(OSError), atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, image_ids=[each.image_id for each in found], counts=counts, **columns)
