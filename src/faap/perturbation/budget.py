"""What a perturbation may be: bounded by ε, inside the range of pixels, absent from padding."""

import torch
from torch import Tensor

from faap.data.images import MEAN, STD, channels, denormalise, normalise


def add_within_budget(pixel_values: Tensor, raw: Tensor, epsilon: float, pixel_mask: Tensor | None = None) -> Tensor:
    """Add a generator's raw output to images as δ = ε·tanh(raw), within the budget.

    Args:
        pixel_values: (B, 3, H, W) ImageNet-normalised.
        raw: (B, 3, H, W), any real values.
        epsilon: the bound on δ, in normalised units, ≥ 0.
        pixel_mask: (B, H, W) bool, True where the image is; None: everywhere.

    Returns:
        (B, 3, H, W), clamped per channel to what a pixel in [0, 1] can be; where the batch is padding, the input.

    Source: docs/recipes.md, "Notation", δ and x'.
    """
    mean, std = channels(MEAN, pixel_values), channels(STD, pixel_values)
    black, white = -mean / std, (1 - mean) / std
    delta = raw.to(pixel_values.dtype).tanh()
    if torch.is_grad_enabled() and (delta.requires_grad or pixel_values.requires_grad):
        clamped = pixel_values.add(delta, alpha=epsilon).clamp(black, white)
    else:  # a deployment pays for every new tensor
        clamped = torch.add(pixel_values, delta, alpha=epsilon, out=delta).clamp_(black, white)
    return clamped if pixel_mask is None else torch.where(pixel_mask[:, None], clamped, pixel_values)


def quantise(pixel_values: Tensor) -> Tensor:
    """Round images to 8 bits, as a deployment that passes ordinary image files does.

    Args:
        pixel_values: (..., 3, H, W) ImageNet-normalised.

    Returns:
        The same shape, normalised again; every value is one of 256 levels of its channel. No gradient passes.
    """
    levels = denormalise(pixel_values).mul(255).round().clamp(0, 255)
    return normalise(levels / 255)
