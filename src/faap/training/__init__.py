"""The one loop that trains a generator in front of a frozen detector, and what it writes."""

from faap.training.checkpoints import recipe_to_resume
from faap.training.loop import TrainResult, train
from faap.training.measure import measure

__all__ = ["TrainResult", "measure", "recipe_to_resume", "train"]
