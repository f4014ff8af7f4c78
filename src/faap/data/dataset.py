"""From records to batches of tensors."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from faap.data.images import (
    TRAINING_EDGES,
    Preprocessing,
    evaluation_transform,
    plan_training,
    read_image,
    training_transform,
)
from faap.data.records import Split
from faap.errors import FaapError


@dataclass
class Sample:
    """One image, ready for a detector.

    Attributes:
        pixels: (3, H, W) float32, normalised.
        labels: (n,) int64, class indices of the detector.
        boxes: (n, 4) float32, cxcywh in [0, 1].
        group: the image's group.
        image_id: of its record.
        size: height and width of the original image in pixels.
    """

    pixels: Tensor
    labels: Tensor
    boxes: Tensor
    group: str
    image_id: int
    size: tuple[int, int]


@dataclass
class Batch:
    """B images, padded at the bottom and the right to the largest of them.

    Attributes:
        pixel_values: (B, 3, H, W) float32, normalised, 0 in the padding.
        pixel_mask: (B, H, W) bool, True where the image is.
        targets: B dicts with "labels" (n,) int64 and "boxes" (n, 4) cxcywh in [0, 1] of the image without padding.
        groups: B names.
        image_ids: (B,) int64.
        sizes: (B, 2) int64, height and width of the original images in pixels.
        valid: (B, 2) int64, height and width in `pixel_values`.
    """

    pixel_values: Tensor
    pixel_mask: Tensor
    targets: list[dict[str, Tensor]]
    groups: tuple[str, ...]
    image_ids: Tensor
    sizes: Tensor
    valid: Tensor

    def to(self, device: str | torch.device) -> "Batch":
        """Return the batch with its tensors on a device."""
        tensors: Any = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        targets = [{key: value.to(device) for key, value in target.items()} for target in self.targets]
        return replace(self, targets=targets, **tensors)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples to a batch."""
    valid = torch.tensor([sample.pixels.shape[1:] for sample in samples])
    height, width = valid.amax(0).tolist()
    pixel_values = _zeros(len(samples), 3, height, width)
    pixel_mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
    for index, (sample, (rows, columns)) in enumerate(zip(samples, valid.tolist(), strict=True)):
        pixel_values[index, :, :rows, :columns] = sample.pixels
        pixel_mask[index, :rows, :columns] = True
    targets = [{"labels": sample.labels, "boxes": sample.boxes} for sample in samples]
    groups = tuple(sample.group for sample in samples)
    image_ids, sizes = (torch.tensor([getattr(each, name) for each in samples]) for name in ("image_id", "size"))
    return Batch(pixel_values, pixel_mask, targets, groups, image_ids, sizes, valid)


def _zeros(*shape: int) -> Tensor:
    """Make a large tensor where that is cheapest: fetching its memory page by page takes longer than filling it.

    What a worker hands on has to lie in shared memory and would be copied there; fresh shared memory is zero.
    """
    if data.get_worker_info() is None:
        return torch.from_numpy(np.zeros(shape, np.float32))  # NumPy asks for huge pages, torch does not
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0).set_(storage).view(shape)


@dataclass(eq=False)
class FaapImages(data.Dataset[Sample]):
    """The images of a split as samples for one detector.

    Targets hold what a detector can be asked to find one by one: no crowd regions, and no categories that
    `label_map` leaves out.

    Args:
        split: the images.
        preprocessing: the detector's.
        label_map: data set category id -> class index of the detector.
        training: augment as DETR's training does; otherwise only resize.
        seed: of the augmentation, at least 0.
        edges: shortest edges that training draws from; see `training_transform`.
    """

    split: Split
    preprocessing: Preprocessing
    label_map: dict[int, int]
    _: KW_ONLY
    training: bool = False
    seed: int = 0
    edges: Sequence[int] = TRAINING_EDGES

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.split.records)

    def shape(self, epoch: int, index: int) -> tuple[int, int]:
        """Return the height and width in pixels of a sample in training, without reading its file."""
        record = self.split.records[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        width, height = plan_training((record.width, record.height), self.preprocessing, rng, self.edges).size
        return height, width

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Read an image.

        Args:
            key: its position in the split, or (epoch, position); the augmentation is a function of (seed, epoch,
                position), with epoch 0 if none is given.

        Returns:
            The sample.

        Raises:
            FaapError: the file cannot be read, or its size is not the annotated one.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.split.records[index]
        image = read_image(record.path)
        if image.size != (record.width, record.height):
            found = f"the image is {image.width}x{image.height} pixels (as EXIF turns it)"
            raise FaapError(f"{record.path}: {found}, but {record.width}x{record.height} in its annotations")
        kept = ~record.crowd & np.array([label in self.label_map for label in record.labels.tolist()], dtype=bool)
        boxes = record.boxes[kept]
        labels = np.array([self.label_map[label] for label in record.labels[kept].tolist()], dtype=np.int64)
        if self.training:
            rng = np.random.default_rng([self.seed, epoch, index])
            pixels, targets, labels = training_transform(image, boxes, labels, self.preprocessing, rng, self.edges)
        else:
            pixels, targets = evaluation_transform(image, boxes, self.preprocessing)
        size = record.height, record.width
        return Sample(pixels, torch.from_numpy(labels), targets, record.group, record.image_id, size)
