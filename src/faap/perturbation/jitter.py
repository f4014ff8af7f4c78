"""Colour jitter of the perturbed image, in pixel space and differentiable."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import adjust_brightness_accumulative, adjust_saturation_with_gray_subtraction
from torch import Tensor

from faap.data.images import denormalise, normalise

# of brightness, contrast and saturation: the factor is drawn from 1 ± this; of hue: the turn, from ± this, as a share
# of the colour circle; and the probability that the image loses its colours at the end
Strength = tuple[float, float, float, float, float]
STRENGTHS: dict[str, Strength | None] = {
    "none": None,
    "weak": (0.2, 0.2, 0.2, 0.05, 0.0),
    "medium": (0.3, 0.3, 0.3, 0.1, 0.0),
    "strong": (0.4, 0.4, 0.4, 0.1, 0.2),
}
# Keeps the draws apart from those of other random choices that are made from the same three numbers.
_STREAM = 1
# Added to the hue, in sixths of the circle, they let one formula serve red, green and blue.
_CHANNEL_OFFSETS = (5.0, 3.0, 1.0)


@dataclass(frozen=True)
class Drawn:
    """What is done to each of B images.

    Attributes:
        factors: (B, 4) of brightness, contrast and saturation, and the turn of the hue as a share of the circle.
        orders: B orders of these four.
        grey: which images lose their colours at the end.
    """

    factors: Tensor
    orders: list[list[int]]
    grey: list[int]


def draw(strength: str, seeds: Sequence[tuple[int, int, int]]) -> Drawn | None:
    """Draw for `apply`.

    Args:
        strength: one of `STRENGTHS`.
        seeds: B times (seed, epoch, image id), each ≥ 0; an image's draw depends on its own numbers alone.

    Source: docs/recipes.md, "The table", augmentation strengths.
    """
    ranges = STRENGTHS[strength]
    return None if ranges is None else _draw(ranges, [np.random.default_rng([*seed, _STREAM]) for seed in seeds])


def _draw(ranges: Strength, generators: Sequence[np.random.Generator]) -> Drawn:
    factors, orders, grey = list[list[float]](), list[list[int]](), list[int]()
    *reaches, hue, grayscale = ranges
    for number, rng in enumerate(generators):
        factors.append([float(rng.uniform(1 - reach, 1 + reach)) for reach in reaches])
        factors[-1].append(float(rng.uniform(-hue, hue)))
        orders.append([int(each) for each in rng.permutation(4)])
        grey += [number] if rng.random() < grayscale else []
    return Drawn(torch.tensor(factors, dtype=torch.float64), orders, grey)


def apply(pixel_values: Tensor, drawn: Drawn, pixel_mask: Tensor | None = None) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in an order of its own.

    Each operation is done at once for all whose turn it is; an image's result depends on its own pixels alone.

    Args:
        pixel_values: (B, 3, H, W) ImageNet-normalised, within what a pixel in [0, 1] can be.
        drawn: for these images, on their device.
        pixel_mask: (B, H, W) bool, True where the image is; None: everywhere.

    Returns:
        (B, 3, H, W) normalised; padding is 0.

    Source: torchvision's ColorJitter.
    """
    pixels = denormalise(pixel_values).clamp(0, 1)
    inside = torch.ones_like(pixels[:, :1]) if pixel_mask is None else pixel_mask[:, None].to(pixels.dtype)
    factors, images = drawn.factors.to(pixels.dtype), list(pixels)
    for turn, (number, operation) in itertools.product(range(4), enumerate(_OPERATIONS)):
        here = [index for index, order in enumerate(drawn.orders) if order[turn] == number]
        if here:
            factor, where = (torch.stack([each[index] for index in here]) for each in (factors[:, number], inside))
            changed = operation(torch.stack([images[index] for index in here]), factor, where)
            for index, image in zip(here, changed, strict=True):
                images[index] = image
    for index in drawn.grey:
        images[index] = rgb_to_grayscale(images[index]).expand_as(images[index])
    out = normalise(torch.stack(images))
    return out if pixel_mask is None else torch.where(pixel_mask[:, None], out, 0)


def _brightness(pixels: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    return adjust_brightness_accumulative(pixels, factor)


def _contrast(pixels: Tensor, factor: Tensor, inside: Tensor) -> Tensor:
    """Stretch around the mean, as kornia does, of the image without its padding."""
    mean = (rgb_to_grayscale(pixels) * inside).sum((2, 3), True) / inside.sum((2, 3), True)
    factor = factor[:, None, None, None]
    return (pixels * factor + mean * (1 - factor)).clamp(0, 1)


def _saturation(pixels: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    return adjust_saturation_with_gray_subtraction(pixels, factor)


def _hue(pixels: Tensor, turn: Tensor, _: Tensor) -> Tensor:
    return _turn_hue(pixels.transpose(0, 1), turn[:, None, None]).transpose(0, 1)


def _turn_hue(pixels: Tensor, turn: float | Tensor) -> Tensor:
    """Turn the hue of pixels (3, ..., H, W) by a share of the circle, as kornia does by HSV in thrice the time."""
    brightest = pixels.amax(0)
    chroma = brightest - pixels.amin(0)
    # grey has no hue, and the gradient of almost grey would overflow: both are off by no more than this bound
    divisor = chroma.masked_fill(chroma < 1e-6, 1)
    red, green, blue = pixels.unbind()
    hue = torch.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)  # in sixths of the circle
    hue = torch.where((red >= green) & (red >= blue), (green - blue) / divisor, hue)
    sixths = torch.stack([hue + 6 * turn + offset for offset in _CHANNEL_OFFSETS]).remainder(6)
    return brightest - chroma * (2 - (sixths - 2).abs()).clamp(0, 1)


_OPERATIONS = (_brightness, _contrast, _saturation, _hue)
