"""Annotated images and the splits they form."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from faap.data.fields import plain


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One annotated image.

    Attributes:
        image_id: unique within its split.
        path: the image file.
        width: in pixels, as the image is meant to be seen.
        height: in pixels.
        group: the protected attribute's value; empty where people of several groups, or of none, are in the image.
        boxes: (n, 4) float64, xywh in pixels, inside the image.
        labels: (n,) int64, category ids of the data set.
        areas: (n,) float64, in square pixels.
        crowd: (n,) bool, True for a region that holds many objects.
        pair: the same for the counterfactual twins of one scene; None without twins.
        owners: n groups, where each box has its own; empty for nobody's. None: all boxes are the image's group's. See
            `owner_of`, which decodes it.
        split: the split that the file gives the image; empty if it does not say.
        conditions: what is annotated of how well each box can be seen, such as "occluded", by name (n,); nan for what
            is not known.
    """

    image_id: int
    path: Path
    width: int
    height: int
    group: str
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    pair: str | None = None
    owners: tuple[str, ...] | None = None
    split: str = ""
    conditions: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    @property
    def owner_of(self) -> tuple[str, ...]:
        """The group of each of the n boxes; empty for nobody's."""
        return (self.group,) * len(self.boxes) if self.owners is None else self.owners

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the image counts for, by name: its own, or those of its people."""
        return (self.group,) if self.owners is None else tuple(sorted(set(self.owners) - {""}))

    def boxes_of(self, group: str) -> npt.NDArray[np.bool_]:
        """Say of each box whether it is a group's, (n,) bool."""
        return np.array([owner == group for owner in self.owner_of], dtype=bool)

    def ignoring_others(self, group: str) -> "Record":
        """Return the image as one group's evaluation takes it: the boxes of others are regions to ignore.

        A detection there is neither right nor wrong, as in COCO's crowds: a man who is found is no mistake about women.
        """
        return self if self.owners is None else replace(self, crowd=self.crowd | ~self.boxes_of(group))

    def with_boxes(self, kept: npt.NDArray[np.bool_]) -> "Record":
        """Return the image with some of its boxes, (n,) bool."""
        arrays = {name: getattr(self, name)[kept] for name in ("boxes", "labels", "areas", "crowd")}
        conditions = {name: values[kept] for name, values in self.conditions.items()}
        return replace(self, owners=self.owners and tuple(compress(self.owners, kept)), conditions=conditions, **arrays)


@dataclass(frozen=True)
class Split:
    """The images of one split, of all groups.

    Attributes:
        name: such as "train", "val" or "test".
        records: the images, group after group, in the order of their files.
        categories: category id -> name.
        anchor: the disadvantaged group.
        reference: the group it is measured against.
    """

    name: str
    records: tuple[Record, ...]
    categories: dict[int, str]
    anchor: str
    reference: str

    def positions(self, group: str) -> list[int]:
        """Return where the images lie that count for a group; an image with people of two groups counts for both."""
        return [position for position, record in enumerate(self.records) if group in record.groups]

    def group(self, group: str) -> tuple[Record, ...]:
        """Return the images that count for a group, in order, each ignoring others (`Record.ignoring_others`)."""
        return tuple(self.records[position].ignoring_others(group) for position in self.positions(group))

    def counts(self) -> dict[str, int]:
        """Return the number of images of each group."""
        return dict(Counter(group for record in self.records for group in record.groups))

    def objects(self, group: str) -> dict[str, int]:
        """Return the number of objects, without crowds, of each category that a group has, by name."""
        counts = Counter(label for each in self.group(group) for label in each.labels[~each.crowd].tolist())
        return {name: counts[key] for key, name in self.categories.items() if counts[key]}

    def subset(self, positions: Sequence[int]) -> "Split":
        """Return the split with these of its images, in this order."""
        return replace(self, records=tuple(self.records[position] for position in positions))

    def with_categories(self, categories: Iterable[int]) -> "Split":
        """Return the split with these of its categories and their boxes; every image stays."""
        kept = {key: name for key, name in self.categories.items() if key in set(categories)}
        if kept == self.categories:
            return self
        records = tuple(record.with_boxes(np.isin(record.labels, list(kept))) for record in self.records)
        return replace(self, categories=kept, records=records)

    def fingerprint(self) -> str:
        """Hash the annotations with the images' names and sizes, wherever they lie, to 64 hex digits."""
        digest = hashlib.sha256(repr((self.name, sorted(self.categories.items()))).encode())
        for record in self.records:
            fields = (record.image_id, plain(record.path.name), record.width, record.height, record.group, record.pair)
            digest.update(repr(fields if record.owners is None else (*fields, record.owners)).encode())
            for array in (record.boxes, record.labels, record.areas, record.crowd):
                digest.update(array.tobytes())
        return digest.hexdigest()
