"""What the detector finds on its own, kept on disk: it is the same for every generator that is measured."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import PIL
import torch
import transformers

from faap import distributed
from faap.data import Split
from faap.detectors import FrozenDetector
from faap.evaluation.detections import Detections, detect
from faap.files import atomic_write, cache_dir


def detect_baseline(detector: FrozenDetector, split: Split, *, batch_size: int = 16) -> list[Detections]:
    """`detect` without a generator; the second time it is read from faap's cache folder.

    A file of the cache belongs to the detector's tensors, structure, settings, preprocessing and classes, the split's
    annotations, the images' sizes and times of change, the batch size, the device, the versions of torch, transformers
    and Pillow, and the code that reads images and runs detectors. Detectors of other code than faap's are not kept.

    Args:
        detector: the frozen detector.
        split: the images.
        batch_size: images at a time.

    Returns:
        As `detect`.

    Raises:
        FaapError: as `detect`.
    """
    if not type(detector).__module__.startswith("faap.detectors."):
        return detect(detector, split, batch_size=batch_size)
    path, found = distributed.first(lambda: _look_up(detector, split, batch_size))
    if found is None:
        found = detect(detector, split, batch_size=batch_size)
        if path is not None and distributed.rank() == 0:
            _write(path, found)
    return found


def _look_up(detector: FrozenDetector, split: Split, batch_size: int) -> tuple[Path | None, list[Detections] | None]:
    try:
        path = cache_dir() / "baselines" / f"{_key(detector, split, batch_size)}.npz"
    except RuntimeError:  # a user without a home
        return None, None
    return path, _read(path, split)


def _key(detector: FrozenDetector, split: Split, batch_size: int) -> str:
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
            stored = {name: file[name] for name in ("image_ids", "counts", "scores", "labels", "boxes")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # absent, or cut short: it is computed again
    if stored["image_ids"].tolist() != [record.image_id for record in split.records]:
        return None
    ends = np.cumsum(stored["counts"])[:-1]
    columns = (np.split(stored[name], ends) for name in ("scores", "labels", "boxes"))
    return [
        Detections(image_id, *row)
        for image_id, row in zip(stored["image_ids"].tolist(), zip(*columns, strict=True), strict=True)
    ]


def _write(path: Path, found: Sequence[Detections]) -> None:
    with suppress(OSError), atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            image_ids=[each.image_id for each in found],
            counts=[len(each.scores) for each in found],
            scores=np.concatenate([each.scores for each in found]),
            labels=np.concatenate([each.labels for each in found]),
            boxes=np.concatenate([each.boxes for each in found]),
        )
