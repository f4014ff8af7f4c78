"""The order in which training sees the images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from torch.utils.data import Sampler

from faap.errors import FaapError

# Half-batches that are paired at a time: pairing takes time as the cube, and more would save little padding.
WINDOW = 512

Integers = npt.NDArray[np.int64]


@dataclass(eq=False)
class GroupBalancedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), the first half of the anchor group and the second half of the reference group.

    Each group's images are passed through again and again, each pass in a new order, and an epoch takes up where the
    one before left off. So an epoch's batches are a function of (seed, epoch) alone. An epoch has twice as many images
    as the larger group; its last batch may be smaller.

    With `shape`, an epoch has the same images, but in batches of like shapes, so that little of a batch is padding. A
    group's images are cut into half-batches of like shapes, each anchor half-batch gets a reference half-batch that
    fits it, and the batches come in an order that has nothing to do with shapes. If all shapes are equal, the batches
    are as drawn; a smaller last batch always is.

    Several processes share each batch, also a smaller last one: theirs, one after the other, are its anchors and its
    references.

    Attributes:
        anchor_indices: positions of the anchor group's images in the data set.
        reference_indices: positions of the reference group's images.
        batch_size: images in a batch, even, at least 2.
        seed: at least 0.
        images_per_epoch: overrides the length of an epoch, rounded up to an even number; 0: the rule above.
        shape: (epoch, index) -> (height, width) in pixels of the sample; None: batches are as drawn.
        rank: this process's number, from 0.
        world: number of processes; `batch_size` is that of all of them together.

    Raises:
        FaapError: the batch size is odd or too small, a group has no image, or a process has none of a batch.
    """

    anchor_indices: Sequence[int]
    reference_indices: Sequence[int]
    batch_size: int
    seed: int
    images_per_epoch: int = 0
    _: KW_ONLY
    shape: Callable[[int, int], tuple[int, int]] | None = None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        size, world = self.batch_size, self.world
        if size < 2 or size % 2:
            raise FaapError(f"batch_size is {size}; it must be even and at least 2: half of it for each group")
        if self.images_per_epoch < 0:
            raise FaapError(f"images_per_epoch is {self.images_per_epoch}; it must be at least 0 (0: all)")
        self.groups = [np.asarray(each, dtype=np.int64) for each in (self.anchor_indices, self.reference_indices)]
        for name, indices in zip(("anchor", "reference"), self.groups, strict=True):
            if not len(indices):
                raise FaapError(f"the {name} group has no image in this split; training needs both groups")
        self.images_per_group = (self.images_per_epoch + 1) // 2 or max(map(len, self.groups))
        self.epoch = 0
        images = 2 * self.images_per_group
        last = images % size or size
        share = f"and {world} processes share a batch: use"
        if size < world:
            raise FaapError(f"batch_size is {size}, {share} fewer")
        if last < world:
            advice = f"{share} --images_per_epoch {images - last or size}, or fewer processes"
            raise FaapError(f"the last batch of an epoch has {last} of its {images} images, {advice}")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-self.images_per_group // (self.batch_size // 2))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's share of each batch of the chosen epoch."""
        anchors, references = self._arranged()
        for number in range(len(self)):
            mine, theirs = self._share(number)
            yield [(self.epoch, int(index)) for index in [*anchors[mine], *references[theirs]]]

    def _share(self, number: int) -> tuple[slice, slice]:
        """Return where the process's anchors and references of a batch lie among the epoch's."""
        start = number * (self.batch_size // 2)
        count = min(self.batch_size // 2, self.images_per_group - start)
        anchors, both = (np.array([self.rank, self.rank + 1]) * most // self.world for most in (count, 2 * count))
        return slice(*(start + anchors)), slice(*(start + both - anchors))

    def _draw(self, number: int) -> Integers:
        indices = self.groups[number]
        start = self.epoch * self.images_per_group
        passes = range(start // len(indices), (start + self.images_per_group - 1) // len(indices) + 1)
        order = [np.random.default_rng([self.seed, number, each]).permutation(indices) for each in passes]
        offset = start - passes[0] * len(indices)
        return np.concatenate(order)[offset : offset + self.images_per_group]

    def _arranged(self) -> list[Integers]:
        """Return each group's images of the epoch in the order of the batches."""
        drawn = [self._draw(number) for number in range(2)]
        if self.shape is None:
            return drawn
        known = {index: self.shape(self.epoch, index) for index in np.unique(drawn).tolist()}
        shapes = [np.array([known[index] for index in indices.tolist()]) for indices in drawn]
        if (np.concatenate(shapes) == shapes[0][0]).all():
            return drawn
        halves = [self._halves(number, shapes[number]) for number in range(2)]
        anchors, references = (of[half].max(1) for of, half in zip(shapes, halves, strict=True))
        halves[1] = halves[1][_partners(anchors, references)]
        order = np.random.default_rng([self.seed, 2, self.epoch]).permutation(len(anchors))
        places = [half[order].ravel() for half in halves]
        return [np.concatenate([of[place], of[len(place) :]]) for of, place in zip(drawn, places, strict=True)]

    def _halves(self, number: int, shapes: Integers) -> Integers:
        """Cut a group's images of the epoch, but for a smaller last batch, into half-batches of like shapes.

        Each pass is cut for itself: images of two passes may be one image, whose twins would always meet.

        Returns:
            (m, batch_size / 2) places among the group's images of the epoch.
        """
        half, length = self.batch_size // 2, len(self.groups[number])
        end = len(shapes) // half * half
        passes = np.arange(-self.epoch * self.images_per_group % length, end, length)
        cuts = sorted({0, *(passes // half * half).tolist(), *(-(-passes // half) * half).tolist(), end})
        parts = [part for cut in pairwise(cuts) for part in _split(np.arange(*cut), shapes, half)]
        return np.sort(np.reshape(parts, (-1, half)).astype(np.int64), 1)


def _split(places: Integers, shapes: Integers, size: int) -> Iterator[Integers]:
    """Halve places, at the median of the side that varies more, until `size` of them are left in each part."""
    if len(places) == size:
        yield places
        return
    here = shapes[places]
    side = (here.max(0) / here.min(0)).argmax()
    places = places[here[:, side].argsort(kind="stable")]
    middle = len(places) // size // 2 * size
    yield from _split(places[:middle], shapes, size)
    yield from _split(places[middle:], shapes, size)


def _partners(anchors: Integers, references: Integers) -> Integers:
    """Find the reference half-batch for each anchor half-batch that leaves the least padding.

    Args:
        anchors: (m, 2) largest height and width of each anchor half-batch.
        references: (m, 2) those of the reference half-batches; both with like shapes close together.

    Returns:
        (m,) the number of the reference half-batch.
    """
    partners = np.arange(len(anchors))
    windows = -(-len(anchors) // WINDOW)
    for start in range(windows):
        # In steps, so that each window has some of every shape.
        here = slice(start, None, windows)
        pixels = np.maximum(anchors[here, None], references[None, here]).prod(-1)
        partners[here] = partners[here][linear_sum_assignment(pixels)[1]]
    return partners
