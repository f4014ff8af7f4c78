"""Recipes side by side: every recipe with every seed, each an ordinary run, gathered into one comparison."""

from faap.compare.compare import compare as compare
from faap.compare.compare import recipes_to_compare as recipes_to_compare
from faap.compare.gather import gather as gather
from faap.compare.local import LocalRunner as LocalRunner
from faap.compare.ray import RayRunner as RayRunner
