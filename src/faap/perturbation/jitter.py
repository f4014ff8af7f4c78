"""Colour jitter of the perturbed image, in pixel space and differentiable."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
)
from torch import Tensor
from torch.nn import functional as F

from faap.data.images import denormalise, normalise
from faap.errors import FaapError, nearest


@dataclass(frozen=True)
class Strength:
    """How far the colours may go.

    Attributes:
        brightness, contrast, saturation: the factor is drawn from 1 ± this.
        hue: the turn is drawn from ± this, as a share of the colour circle.
        grayscale: probability that the image loses its colours at the end.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: float = 0.0


STRENGTHS = {
    "none": None,
    "weak": Strength(0.2, 0.2, 0.2, 0.05),
    "medium": Strength(0.3, 0.3, 0.3, 0.1),
    "strong": Strength(0.4, 0.4, 0.4, 0.1, grayscale=0.2),
}
# Keeps the draws apart from those of other random choices that are made from the same three numbers.
_STREAM = 1
# Added to the hue, in sixths of the circle, they let one formula serve red, green and blue.
_CHANNEL_OFFSETS = (5.0, 3.0, 1.0)


def jitter(
    pixel_values: Tensor, strength: str, seeds: Sequence[tuple[int, int, int]], pixel_mask: Tensor | None = None
) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in an order of its own.

    An image's draw and result depend on its own numbers and pixels alone, whatever else is in the batch.

    Args:
        pixel_values: (B, 3, H, W) ImageNet-normalised, within what a pixel in [0, 1] can be.
        strength: "none", "weak", "medium" or "strong".
        seeds: B times (seed, epoch, image id), each ≥ 0.
        pixel_mask: (B, H, W) bool, True where the image is, at the top left; None: everywhere.

    Returns:
        (B, 3, H, W) normalised; padding is 0. With strength "none", the input itself.

    Raises:
        FaapError: if the strength is unknown.

    Source: docs/recipes.md, "The table", augmentation strengths; torchvision's ColorJitter.
    """
    if strength not in STRENGTHS:
        known = ", ".join(STRENGTHS)
        raise FaapError(f"aug_strength is {strength!r}; it must be one of {known}.{nearest(strength, STRENGTHS)}")
    ranges = STRENGTHS[strength]
    if ranges is None:
        return pixel_values
    height, width = pixel_values.shape[-2:]
    inside = torch.ones_like(pixel_values[:, 0]) if pixel_mask is None else pixel_mask
    sizes = torch.stack([inside.any(2).sum(1), inside.any(1).sum(1)], 1).tolist()
    out = []
    for image, seed, (rows, columns) in zip(pixel_values, seeds, sizes, strict=True):
        # contrast looks at the image's mean, to which padding must not belong
        pixels = denormalise(image[:, :rows, :columns]).clamp(0, 1)
        jittered = normalise(_jitter_one(pixels, ranges, np.random.default_rng([*seed, _STREAM])))
        out.append(F.pad(jittered, (0, width - columns, 0, height - rows)))
    return torch.stack(out)


def _jitter_one(pixels: Tensor, ranges: Strength, rng: np.random.Generator) -> Tensor:
    reaches = (ranges.brightness, ranges.contrast, ranges.saturation)
    factors = [float(rng.uniform(1 - reach, 1 + reach)) for reach in reaches]
    factors.append(float(rng.uniform(-ranges.hue, ranges.hue)))
    order = rng.permutation(4)
    grey = rng.random() < ranges.grayscale
    for number in order:
        pixels = _OPERATIONS[number](pixels, factors[number])
    return rgb_to_grayscale(pixels).expand_as(pixels) if grey else pixels


def _turn_hue(pixels: Tensor, turn: float) -> Tensor:
    """Turn the hue of pixels (3, H, W) by a share of the circle, as kornia does by HSV but in a third of its time."""
    brightest = pixels.amax(0)
    chroma = brightest - pixels.amin(0)
    # grey has no hue, and the gradient of almost grey would overflow: both are off by no more than this bound
    divisor = chroma.masked_fill(chroma < 1e-6, 1)
    red, green, blue = pixels.unbind()
    hue = torch.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)  # in sixths of the circle
    hue = torch.where((red >= green) & (red >= blue), (green - blue) / divisor, hue)
    sixths = (hue + 6 * turn + hue.new_tensor(_CHANNEL_OFFSETS)[:, None, None]).remainder(6)
    return brightest - chroma * (2 - (sixths - 2).abs()).clamp(0, 1)


# of brightness, contrast, saturation and hue
_OPERATIONS: list[Callable[[Tensor, float], Tensor]] = [
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
    _turn_hue,
]
