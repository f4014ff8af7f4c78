"""The one loop that trains a generator in front of a frozen detector, and what it writes."""

from faap.training.checkpoints import recipe_to_resume
from faap.training.loop import TrainResult, train

__all__ = ["TrainResult", "recipe_to_resume", "train"]
