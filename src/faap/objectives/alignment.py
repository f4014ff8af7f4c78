"""Alignment of the two groups' feature statistics."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from faap.objectives import contrastive
from faap.objectives.numerics import connected_zero, widen
from faap.objectives.term import Term
from faap.settings import setting


def mean_alignment(anchor: Tensor, reference: Tensor, *, detach_reference: bool) -> Tensor:
    """Bring the groups' mean features together.

    Args:
        anchor: (n, D) features of the anchor group's images, averaged over queries.
        reference: (m, D) those of the reference group.
        detach_reference: let no gradient reach the reference group.

    Returns:
        A scalar ≥ 0, the mean squared difference over D; 0 if a group is absent.

    Source: docs/recipes.md, "Terms", Mean alignment.
    """
    if detach_reference:
        reference = reference.detach()
    if len(anchor) < 1 or len(reference) < 1:
        return connected_zero(anchor, reference)
    return F.mse_loss(widen(anchor).mean(0), widen(reference).mean(0))


def variance_alignment(anchor: Tensor, reference: Tensor) -> Tensor:
    """Bring the groups' feature variances together.

    Args:
        anchor: (n, D) features of the anchor group's images, averaged over queries.
        reference: (m, D) those of the reference group.

    Returns:
        A scalar ≥ 0, the mean squared difference over D of the unbiased variances over images; 0 if a group has fewer
        than two images.

    Source: docs/recipes.md, "Terms", Variance alignment.
    """
    if len(anchor) < 2 or len(reference) < 2:
        return connected_zero(anchor, reference)
    return F.mse_loss(widen(anchor).var(0), widen(reference).var(0))


@dataclass(frozen=True, kw_only=True)
class Settings(contrastive.Settings):
    """Of both alignments; whether the reference group is detached is said once, for the contrastive terms as well."""

    lambda_align: float = setting(0.3, "weight of mean alignment", low=0)
    lambda_var: float = setting(0.0, "weight of variance alignment", low=0)


def terms(recipe: Settings, feature_dim: int, projected_dim: int) -> Iterator[Term]:
    """The terms of a recipe."""
    detach = recipe.detach_reference
    yield Term("alignment", recipe.lambda_align, lambda view: mean_alignment(*view.pooled, detach_reference=detach))
    yield Term("variance", recipe.lambda_var, lambda view: variance_alignment(*view.pooled))
