"""Promenade, the embedded benchmark: rendered people in counterfactual pairs and a detector biased against women."""

from faap.promenade.build import build_promenade, detector_dir, shipped_run
from faap.promenade.scenes import Scene, compose

__all__ = ["Scene", "build_promenade", "compose", "detector_dir", "shipped_run"]
