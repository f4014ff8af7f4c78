"""Detections of a split."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector found in one image of a split.

    Attributes:
        image_id: the record's.
        scores: (n,) in [0, 1].
        labels: (n,) data set category ids.
        boxes: (n, 4) xywh in pixels of the original image.
    """

    image_id: int
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
