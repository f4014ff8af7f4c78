"""Frozen detectors: loading them, their outputs, their loss."""

from pathlib import Path

import torch

from faap.detectors.base import DetectorOutput, FrozenDetector, RawDetections
from faap.detectors.hugging_face import load_hugging_face
from faap.detectors.set_loss import Match
from faap.errors import FaapError

__all__ = ["DetectorOutput", "FrozenDetector", "Match", "RawDetections", "load_detector"]


def load_detector(name: str | Path, device: str | torch.device | None = None) -> FrozenDetector:
    """Load a detector, frozen and ready.

    Args:
        name: "promenade" for the detector of the embedded benchmark; a directory with config.json, model.safetensors
            and preprocessor_config.json of a DETR or Conditional DETR; or a checkpoint (.pth) of the original DETR.
        device: where to put it; the CPU by default.

    Returns:
        The detector.

    Raises:
        FaapError: `name` is none of these, or its content is not a supported detector.
    """
    if name == "promenade":
        from faap.promenade import detector_dir

        detector = load_hugging_face(detector_dir("biased"), name="promenade")
    else:
        place = Path(name)
        if place.is_file():
            from faap.detectors.original import load_original

            detector = load_original(place)
        elif place.is_dir():
            detector = load_hugging_face(place)
        else:
            raise FaapError(
                f"detector {place} does not exist; give 'promenade', a directory with config.json, model.safetensors "
                "and preprocessor_config.json of a DETR or Conditional DETR, or an original DETR checkpoint (.pth)"
            )
    return detector if device is None else detector.to(device)
