"""The perturbation: the generator, its budget, and the colour jitter behind it."""

from faap.perturbation.budget import quantise
from faap.perturbation.generator import Generator
from faap.perturbation.jitter import jitter
from faap.perturbation.storage import build_generator, load_generator, save_generator

__all__ = ["Generator", "build_generator", "jitter", "load_generator", "quantise", "save_generator"]
