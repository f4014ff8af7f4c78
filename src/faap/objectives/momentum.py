"""Momentum contrast: one positive centroid against a queue of past features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from faap.objectives.numerics import connected_zero, similarities


def momentum_infonce(
    query: Tensor, centroid: Tensor, queue: Tensor, temperature: float, *, sample_weights: Tensor | None = None
) -> Tensor:
    """Pull each query toward the reference group's centroid and away from past anchor features.

    Args:
        query: (n, d) unit vectors of the anchor group.
        centroid: (d,) unit vector of the reference group; no gradient reaches it.
        queue: (K, d) unit vectors of past anchor images, K ≥ 0; no gradient reaches them.
        temperature: τ > 0.
        sample_weights: (n,) factor of each query's cross-entropy; 1 if left out.

    Returns:
        A scalar ≥ 0, the mean over queries of the weighted cross-entropy of picking the centroid; 0 without queries.

    Source: He et al., CVPR 2020 (arXiv:1911.05722); spec/recipes.md, "Terms", Momentum contrast.
    """
    if len(query) < 1:
        return connected_zero(query)
    keys = torch.cat([centroid[None], queue]).detach()  # (1 + K, d)
    logits = similarities(query, keys) / temperature  # (n, 1 + K)
    picked = torch.zeros(len(query), dtype=torch.long, device=query.device)
    losses = F.cross_entropy(logits, picked, reduction="none")  # (n,)
    return (losses if sample_weights is None else sample_weights * losses).mean()
