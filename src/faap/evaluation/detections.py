"""Running a frozen detector over a split, with or without a generator in front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faap import distributed
from faap.data import Batch, FaapImages, Split, collate, denormalise
from faap.detectors import FrozenDetector, RawDetections
from faap.evaluation.quality import image_quality
from faap.perturbation import Generator, quantise


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


@dataclass(frozen=True)
class Found(Sequence[Detections]):
    """What a detector found in a split: the sequence of each image's detections, in the split's order.

    Attributes:
        detections: one entry an image.
        distance: of the perturbed images from the original ones: linf_normalised (largest change before rounding,
            normalised units), linf_pixels (largest change of a pixel, of 255), and the means over images of psnr_db
            (over changed images) and ssim; nan where nothing was measured.
    """

    detections: tuple[Detections, ...]
    distance: dict[str, float]

    def __len__(self) -> int:
        return len(self.detections)

    def __getitem__(self, index: Any) -> Any:
        return self.detections[index]


@torch.no_grad()
def detect(
    detector: FrozenDetector,
    split: Split,
    generator: Generator | None = None,
    *,
    batch_size: int = 16,
    with_distance: bool = False,
) -> Found:
    """Run a detector over a split as a deployment would: perturbed pixels are rounded to 8 bits.

    Several processes share the batches, and each returns the whole.

    Args:
        detector: the frozen detector.
        split: the images; those of one batch are padded to a common size.
        generator: put in front of the detector, in evaluation mode; None for the baseline.
        batch_size: images at a time.
        with_distance: measure how far the generator changes the images, which takes a while.

    Returns:
        One entry a record, in the split's order; detections of classes the data set lacks are left out.

    Raises:
        FaapError: if an image cannot be read, or detector and data set share no category.
    """
    device = next(detector.parameters()).device
    label_map = detector.label_map(split.categories)
    category_of = {label: category for category, label in label_map.items()}
    images = FaapImages(split, detector.preprocessing, label_map)
    parts: list[tuple[int, list[Detections], list[dict[str, float]]]] = []
    # several processes take turns; a batch is the same whoever has it, so the numbers are, too
    for number in range(distributed.rank(), math.ceil(len(images) / batch_size), distributed.world()):
        start = number * batch_size
        batch = collate([images[i] for i in range(start, min(start + batch_size, len(images)))]).to(device)
        pixels, distances = batch.pixel_values, []
        if generator is not None:
            perturbed = _perturb(generator, batch)
            # padding is no part of the deployed image, and its zeros are no multiples of 1/255
            pixels = torch.where(batch.pixel_mask[:, None], quantise(perturbed), perturbed)
            distances = _distances(batch, perturbed, pixels) if with_distance else []
        output = detector.detections(detector(*detector.adapt(pixels, batch.pixel_mask)), batch.sizes)
        found = [
            _in_categories(image_id, image, category_of)
            for image_id, image in zip(batch.image_ids.tolist(), output, strict=True)
        ]
        parts.append((number, found, distances))
    parts = sorted(distributed.gather_objects(parts), key=lambda part: part[0])
    columns = {
        name: [each[name] for _, _, distances in parts for each in distances]
        for name in ("linf_normalised", "linf_pixels", "psnr_db", "ssim")
    }
    return Found(
        tuple(detected for _, found, _ in parts for detected in found),
        {
            name: max(values, default=math.nan) if name.startswith("linf") else _mean(values)
            for name, values in columns.items()
        },
    )


def _perturb(generator: Generator, batch: Batch) -> Tensor:
    mode = generator.training
    generator.eval()
    try:
        return generator.perturb(batch.pixel_values, batch.pixel_mask)
    finally:
        generator.train(mode)


def _distances(batch: Batch, perturbed: Tensor, rounded: Tensor) -> list[dict[str, float]]:
    """Measure each image of a batch, without its padding."""
    largest = (perturbed - batch.pixel_values).abs().flatten(1).amax(1).tolist()
    before, after = (denormalise(values).mul(255).round().div(255) for values in (batch.pixel_values, rounded))
    result = []
    for i, (height, width) in enumerate(batch.valid.tolist()):
        quality = image_quality(before[i, :, :height, :width], after[i, :, :height, :width])
        names = {"linf_pixels": "linf", "psnr_db": "psnr", "ssim": "ssim"}
        result.append({"linf_normalised": largest[i]} | {name: quality[key] for name, key in names.items()})
    return result


def _in_categories(image_id: int, found: RawDetections, category_of: Mapping[int, int]) -> Detections:
    """Bring one image's detections to the host, in the data set's categories."""
    labels = found.labels.cpu().numpy()
    known = np.isin(labels, list(category_of))
    return Detections(
        image_id=image_id,
        scores=found.scores.double().cpu().numpy()[known],
        labels=np.array([category_of[label] for label in labels[known].tolist()], dtype=np.int64),
        boxes=found.boxes.double().cpu().numpy()[known],
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
