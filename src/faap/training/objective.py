"""What the generator minimises: the weighted terms of a recipe, and the numbers that are monitored beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faap.config import Recipe
from faap.detectors import DetectorOutput, FrozenDetector, Match
from faap.objectives import (
    Adversary,
    MomentumContrast,
    ProjectionHead,
    cross_group_similarity,
    image_scores,
    infonce,
    mean_alignment,
    one_sided_wasserstein,
    pair_log_weights,
    query_weights,
    reference_log_weights,
    score_distribution,
    score_gap_penalty,
    similarity_statistics,
    variance_alignment,
)


@dataclass
class View:
    """What the terms see of a batch of B images; each quantity per image comes as (anchor group's, reference group's).

    Attributes:
        detector: the frozen detector.
        out: its output for the augmented, perturbed batch.
        targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
        masks: two (B,) bool, the images of the anchor and of the reference group.
        pooled: (n, D) and (m, D) decoder states averaged over queries.
        projected: (n, d) and (m, d) unit vectors.
        scores: (n,) and (m,) image scores.
        known_matches: the matching of every decoder layer, if it is known already.
    """

    detector: FrozenDetector
    out: DetectorOutput
    targets: Sequence[dict[str, Tensor]]
    masks: tuple[Tensor, Tensor]
    pooled: tuple[Tensor, Tensor]
    projected: tuple[Tensor, Tensor]
    scores: tuple[Tensor, Tensor]
    known_matches: list[list[Match]] | None = None

    @cached_property
    def matches(self) -> list[list[Match]]:
        """The matching of every decoder layer, computed once for all terms."""
        return self.known_matches or self.detector.match_all_layers(self.out, self.targets)

    @property
    def detection(self) -> Tensor:
        """The detection loss."""
        return self.detector.loss(self.out, self.targets, self.matches)

    @property
    def matched_scores(self) -> tuple[Tensor, Tensor]:
        """(k,) and (l,): the score of every ground truth of the group at its matched query."""
        per_image = self.detector.matched_scores(self.out, self.targets, self.matches)
        empty = self.out.logits.new_zeros(0)
        anchor, reference = (
            torch.cat([empty, *(s for s, mine in zip(per_image, mask.tolist(), strict=True) if mine)])
            for mask in self.masks
        )
        return anchor, reference


@dataclass(frozen=True)
class Term:
    """One summand of the loss: weight × the schedule's value of the epoch × value(view).

    Attributes:
        name: as it is logged.
        weight: constant factor; a term with 0 is left out.
        value: computes the term, a scalar.
        schedule: name of the schedule that multiplies it as well; None for none.
        state: what the term remembers or trains on its own; it is saved and resumed with the objective.
    """

    name: str
    weight: float
    value: Callable[[View], Tensor]
    schedule: str | None = None
    state: Adversary | MomentumContrast | None = None


def _contrastive(recipe: Recipe, dim: int) -> Term:
    """The recipe's contrastive term, in the direction from anchor to reference."""
    temperature, alpha = recipe.temperature, recipe.score_alpha

    def unweighted(view: View) -> Tensor:
        return infonce(*view.projected, temperature, detach_reference=recipe.detach_reference)

    def by_pairs(view: View) -> Tensor:
        weights = pair_log_weights(*view.scores, alpha)
        return infonce(*view.projected, temperature, detach_reference=recipe.detach_reference, log_weights=weights)

    def by_references(view: View) -> Tensor:
        return infonce(
            *view.projected,
            temperature,
            detach_reference=recipe.detach_reference,
            log_weights=reference_log_weights(view.scores[1]),
            weights_in="numerator",
        )

    def similarity(view: View) -> Tensor:
        anchor, reference = view.projected
        return cross_group_similarity(anchor, reference.detach() if recipe.detach_reference else reference, temperature)

    def momentum(view: View) -> Tensor:
        weights = query_weights(*view.scores, alpha) if recipe.score_weighting == "sigmoid" else None
        value: Tensor = memory(*view.projected, weights)
        return value

    name, weight = recipe.contrastive, recipe.f2m_weight if recipe.lambda_contrastive else 0.0
    if recipe.contrastive == "momentum":
        memory = MomentumContrast(dim, temperature, recipe.queue_size, recipe.centroid_momentum)
        return Term(name, weight, momentum, "contrastive_weight", memory)
    if recipe.contrastive == "similarity":
        return Term(name, weight, similarity, "contrastive_weight")
    value = {"none": unweighted, "sigmoid": by_pairs, "softmax": by_references}[recipe.score_weighting]
    return Term(name, weight, value, "contrastive_weight")


def _adversarial(recipe: Recipe, feature_dim: int) -> Term:
    adversary = Adversary(
        feature_dim, recipe.adv_steps, recipe.lr_d, recipe.adv_entropy_weight, recipe.adv_reference_weight
    )
    return Term("adversarial", recipe.lambda_adv, lambda view: adversary(*view.pooled), state=adversary)


def _terms(recipe: Recipe, feature_dim: int, projected_dim: int) -> list[Term]:
    """All terms of a recipe that weigh something."""
    wasserstein: dict[str, Callable[[View], Tensor]] = {
        "image": lambda view: one_sided_wasserstein(*view.scores),
        "matched": lambda view: one_sided_wasserstein(*view.matched_scores),
    }
    terms = [
        _contrastive(recipe, projected_dim),
        Term(
            "infonce_m2f",
            recipe.m2f_weight if recipe.lambda_contrastive else 0.0,
            lambda view: infonce(*view.projected[::-1], recipe.temperature, detach_reference=False),
            "contrastive_weight",
        ),
        _adversarial(recipe, feature_dim),
        Term(
            "alignment",
            recipe.lambda_align,
            lambda view: mean_alignment(*view.pooled, detach_reference=recipe.detach_reference),
        ),
        Term("variance", recipe.lambda_var, lambda view: variance_alignment(*view.pooled)),
        Term("score_distribution", recipe.lambda_score, lambda view: score_distribution(*view.matched_scores)),
        Term("wasserstein", recipe.lambda_wass, wasserstein[recipe.wass_scores]),
        Term("score_gap_penalty", recipe.lambda_score_gap, lambda view: score_gap_penalty(*view.scores)),
        Term("detection", 1.0, lambda view: view.detection, "beta"),
    ]
    return [term for term in terms if term.weight]


class Objective(nn.Module):
    """The sum of a recipe's terms; it holds the projection head and whatever the terms remember.

    Args:
        recipe: weights, temperature, head and the kinds of terms.
        feature_dim: D, the width of the detector's decoder states.

    Attributes:
        head: trained with the generator; None where features are only normalised.
        terms: the summands.
    """

    def __init__(self, recipe: Recipe, feature_dim: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.head = (
            None
            if recipe.head == "none"
            else ProjectionHead(feature_dim, recipe.proj_dim, recipe.head, recipe.proj_dropout)
        )
        self.terms = _terms(recipe, feature_dim, feature_dim if self.head is None else recipe.proj_dim)
        self.states = nn.ModuleDict({term.name: term.state for term in self.terms if term.state is not None})

    def view(
        self,
        detector: FrozenDetector,
        out: DetectorOutput,
        targets: Sequence[Mapping[str, Tensor]],
        groups: Sequence[str],
        matches: list[list[Match]] | None = None,
    ) -> View:
        """Collect what the terms see; arguments as in `forward`."""
        recipe = self.recipe
        anchor, reference = (
            torch.tensor([group == name for group in groups], device=out.logits.device)
            for name in (recipe.anchor_group, recipe.reference_group)
        )
        pooled = out.features.float().mean(1)  # (B, D)
        projected = F.normalize(pooled, dim=1) if self.head is None else self.head(pooled)  # (B, d)
        scores = image_scores(out.logits.float(), recipe.score_top_k, activation=detector.activation)  # (B,)
        return View(
            detector,
            out,
            [dict(target) for target in targets],
            (anchor, reference),
            (pooled[anchor], pooled[reference]),
            (projected[anchor], projected[reference]),
            (scores[anchor], scores[reference]),
            matches,
        )

    def forward(
        self,
        detector: FrozenDetector,
        out: DetectorOutput,
        targets: Sequence[Mapping[str, Tensor]],
        groups: Sequence[str],
        schedule: Mapping[str, float],
        matches: list[list[Match]] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            detector: supplies the detection loss.
            out: its output for the augmented, perturbed batch of B images.
            targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
            groups: the group of each image.
            schedule: the epoch's value of every schedule.
            matches: `detector.match_all_layers(out, targets)`, if it is known already.

        Returns:
            The total, a scalar, and every unweighted term and monitored statistic as detached scalars.
        """
        view = self.view(detector, out, targets, groups, matches)
        values = {term.name: term.value(view) for term in self.terms}
        factors = [term.weight * (schedule[term.schedule] if term.schedule else 1.0) for term in self.terms]
        total = sum((f * v for f, v in zip(factors, values.values(), strict=True)), out.logits.new_zeros(()))
        with torch.no_grad():
            sim_f2m, sim_f2f = similarity_statistics(*view.projected)
            seen = {name: value.detach() for name, value in values.items()} | {
                "total": total.detach(),
                "sim_f2m": sim_f2m,
                "sim_f2f": sim_f2f,
                "score_gap": view.scores[1].mean() - view.scores[0].mean(),
                "n_f": view.masks[0].sum(),
                "n_m": view.masks[1].sum(),
            }
            for term in self.terms:
                seen |= {} if term.state is None else term.state.monitored()
        return total, seen
