"""The one loop that trains a generator in front of a frozen detector, and what it writes."""

from faap.training.measure import measure
from faap.training.start import recipe_to_resume, refuse_half_given
from faap.training.train import TrainResult, train
from faap.training.trainer import Trainer

__all__ = ["TrainResult", "Trainer", "measure", "recipe_to_resume", "refuse_half_given", "train"]
