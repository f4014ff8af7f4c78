"""JPEG between the generator and the detector, differentiable: what is to be deployed in files has to survive it."""

from collections.abc import Sequence

import numpy as np
import torch
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor

from faap.data.images import denormalise, normalise

# Keeps the draws apart from those of the jitter.
_STREAM = 2


def draw_qualities(qualities: Sequence[int], seeds: Sequence[tuple[int, int, int]]) -> list[int]:
    """Draw for each image one of these qualities (1 to 100) or none, which is 0, each as likely.

    Args:
        qualities: of JPEG.
        seeds: B times (seed, epoch, image id), each ≥ 0.
    """
    if not qualities:
        return [0] * len(seeds)
    return [(0, *qualities)[np.random.default_rng([*seed, _STREAM]).integers(1 + len(qualities))] for seed in seeds]


def code(pixel_values: Tensor, qualities: Sequence[int], pixel_mask: Tensor | None = None) -> Tensor:
    """Send images through JPEG with 4:2:0 chroma, as nearly all files have it, with a gradient.

    Args:
        pixel_values: (B, 3, H, W) ImageNet-normalised, within what a pixel in [0, 1] can be.
        qualities: B of 1 to 100; 0 leaves an image alone.
        pixel_mask: (B, H, W) bool, True where the image is; None: everywhere.

    Returns:
        The same shape; padding is 0. If no image goes through, the input itself.

    Source: Reich et al., Differentiable JPEG: The Devil is in the Details, WACV 2024.
    """
    here = [index for index, quality in enumerate(qualities) if quality]
    if not here:
        return pixel_values
    images = list(pixel_values)
    pixels = denormalise(torch.stack([images[index] for index in here])).clamp(0, 1)
    # kornia looks at the qualities, for which nobody has to wait on the CPU, and brings them to the device itself
    chosen = torch.tensor([qualities[index] for index in here], dtype=torch.float32)
    for index, image in zip(here, normalise(jpeg_codec_differentiable(pixels, chosen)), strict=True):
        images[index] = image
    coded = torch.stack(images)
    return coded if pixel_mask is None else torch.where(pixel_mask[:, None], coded, 0)
