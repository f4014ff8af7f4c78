"""Weights that make the contrastive terms look at scores. They are numbers: no gradient reaches the scores."""

import math

import torch
from torch import Tensor

from faap.objectives.numerics import widen

# how fast a difference of scores becomes a weight
SHARPNESS = 5.0


@torch.no_grad()
def pair_log_weights(anchor: Tensor, reference: Tensor, alpha: float = 1.0) -> Tensor:
    """Weigh a pair more, the surer the detector is of the reference image and the less of the anchor image.

    Args:
        anchor: (n,) scores.
        reference: (m,) scores.
        alpha: α, strength of the weighting.

    Returns:
        (n, m) logarithms, α·log(0.5 + sigmoid(5·(reference − anchor))); 0 for equal scores.

    Source: docs/recipes.md, "Terms", InfoNCE, both directions.
    """
    difference = widen(reference)[None] - widen(anchor)[:, None]
    return alpha * (0.5 + (SHARPNESS * difference).sigmoid()).log()


@torch.no_grad()
def reference_log_weights(reference: Tensor) -> Tensor:
    """Weigh the reference images by a softmax of their scores.

    Args:
        reference: (m,) scores.

    Returns:
        (m,) logarithms of m·softmax(5·reference), whose weights have a mean of 1; 0 for equal scores.

    Source: docs/recipes.md, "Terms", fix2's weighting.
    """
    return math.log(max(len(reference), 1)) + (SHARPNESS * widen(reference)).log_softmax(0)


@torch.no_grad()
def query_weights(anchor: Tensor, reference: Tensor, alpha: float = 1.0) -> Tensor:
    """Weigh an anchor image more, the further its score lies below the reference group's mean.

    Args:
        anchor: (n,) scores.
        reference: (m,) scores.
        alpha: α, strength of the weighting.

    Returns:
        (n,) weights, 1 + α·sigmoid(5·(mean of reference − anchor)); all 1 without a reference image.

    Source: docs/recipes.md, "Terms", Momentum contrast.
    """
    if len(reference) < 1:
        return torch.ones_like(widen(anchor))
    return 1 + alpha * (SHARPNESS * (widen(reference).mean() - widen(anchor))).sigmoid()
