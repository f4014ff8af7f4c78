"""Where a measurement comes from: data, detector, generator, software, date."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from torch import nn

import faap
from faap.data import Dataset
from faap.detectors import FrozenDetector


def provenance(detector: FrozenDetector, generator: nn.Module, dataset: Dataset, split: str) -> dict[str, Any]:
    """Return what identifies a measurement, ready for JSON."""
    return {
        "dataset": str(dataset.root),
        "split_sha256": dataset.split(split).fingerprint(),
        "detector": {
            "name": detector.name,
            "file_sha256": detector.file_sha256,
            "tensors_sha256": detector.tensors_sha256(),
        },
        "generator": {
            "arch": getattr(generator, "arch", type(generator).__name__),
            "epsilon": generator.epsilon,
            "sha256": _tensors_sha256(generator),
        },
        "versions": {"faap": faap.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _tensors_sha256(module: nn.Module) -> str:
    """Hash a module's tensors, whatever file they came from: name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
