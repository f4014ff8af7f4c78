"""Annotated images and the splits they form."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One annotated image.

    Attributes:
        image_id: unique within its split.
        path: the image file.
        width: in pixels, as the image is meant to be seen.
        height: in pixels.
        group: the protected attribute's value.
        boxes: (n, 4) float64, xywh in pixels, inside the image.
        labels: (n,) int64, category ids of the data set.
        areas: (n,) float64, in square pixels.
        crowd: (n,) bool, True for a region that holds many objects.
        pair: the same for the counterfactual twins of one scene; None without twins.
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
    pair: str | None


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

    def of(self, group: str) -> tuple[Record, ...]:
        """Return the records of one group, in order."""
        return tuple(record for record in self.records if record.group == group)

    def counts(self) -> dict[str, int]:
        """Return the number of images of each group."""
        return {group: len(self.of(group)) for group in dict.fromkeys(record.group for record in self.records)}

    def fingerprint(self) -> str:
        """Hash the annotations with the images' names and sizes; where the data lie does not matter.

        Returns:
            64 hex digits.
        """
        digest = hashlib.sha256(repr((self.name, sorted(self.categories.items()))).encode())
        for record in self.records:
            fields = (record.image_id, record.path.name, record.width, record.height, record.group, record.pair)
            digest.update(repr(fields).encode())
            for array in (record.boxes, record.labels, record.areas, record.crowd):
                digest.update(array.tobytes())
        return digest.hexdigest()
