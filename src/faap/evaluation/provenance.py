"""Where a measurement comes from: data, detector, generator, software, date."""

from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from torch import nn

import faap
from faap.data import Dataset
from faap.detectors import FrozenDetector
from faap.weights import tensors_sha256


def provenance(detector: FrozenDetector, generator: nn.Module, dataset: Dataset, split: str) -> dict[str, Any]:
    """Return what identifies a measurement, ready for JSON."""
    hashes = {"file_sha256": detector.file_sha256, "tensors_sha256": detector.tensors_sha256()}
    about: dict[str, Any] = {"parameters": sum(p.numel() for p in generator.parameters())}
    about |= {"arch": getattr(generator, "arch", type(generator).__name__), "epsilon": generator.epsilon}
    return {
        "dataset": str(dataset.root),
        "split_sha256": dataset.split(split).fingerprint(),
        "detector": {"name": detector.name, **hashes},
        "generator": {**about, "sha256": tensors_sha256(generator.state_dict())},
        "versions": {"faap": faap.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
