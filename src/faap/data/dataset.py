"""From records to batches of tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from faap.data.images import (
    TRAINING_EDGES,
    Pixels,
    Preprocessing,
    evaluation_transform,
    normalise,
    plan_training,
    read_image,
    training_transform,
)
from faap.data.records import Split
from faap.data.targets import Targets
from faap.errors import FaapError


@dataclass
class Sample:
    """One image, ready for a detector.

    Attributes:
        pixels: (3, H, W) uint8.
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

    What describes them lies where the images do; what tells them apart stays on the CPU, so that nobody waits for it.

    Attributes:
        images: (B, 3, H, W) uint8, 0 in the padding.
        pixel_mask: (B, H, W) bool, True where the image is; None where nothing is padded.
        targets: what is in them.
        groups: B names.
        image_ids: (B,) int64, on the CPU.
        sizes: (B, 2) int64, height and width of the original images in pixels, on the CPU.
        valid: (B, 2) int64, height and width in `images`, on the CPU.
    """

    images: Tensor
    pixel_mask: Tensor | None
    targets: Targets
    groups: tuple[str, ...]
    image_ids: Tensor
    sizes: Tensor
    valid: Tensor

    @property
    def pixel_values(self) -> Tensor:
        """(B, 3, H, W) float32, ImageNet-normalised, 0 in the padding."""
        values = normalise(self.images.float() / 255)
        return values if self.pixel_mask is None else torch.where(self.pixel_mask[:, None], values, 0)

    def to(self, device: str | torch.device, *, copy: bool = False) -> "Batch":
        """Return the batch with its images and targets on a device; from pinned memory nothing waits for that."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True, copy=copy))

    def tensors(self) -> list[Tensor]:
        """Return what `to` moves."""
        mask = [] if self.pixel_mask is None else [self.pixel_mask]
        return [self.images, self.targets.labels, self.targets.boxes, self.targets.real, *mask]

    def pin_memory(self) -> "Batch":
        """Return the batch where a GPU fetches it by itself; the loader calls this."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        images, labels, boxes, real, *mask = map(change, self.tensors())
        targets = replace(self.targets, labels=labels, boxes=boxes, real=real)
        return replace(self, images=images, pixel_mask=mask[0] if mask else None, targets=targets)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples to a batch."""
    valid = torch.tensor([sample.pixels.shape[1:] for sample in samples])
    height, width = valid.amax(0).tolist()
    images, mask = _zeros(len(samples), 3, height, width), torch.zeros(len(samples), height, width, dtype=torch.bool)
    for index, (sample, (rows, columns)) in enumerate(zip(samples, valid.tolist(), strict=True)):
        images[index, :, :rows, :columns] = sample.pixels
        mask[index, :rows, :columns] = True
    targets = Targets.of([{"labels": sample.labels, "boxes": sample.boxes} for sample in samples])
    groups = tuple(sample.group for sample in samples)
    image_ids, sizes = (torch.tensor([getattr(each, name) for each in samples]) for name in ("image_id", "size"))
    return Batch(images, None if bool(mask.all()) else mask, targets, groups, image_ids, sizes, valid)


def _zeros(*shape: int) -> Tensor:
    """Make a large tensor where that is cheapest: fetching its memory page by page takes longer than filling it.

    What a worker hands on has to lie in shared memory and would be copied there; fresh shared memory is zero.
    """
    if data.get_worker_info() is None:
        return torch.from_numpy(np.zeros(shape, np.uint8))  # NumPy asks for huge pages, torch does not
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


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
        memory: bytes of decoded images that are kept once they are read; a process that only loads keeps none.
    """

    split: Split
    preprocessing: Preprocessing
    label_map: dict[int, int]
    _: KW_ONLY
    training: bool = False
    seed: int = 0
    edges: Sequence[int] = TRAINING_EDGES
    memory: int = 0

    def __post_init__(self) -> None:
        self._kept: dict[int, Pixels] = {}
        self._room = self.memory

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
        record, image = self.split.records[index], self._image(index)
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

    def _image(self, index: int) -> Pixels:
        if (known := self._kept.get(index)) is not None:
            return known
        record = self.split.records[index]
        image = np.asarray(read_image(record.path))
        height, width, _ = image.shape
        if (width, height) != (record.width, record.height):
            found = f"the image is {width}x{height} pixels (as EXIF turns it)"
            raise FaapError(f"{record.path}: {found}, but {record.width}x{record.height} in its annotations")
        if image.nbytes <= self._room and data.get_worker_info() is None:
            self._kept[index], self._room = image, self._room - image.nbytes
        return image
