"""What is in the images of a batch, as one tensor for all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Targets(Sequence[Target]):
    """The targets of B images: a sequence of a dict each, "labels" (n,) int64 and "boxes" (n, 4) cxcywh in [0, 1].

    Attributes:
        labels: (B, T), filled up to the most that an image has.
        boxes: (B, T, 4), filled up with points in the middle.
        real: (B, T) bool, False where it is filled up.
        counts: how many are real in each image.
    """

    labels: Tensor
    boxes: Tensor
    real: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, targets: Iterable[Target]) -> "Targets":
        """Return targets that may be in single dicts as one."""
        if isinstance(targets, cls):
            return targets
        listed = list(targets)
        labels = [target["labels"] for target in listed]
        boxes = pad_sequence([target["boxes"] for target in listed], batch_first=True, padding_value=0.5)
        real = pad_sequence([torch.ones_like(each, dtype=torch.bool) for each in labels], batch_first=True)
        return cls(pad_sequence(labels, batch_first=True), boxes, real, tuple(map(len, labels)))

    def __len__(self) -> int:
        """Return B."""
        return len(self.counts)

    def __getitem__(self, index: Any) -> Any:
        """Return what is in one image, or for a slice, a list of what is in several."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        count = self.counts[index]
        return {"labels": self.labels[index, :count], "boxes": self.boxes[index, :count]}
