"""Terms that lift the anchor group's scores to the reference group's, and never push anything down."""

import torch
from torch import Tensor
from torch.nn import functional as F

from faap.objectives.numerics import connected_zero, widen

QUARTILES = (0.25, 0.5, 0.75)


def one_sided_wasserstein(anchor: Tensor, reference: Tensor) -> Tensor:
    """Measure how far the anchor group's sorted scores lie below the reference group's.

    Args:
        anchor: (n,) scores.
        reference: (m,) scores; no gradient reaches them.

    Returns:
        A scalar ≥ 0, the mean of what is missing at each rank, the shorter vector being stretched to the longer one's
        length by linear interpolation over its index; 0 if a group is absent.

    Source: spec/recipes.md, "Terms", One-sided Wasserstein-1.
    """
    reference = reference.detach()
    if len(anchor) < 1 or len(reference) < 1:
        return connected_zero(anchor)
    length = max(len(anchor), len(reference))
    low, high = _stretch(widen(anchor).sort().values, length), _stretch(widen(reference).sort().values, length)
    return (high - low).relu().mean()


def score_distribution(anchor: Tensor, reference: Tensor) -> Tensor:
    """Measure how far the anchor group's mean and quartiles of scores lie below the reference group's.

    Args:
        anchor: (n,) scores.
        reference: (m,) scores; no gradient reaches them.

    Returns:
        A scalar ≥ 0; without the quartiles if a group has fewer than 3 scores; 0 if a group is absent.

    Source: spec/recipes.md, "Terms", Score distribution.
    """
    anchor, reference = widen(anchor), widen(reference.detach())
    if len(anchor) < 1 or len(reference) < 1:
        return connected_zero(anchor)
    missing = (reference.mean() - anchor.mean()).relu()
    if min(len(anchor), len(reference)) >= 3:
        at = torch.tensor(QUARTILES, dtype=anchor.dtype, device=anchor.device)
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

    Source: spec/recipes.md, "Terms", fix2's weighting.
    """
    if len(anchor) < 1 or len(reference) < 1:
        return connected_zero(anchor)
    return (widen(reference).mean() - widen(anchor).mean()).relu()


def _stretch(ordered: Tensor, length: int) -> Tensor:
    if len(ordered) == length:
        return ordered
    return F.interpolate(ordered[None, None], size=length, mode="linear", align_corners=True)[0, 0]
