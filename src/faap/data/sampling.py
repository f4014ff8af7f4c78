"""The order in which training sees the images."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from faap.errors import FaapError


class GroupBalancedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), the first half of the anchor group and the second half of the reference group.

    Each group's images are passed through again and again, each pass in a new order, and an epoch takes up where the
    one before left off. So an epoch's batches are a function of (seed, epoch) alone. An epoch has twice as many images
    as the larger group; its last batch may be smaller.

    Args:
        anchor_indices: positions of the anchor group's images in the data set.
        reference_indices: positions of the reference group's images.
        batch_size: images in a batch, even, at least 2.
        seed: at least 0.
        images_per_epoch: overrides the length of an epoch, rounded up to an even number; 0: the rule above.

    Raises:
        FaapError: the batch size is odd or too small, or a group has no image.
    """

    def __init__(
        self,
        anchor_indices: Sequence[int],
        reference_indices: Sequence[int],
        batch_size: int,
        seed: int,
        images_per_epoch: int = 0,
    ) -> None:
        if batch_size < 2 or batch_size % 2:
            raise FaapError(f"batch_size is {batch_size}; it must be even and at least 2: half of it for each group")
        if images_per_epoch < 0:
            raise FaapError(f"images_per_epoch is {images_per_epoch}; it must be at least 0 (0: all)")
        self.groups = (np.asarray(anchor_indices, dtype=np.int64), np.asarray(reference_indices, dtype=np.int64))
        for name, indices in zip(("anchor", "reference"), self.groups, strict=True):
            if not len(indices):
                raise FaapError(f"the {name} group has no image in this split; training needs both groups")
        self.batch_size = batch_size
        self.seed = seed
        self.images_per_group = (images_per_epoch + 1) // 2 or max(len(indices) for indices in self.groups)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-self.images_per_group // (self.batch_size // 2))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches of the chosen epoch."""
        epoch, half = self.epoch, self.batch_size // 2
        anchors, references = (self._draw(number) for number in range(2))
        for start in range(0, self.images_per_group, half):
            chosen = [*anchors[start : start + half], *references[start : start + half]]
            yield [(epoch, int(index)) for index in chosen]

    def _draw(self, number: int) -> list[int]:
        indices = self.groups[number]
        start = self.epoch * self.images_per_group
        passes = range(start // len(indices), (start + self.images_per_group - 1) // len(indices) + 1)
        order = [np.random.default_rng([self.seed, number, each]).permutation(indices) for each in passes]
        offset = start - passes[0] * len(indices)
        return list(np.concatenate(order)[offset : offset + self.images_per_group])
