"""Contrastive terms between the groups' projected features, and the similarities that are watched beside them."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from faap.objectives.numerics import connected_zero, similarities


def infonce(
    anchor: Tensor,
    reference: Tensor,
    temperature: float,
    *,
    detach_reference: bool = True,
    log_weights: Tensor | None = None,
    weights_in: Literal["both", "numerator"] = "both",
) -> Tensor:
    """Pull each anchor image toward the reference group and away from the other anchor images.

    All reference images are positives inside one logsumexp, the other anchor images are negatives.

    Args:
        anchor: (n, d) unit vectors.
        reference: (m, d) unit vectors.
        temperature: τ > 0.
        detach_reference: let no gradient reach the reference group.
        log_weights: (n, m), or (m,) for all anchor images alike, added to the positive similarities.
        weights_in: "both", numerator and denominator, or the "numerator" alone.

    Returns:
        A scalar, mean over anchor images; 0 if n < 2 or m < 1. It is ≥ 0 unless weights are in the numerator alone.

    Source: van den Oord et al., 2018 (arXiv:1807.03748); spec/recipes.md, "Terms", InfoNCE.
    """
    if detach_reference:
        reference = reference.detach()
    if len(anchor) < 2 or len(reference) < 1:
        return connected_zero(anchor, reference)
    positive = similarities(anchor, reference) / temperature  # (n, m)
    weighted = positive if log_weights is None else positive + log_weights
    if weights_in == "both":
        positive = weighted
    itself = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    negative = (similarities(anchor, anchor) / temperature).masked_fill(itself, -math.inf)  # (n, n)
    # lse(negatives ∪ positives) − lse(positives) without the difference of two large numbers
    loss = F.softplus(negative.logsumexp(1) - positive.logsumexp(1))
    if weighted is not positive:
        loss = loss + positive.logsumexp(1) - weighted.logsumexp(1)
    return loss.mean()


def cross_group_similarity(anchor: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """Pull the two groups' features together, symmetrically and without negatives.

    Args:
        anchor: (n, d) unit vectors.
        reference: (m, d) unit vectors.
        temperature: τ > 0.

    Returns:
        A scalar in [−1/τ, 1/τ], −1/τ when all vectors are the same; 0 if a group is absent.

    Source: spec/recipes.md, "Terms", Cross-group similarity.
    """
    if len(anchor) < 1 or len(reference) < 1:
        return connected_zero(anchor, reference)
    pairs = similarities(anchor, reference) / temperature  # (n, m)
    from_anchor = math.log(len(reference)) - pairs.logsumexp(1).mean()
    from_reference = math.log(len(anchor)) - pairs.logsumexp(0).mean()
    return (from_anchor + from_reference) / 2


@torch.no_grad()
def similarity_statistics(anchor: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Measure how alike the projected features are, between the groups and within the anchor group.

    Args:
        anchor: (n, d) unit vectors.
        reference: (m, d) unit vectors.

    Returns:
        sim_f2m, the mean cosine over all pairs of an anchor and a reference image, and sim_f2f, over all pairs of two
        different anchor images: detached scalars in [−1, 1], nan where there is no such pair.

    Source: spec/recipes.md, "What is monitored".
    """
    within = similarities(anchor, anchor)
    pairs = len(anchor) * (len(anchor) - 1)
    return similarities(anchor, reference).mean(), (within.sum() - within.trace()) / pairs
