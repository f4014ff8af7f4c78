"""Frozen detectors: loading them, their outputs, their loss."""

from faap.detectors.base import DetectorOutput, FrozenDetector, RawDetections
from faap.detectors.families import FAMILIES
from faap.detectors.load import load_detector
from faap.detectors.set_loss import Criterion, Match

__all__ = ["FAMILIES", "Criterion", "DetectorOutput", "FrozenDetector", "Match", "RawDetections", "load_detector"]
