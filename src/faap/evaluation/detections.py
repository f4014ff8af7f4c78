"""Running a frozen detector over a split, with or without a generator in front."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faap import distributed
from faap.data import Batch, FaapImages, Split, collate, denormalise
from faap.detectors import FrozenDetector
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
        distance: of the perturbed image from the original, if it was measured: linf_normalised, the largest change
            before rounding, in normalised units, and what `image_quality` says of the rounded pixels.
    """

    image_id: int
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    distance: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def detect(
    detector: FrozenDetector,
    split: Split,
    generator: Generator | None = None,
    *,
    batch_size: int = 16,
    with_distance: bool = False,
) -> list[Detections]:
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
    result = []
    # several processes take turns; a batch is the same whoever has it, so the numbers are, too
    for start in range(distributed.rank() * batch_size, len(images), distributed.world() * batch_size):
        batch = collate([images[i] for i in range(start, min(start + batch_size, len(images)))]).to(device)
        pixels, distances = batch.pixel_values, [dict[str, float]() for _ in batch.sizes]
        if generator is not None:
            perturbed = perturb_as_deployed(generator, batch.pixel_values, batch.pixel_mask)
            # padding is no part of the deployed image, and its zeros are no multiples of 1/255
            pixels = torch.where(batch.pixel_mask[:, None], quantise(perturbed), perturbed)
            if with_distance:
                distances = _distances(batch, perturbed, pixels)
        found = detector.detections(detector(*detector.adapt(pixels, batch.pixel_mask)), batch.sizes)
        for image_id, image, distance in zip(batch.image_ids.tolist(), found, distances, strict=True):
            labels = image.labels.cpu().numpy()
            known = np.isin(labels, list(category_of))
            categories = np.array([category_of[label] for label in labels[known].tolist()], dtype=np.int64)
            scores, boxes = (values.double().cpu().numpy()[known] for values in (image.scores, image.boxes))
            result.append(Detections(image_id, scores, categories, boxes, distance))
    by_id = {each.image_id: each for each in distributed.gather_objects(result)}
    return [by_id[record.image_id] for record in split.records]


def perturb_as_deployed(generator: Generator, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return what a generator makes of images in evaluation mode, before rounding; it gets its own mode back."""
    mode = generator.training
    try:
        return generator.eval().perturb(pixels, mask)
    finally:
        generator.train(mode)


def _distances(batch: Batch, perturbed: Tensor, rounded: Tensor) -> list[dict[str, float]]:
    """Measure each image of a batch, without its padding."""
    largest = (perturbed - batch.pixel_values).abs().flatten(1).amax(1).tolist()
    before, after = (denormalise(values).mul(255).round().div(255) for values in (batch.pixel_values, rounded))
    return [
        {"linf_normalised": largest[i]} | image_quality(before[i, :, :height, :width], after[i, :, :height, :width])
        for i, (height, width) in enumerate(batch.valid.tolist())
    ]


def mean_distance(found: Sequence[Detections]) -> dict[str, float]:
    """Return how far images were moved: the largest linf_normalised and linf_pixels of all, the means of the others.

    Numbers that are not finite are left out, as the psnr_db of images that did not change; nan where none is left.
    """
    result = {}
    for name in ("linf_normalised", "linf_pixels", "psnr_db", "ssim"):
        values = [each.distance[name] for each in found if math.isfinite(each.distance.get(name, math.nan))]
        mean = sum(values) / len(values) if values else math.nan
        result[name] = max(values) if values and name.startswith("linf") else mean
    return result
