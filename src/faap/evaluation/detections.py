"""Running a frozen detector over a split, with or without a generator in front."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from faap import distributed
from faap.data import FaapImages, Split, collate, denormalise
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
    """

    image_id: int
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]


@dataclass
class _Part:
    """What came of one batch."""

    number: int
    found: list[Detections] = field(default_factory=list)
    qualities: list[dict[str, float]] = field(default_factory=list)
    normalised: list[float] = field(default_factory=list)


def detect(
    detector: FrozenDetector,
    split: Split,
    generator: Generator | None = None,
    *,
    batch_size: int = 16,
) -> list[Detections]:
    """Run a detector over a split as a deployment would: perturbed pixels are rounded to 8 bits.

    Several processes share the batches, and each returns the whole.

    Args:
        detector: the frozen detector.
        split: the images; those of one batch are padded to a common size.
        generator: put in front of the detector, in evaluation mode; None for the baseline.
        batch_size: images at a time.

    Returns:
        One entry a record, in the split's order; detections of classes the data set lacks are left out.

    Raises:
        FaapError: if an image cannot be read, or detector and data set share no category.
    """
    return _detect(detector, split, generator, batch_size=batch_size, compare=False)[0]


def detect_and_compare(
    detector: FrozenDetector,
    split: Split,
    generator: Generator,
    *,
    batch_size: int,
) -> tuple[list[Detections], dict[str, float]]:
    """`detect`, and how far the perturbed images are from the original ones.

    Returns:
        The detections; linf_normalised (largest change before rounding, normalised units), linf_pixels (largest change
        of a pixel, of 255), and the means over images of psnr_db (over changed images) and ssim; nan where there is
        nothing to measure.
    """
    return _detect(detector, split, generator, batch_size=batch_size, compare=True)


def _detect(
    detector: FrozenDetector, split: Split, generator: Generator | None, *, batch_size: int, compare: bool
) -> tuple[list[Detections], dict[str, float]]:
    if generator is None:
        return _run(detector, split, None, batch_size, False)
    mode = generator.training
    generator.eval()
    try:
        return _run(detector, split, generator, batch_size, compare)
    finally:
        generator.train(mode)


@torch.no_grad()
def _run(
    detector: FrozenDetector,
    split: Split,
    generator: Generator | None,
    batch_size: int,
    compare: bool,
) -> tuple[list[Detections], dict[str, float]]:
    device = next(detector.parameters()).device
    label_map = detector.label_map(split.categories)
    category_of = {label: category for category, label in label_map.items()}
    images = FaapImages(split, detector.preprocessing, label_map)
    parts: list[_Part] = []
    # several processes take turns; a batch is the same whoever has it, so the numbers are, too
    for number in range(distributed.rank(), math.ceil(len(images) / batch_size), distributed.world()):
        start = number * batch_size
        batch = collate([images[i] for i in range(start, min(start + batch_size, len(images)))]).to(device)
        part = _Part(number)
        pixels = batch.pixel_values
        if generator is not None:
            perturbed = generator.perturb(pixels, batch.pixel_mask)
            # padding is no part of the deployed image, and its zeros are no multiples of 1/255
            pixels = torch.where(batch.pixel_mask[:, None], quantise(perturbed), perturbed)
        if generator is not None and compare:
            part.normalised.append(float((perturbed - batch.pixel_values).abs().max()))
            before, after = (denormalise(values).mul(255).round().div(255) for values in (batch.pixel_values, pixels))
            part.qualities += [
                image_quality(old[:, :height, :width], new[:, :height, :width])
                for old, new, (height, width) in zip(before, after, batch.valid.tolist(), strict=True)
            ]
        output = detector.detections(detector(*detector.adapt(pixels, batch.pixel_mask)), batch.sizes)
        for image_id, image in zip(batch.image_ids.tolist(), output, strict=True):
            labels = image.labels.cpu().numpy()
            known = np.isin(labels, list(category_of))
            part.found.append(
                Detections(
                    image_id=image_id,
                    scores=image.scores.double().cpu().numpy()[known],
                    labels=np.array([category_of[label] for label in labels[known].tolist()], dtype=np.int64),
                    boxes=image.boxes.double().cpu().numpy()[known],
                )
            )
        parts.append(part)
    parts = sorted(distributed.gather_objects(parts), key=lambda part: part.number)
    qualities = [quality for part in parts for quality in part.qualities]
    return [detected for part in parts for detected in part.found], {
        "linf_normalised": max((value for part in parts for value in part.normalised), default=math.nan),
        "linf_pixels": max((quality["linf"] for quality in qualities), default=math.nan),
        "psnr_db": _mean([quality["psnr"] for quality in qualities]),
        "ssim": _mean([quality["ssim"] for quality in qualities]),
    }


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
