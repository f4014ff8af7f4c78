"""Terms that lift the anchor group's scores to the reference group's, and never push anything down."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor
from torch.nn import functional as F

from faap.objectives.numerics import connected_zero, widen
from faap.objectives.term import Term
from faap.settings import setting


def one_sided_wasserstein(anchor: Tensor, reference: Tensor) -> Tensor:
    """Measure how far the anchor group's sorted scores lie below the reference group's.

    Args:
        anchor: (n,) scores.
        reference: (m,) scores; no gradient reaches them.

    Returns:
        A scalar ≥ 0, the mean of what is missing at each rank, the shorter vector being stretched to the longer one's
        length by linear interpolation over its index; 0 if a group is absent.

    Source: docs/recipes.md, "Terms", One-sided Wasserstein-1.
    """
    reference = reference.detach()
    if len(anchor) < 1 or len(reference) < 1:
        return connected_zero(anchor)
    length = max(len(anchor), len(reference))
    low, high = (
        F.interpolate(widen(scores).sort().values[None, None], size=length, mode="linear", align_corners=True)[0, 0]
        for scores in (anchor, reference)
    )
    return (high - low).relu().mean()


def score_distribution(anchor: Tensor, reference: Tensor) -> Tensor:
    """Measure how far the anchor group's mean and quartiles of scores lie below the reference group's.

    Args:
        anchor: (n,) scores.
        reference: (m,) scores; no gradient reaches them.

    Returns:
        A scalar ≥ 0; without the quartiles if a group has fewer than 3 scores; 0 if a group is absent.

    Source: docs/recipes.md, "Terms", Score distribution.
    """
    anchor, reference = widen(anchor), widen(reference.detach())
    if len(anchor) < 1 or len(reference) < 1:
        return connected_zero(anchor)
    missing = (reference.mean() - anchor.mean()).relu()
    if min(len(anchor), len(reference)) >= 3:
        at = torch.arange(1, 4, dtype=anchor.dtype, device=anchor.device) / 4
        missing = missing + (reference.quantile(at) - anchor.quantile(at)).relu().mean()
    return missing


@torch.no_grad()
def score_gap_penalty(anchor: Tensor, reference: Tensor) -> Tensor:
    """Say how far the anchor group's mean score lies below the reference group's; it is watched and moves nothing.

    Args:
        anchor: (n,) scores.
        reference: (m,) scores.

    Returns:
        A scalar ≥ 0 without a gradient; 0 if a group is absent.

    Source: docs/recipes.md, "Terms", fix2's weighting.
    """
    if len(anchor) < 1 or len(reference) < 1:
        return connected_zero(anchor)
    return (widen(reference).mean() - widen(anchor).mean()).relu()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the terms on scores."""

    lambda_score: float = setting(0.0, "weight of the distance of mean and quartiles of matched scores", low=0)
    lambda_wass: float = setting(0.2, "weight of the one-sided Wasserstein distance of scores", low=0)
    wass_scores: str = setting("image", "whose scores: images', or matched queries'", choices=("image", "matched"))
    lambda_score_gap: float = setting(0.0, "weight of the (gradient-free) score gap in the logged total", low=0)
    score_top_k: int = setting(10, "queries whose confidence makes an image's score", low=1)


def terms(recipe: Settings, feature_dim: int, projected_dim: int) -> Iterator[Term]:
    """The terms of a recipe."""
    scores = attrgetter("scores" if recipe.wass_scores == "image" else "matched_scores")
    yield Term("score_distribution", recipe.lambda_score, lambda view: score_distribution(*view.matched_scores))
    yield Term("wasserstein", recipe.lambda_wass, lambda view: one_sided_wasserstein(*scores(view)))
    yield Term("score_gap_penalty", recipe.lambda_score_gap, lambda view: score_gap_penalty(*view.scores))
