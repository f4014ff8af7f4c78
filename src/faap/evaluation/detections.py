"""Running a frozen detector over a split, with or without a generator in front."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from faap import distributed
from faap.data import Batch, FaapImages, Split, denormalise, load, loading
from faap.detectors import FrozenDetector
from faap.detectors.base import RawDetections
from faap.errors import FaapError
from faap.evaluation.arrival import AS_MADE, Arrival
from faap.evaluation.quality import image_quality
from faap.perturbation import Generator, quantise
from faap.weights import a_weight


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
    arrival: Arrival = AS_MADE,
    images: FaapImages | None = None,
    num_workers: int = 0,
    console: Console | None = None,
) -> list[Detections]:
    """Run a detector over a split as a deployment would: perturbed pixels are rounded to 8 bits.

    Several processes share the batches, and each returns the whole.

    Args:
        detector: the frozen detector.
        split: the images; those of one batch are padded to a common size.
        generator: put in front of the detector, in evaluation mode; None for the baseline.
        batch_size: images at a time.
        with_distance: measure how far the generator changes the images, which takes a while.
        arrival: what is done to the images before the detector sees them.
        images: the split's for this detector, if there are any that have been read already.
        num_workers: processes that load images.
        console: where to show a bar.

    Returns:
        One entry a record, in the split's order; detections of classes the data set lacks are left out.

    Raises:
        FaapError: if batch_size is below 1, an image cannot be read, or detector and data set share no category.
    """
    if batch_size < 1:
        raise FaapError(f"batch_size is {batch_size}; it must be 1 or more.")
    device = a_weight(detector).device
    label_map = detector.label_map(split.categories)
    category_of = {label: category for category, label in label_map.items()}
    images = FaapImages(split, detector.preprocessing, label_map) if images is None else images
    # several processes take turns; a batch is the same whoever has it, so the numbers are, too
    starts = range(distributed.rank() * batch_size, len(images), distributed.world() * batch_size)
    batches = [range(start, min(start + batch_size, len(images))) for start in starts]
    loaded = load(images, batches, batch_size=batch_size, num_workers=num_workers, device=device)
    result, said = list[Detections](), "detecting" if generator is None else "perturbing and detecting"
    shown = console is not None and console.is_terminal
    with torch.random.fork_rng([]), loading(), Progress(console=console, transient=True, disable=not shown) as progress:
        for batch in progress.track((each.to(device) for each in loaded), len(batches), description=said):
            pixels, distances = batch.pixel_values, [dict[str, float]() for _ in batch.sizes]
            if generator is not None:
                perturbed = perturb_as_deployed(generator, pixels, batch.pixel_mask)
                rounded = quantise(perturbed)
                if batch.pixel_mask is not None:  # padding is no part of the deployed image, nor a multiple of 1/255
                    rounded = torch.where(batch.pixel_mask[:, None], rounded, perturbed)
                if with_distance:
                    distances = _distances(batch, perturbed, rounded)
                pixels = rounded
            pixels = arrival.apply(pixels, batch.valid)
            found = detector.detections(detector(*detector.adapt(pixels, batch.pixel_mask)), batch.sizes)
            shifts = (batch.sizes / batch.valid * (arrival.shift or 0)).flip(1).numpy()  # (B, 2) in pixels of the file
            rows = zip(batch.image_ids.tolist(), _read(found), shifts, distances, strict=True)
            for image_id, numbers, shift, distance in rows:
                numbers[:, 2:4] -= shift
                labels = numbers[:, 1].astype(np.int64)
                known = np.isin(labels, list(category_of))
                categories = np.array([category_of[label] for label in labels[known].tolist()], dtype=np.int64)
                result.append(Detections(image_id, numbers[known, 0], categories, numbers[known, 2:], distance))
    by_id = {each.image_id: each for each in distributed.gather_objects(result)}
    return [by_id[record.image_id] for record in split.records]


def _read(found: Sequence[RawDetections]) -> list[npt.NDArray[np.float64]]:
    """Bring a batch's detections to the CPU in one transfer: (n, 6) score, label and box for each image."""
    rows = [torch.cat([image.scores[:, None], image.labels[:, None], image.boxes], 1).double() for image in found]
    return np.split(torch.cat(rows).cpu().numpy(), np.cumsum([len(each) for each in rows])[:-1])


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
