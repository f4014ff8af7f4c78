"""Data sets: records, layouts, transforms, sampling, batches."""

from faap.data.dataset import Batch, FaapImages, Sample, collate
from faap.data.images import (
    MEAN,
    STD,
    Preprocessing,
    denormalise,
    evaluation_transform,
    normalise,
    read_image,
    training_transform,
)
from faap.data.layouts import Dataset, load_dataset
from faap.data.problems import Problem, refuse
from faap.data.records import Record, Split
from faap.data.sampling import GroupBalancedBatches

__all__ = [
    "MEAN",
    "STD",
    "Batch",
    "Dataset",
    "FaapImages",
    "GroupBalancedBatches",
    "Preprocessing",
    "Problem",
    "Record",
    "Sample",
    "Split",
    "collate",
    "denormalise",
    "evaluation_transform",
    "load_dataset",
    "normalise",
    "read_image",
    "refuse",
    "training_transform",
]
