"""The perturbation: the generator, its budget, and what happens to images behind it."""

from faap.perturbation.budget import quantise
from faap.perturbation.generator import Generator
from faap.perturbation.storage import build_generator, load_generator, save_generator

__all__ = ["Generator", "build_generator", "load_generator", "quantise", "save_generator"]
