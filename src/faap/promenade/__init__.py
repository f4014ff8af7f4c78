"""Promenade, the embedded benchmark: rendered people in counterfactual pairs and a detector biased against women."""

from faap.promenade.build import build_promenade, cache_dir, detector_dir
from faap.promenade.scenes import Scene, compose

__all__ = ["Scene", "build_promenade", "cache_dir", "compose", "detector_dir"]
