"""Momentum contrast: one positive centroid against a queue of past features, and the memory of both."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faap.objectives.numerics import connected_zero, similarities


def momentum_infonce(
    query: Tensor,
    centroid: Tensor,
    queue: Tensor,
    temperature: float,
    *,
    sample_weights: Tensor | None = None,
    filled: Tensor | None = None,
) -> Tensor:
    """Pull each query toward the reference group's centroid and away from past anchor features.

    Args:
        query: (n, d) unit vectors of the anchor group.
        centroid: (d,) unit vector of the reference group; no gradient reaches it.
        queue: (K, d) unit vectors of past anchor images, K ≥ 0; no gradient reaches them.
        temperature: τ > 0.
        sample_weights: (n,) factor of each query's cross-entropy; 1 if left out.
        filled: (K,) bool, which features count; all if left out.

    Returns:
        A scalar ≥ 0, the mean over queries of the weighted cross-entropy of picking the centroid; 0 without queries.

    Source: He et al., CVPR 2020 (arXiv:1911.05722); docs/recipes.md, "Terms", Momentum contrast.
    """
    if len(query) < 1:
        return connected_zero(query)
    keys = torch.cat([centroid[None], queue]).detach()  # (1 + K, d)
    logits = similarities(query, keys) / temperature  # (n, 1 + K)
    if filled is not None:
        logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(~filled, -math.inf)], 1)
    picked = torch.zeros(len(query), dtype=torch.long, device=query.device)
    losses = F.cross_entropy(logits, picked, reduction="none")  # (n,)
    return (losses if sample_weights is None else sample_weights * losses).mean()


class MomentumContrast(nn.Module):
    """`momentum_infonce` with its memory: the queue of past anchor features and the reference group's centroid.

    In training mode a batch enters the memory before its loss is taken, so a query finds itself in the queue. The
    memory is part of `state_dict`.

    Args:
        dim: d, width of the features.
        temperature: τ > 0.
        queue_size: K ≥ 1, anchor features that are remembered, first in, first out.
        centroid_momentum: share in [0, 1) of the centroid that stays at each batch.

    Source: docs/recipes.md, "Terms", Momentum contrast.
    """

    def __init__(self, dim: int, temperature: float, queue_size: int = 2048, centroid_momentum: float = 0.99) -> None:
        super().__init__()
        self.temperature, self.centroid_momentum = temperature, centroid_momentum
        self.queue = nn.Buffer(torch.zeros(queue_size, dim))
        self.pushed = nn.Buffer(torch.zeros((), dtype=torch.long))
        self.centroid = nn.Buffer(torch.zeros(dim))

    def monitored(self) -> dict[str, Tensor]:
        """Return how many features the queue holds."""
        return {"queue": self.pushed.clamp(max=len(self.queue))}

    @torch.no_grad()
    def update(self, anchor: Tensor, reference: Tensor) -> None:
        """Remember a batch: the anchor features (n, d) enter the queue, the mean of the reference ones (m, d) the
        centroid."""
        size = len(self.queue)
        places = (self.pushed + torch.arange(len(anchor), device=self.queue.device)[-size:]) % size
        self.queue[places] = anchor[-size:].to(self.queue.dtype)
        self.pushed.add_(len(anchor))
        if len(reference):
            mean = reference.mean(0).to(self.centroid.dtype)
            kept = self.centroid_momentum
            self.centroid.copy_(F.normalize(kept * self.centroid + (1 - kept) * mean, dim=0))

    def forward(self, anchor: Tensor, reference: Tensor, sample_weights: Tensor | None = None) -> Tensor:
        """Compute the loss of one batch.

        Args:
            anchor: (n, d) unit vectors.
            reference: (m, d) unit vectors; they reach the loss through the centroid alone, without a gradient.
            sample_weights: (n,) factor of each query's cross-entropy.

        Returns:
            A scalar ≥ 0; 0 without anchor images, or before the first reference image.
        """
        if self.training:
            self.update(anchor, reference)
        filled = torch.arange(len(self.queue), device=self.queue.device) < self.pushed
        options = {"sample_weights": sample_weights, "filled": filled}
        loss = momentum_infonce(anchor, self.centroid, self.queue, self.temperature, **options)
        return torch.where(self.centroid.any(), loss, 0)
