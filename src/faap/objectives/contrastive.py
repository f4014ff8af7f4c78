"""Contrastive terms between the groups' projected features, and the similarities that are watched beside them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from faap.errors import FaapError
from faap.objectives.momentum import MomentumContrast
from faap.objectives.numerics import connected_zero, similarities
from faap.objectives.term import Term, View
from faap.objectives.weighting import pair_log_weights, query_weights, reference_log_weights
from faap.settings import setting


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

    Source: van den Oord et al., 2018 (arXiv:1807.03748); docs/recipes.md, "Terms", InfoNCE.
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

    Source: docs/recipes.md, "Terms", Cross-group similarity.
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

    Source: docs/recipes.md, "What is monitored".
    """
    within = similarities(anchor, anchor)
    pairs = len(anchor) * (len(anchor) - 1)
    return similarities(anchor, reference).mean(), (within.sum() - within.trace()) / pairs


# the contrastive terms, and how scores can weigh each
WEIGHTINGS = {"infonce": ("none", "sigmoid", "softmax"), "similarity": ("none",), "momentum": ("none", "sigmoid")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of every contrastive term, and of the memory that momentum contrast has."""

    contrastive: str = setting(
        "infonce", "contrast in a batch, without negatives, or by a queue", choices=(*WEIGHTINGS,)
    )
    temperature: float = setting(0.1, "temperature of the contrastive term", above=0)
    lambda_contrastive: float = setting(1.0, "weight of the contrastive terms after their warm-up", low=0)
    contrastive_warmup_epochs: int = setting(4, "epochs over which that weight rises", low=0)
    f2m_weight: float = setting(1.0, "weight of anchor → reference within the contrastive term", low=0)
    m2f_weight: float = setting(0.0, "weight of reference → anchor InfoNCE, which no scores weigh, in it", low=0)
    detach_reference: bool = setting(True, "contrast and mean alignment send the reference group no gradient")
    score_weighting: str = setting("none", "how scores weigh the contrast's pairs", choices=WEIGHTINGS["infonce"])
    score_alpha: float = setting(1.0, "strength of the sigmoid weighting", low=0)
    queue_size: int = setting(2048, "anchor features that momentum contrast remembers", low=1)
    centroid_momentum: float = setting(0.99, "share of the reference centroid that a batch leaves", low=0, below=1)

    def check(self) -> None:
        """Refuse a weighting that the contrastive term does not have."""
        allowed, given = WEIGHTINGS[self.contrastive], f"score_weighting is {self.score_weighting!r}"
        if self.score_weighting not in allowed:
            raise FaapError(f"{given}; with contrastive {self.contrastive!r} it must be {' or '.join(allowed)}.")


def schedules(recipe: Settings) -> Iterator[tuple[str, Callable[[int], float]]]:
    """The warm-up of all contrastive terms, of which the last epoch has the weight in full."""
    warmup = max(recipe.contrastive_warmup_epochs, 1)
    yield "contrastive_weight", lambda epoch: recipe.lambda_contrastive * min(1.0, (epoch + 1) / warmup)


def terms(recipe: Settings, feature_dim: int, projected_dim: int) -> Iterator[Term]:
    """The terms of a recipe: from anchor to reference, and back."""
    detach, on = recipe.detach_reference, recipe.lambda_contrastive > 0
    alpha = recipe.score_alpha if recipe.score_weighting == "sigmoid" else 0.0  # with 0 nothing is weighed

    def contrast(view: View) -> Tensor:
        toward = partial(infonce, *view.projected, recipe.temperature, detach_reference=detach)
        if recipe.score_weighting == "softmax":
            return toward(log_weights=reference_log_weights(view.scores[1]), weights_in="numerator")
        return toward(log_weights=pair_log_weights(*view.scores, alpha) if alpha else None)

    def similarity(view: View) -> Tensor:
        anchor, reference = view.projected
        return cross_group_similarity(anchor, reference.detach() if detach else reference, recipe.temperature)

    def back(view: View) -> Tensor:
        return infonce(*view.projected[::-1], recipe.temperature, detach_reference=False)

    def momentum(view: View) -> Any:
        return memory(*view.projected, query_weights(*view.scores, alpha))

    memory: Any = None
    if recipe.contrastive == "momentum":
        memory = MomentumContrast(projected_dim, recipe.temperature, recipe.queue_size, recipe.centroid_momentum)
    value = {"infonce": contrast, "similarity": similarity, "momentum": momentum}[recipe.contrastive]
    yield Term(recipe.contrastive, on * recipe.f2m_weight, value, "contrastive_weight", memory)
    yield Term("infonce_m2f", on * recipe.m2f_weight, back, "contrastive_weight")
