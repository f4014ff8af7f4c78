"""The one loop that trains a generator in front of a frozen detector, and what it writes."""

from faap.training.checkpoints import recipe_to_resume
from faap.training.train import TrainResult, train
from faap.training.trainer import Trainer

__all__ = ["TrainResult", "Trainer", "recipe_to_resume", "train"]
