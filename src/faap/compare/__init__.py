"""Recipes side by side: every recipe with every seed, each an ordinary run, gathered into one comparison."""

from faap.compare.compare import compare, recipes_to_compare
from faap.compare.gather import gather
from faap.compare.local import LocalRunner, Runner
from faap.compare.ray import RayRunner

__all__ = ["LocalRunner", "RayRunner", "Runner", "compare", "gather", "recipes_to_compare"]
