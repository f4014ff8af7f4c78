"""Data sets: records, layouts, transforms, sampling, batches."""

from faap.data.dataset import Batch as Batch
from faap.data.dataset import FaapImages as FaapImages
from faap.data.dataset import Sample as Sample
from faap.data.dataset import collate as collate
from faap.data.images import MEAN as MEAN
from faap.data.images import STD as STD
from faap.data.images import Preprocessing as Preprocessing
from faap.data.images import denormalise as denormalise
from faap.data.images import evaluation_transform as evaluation_transform
from faap.data.images import normalise as normalise
from faap.data.images import read_image as read_image
from faap.data.images import training_transform as training_transform
from faap.data.layouts import Dataset as Dataset
from faap.data.layouts import load_dataset as load_dataset
from faap.data.loading import load as load
from faap.data.loading import loading as loading
from faap.data.problems import Problem as Problem
from faap.data.problems import refuse as refuse
from faap.data.records import Record as Record
from faap.data.records import Split as Split
from faap.data.sampling import GroupBalancedBatches as GroupBalancedBatches
