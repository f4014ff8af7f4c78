"""What the generator minimises: the weighted terms of a recipe, and the numbers that are monitored beside them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faap.config import Recipe
from faap.detectors import FrozenDetector
from faap.errors import FaapError, nearest
from faap.objectives import ProjectionHead, Term, View, image_scores, similarity_statistics
from faap.objectives.term import Pair, scalar
from faap.training.parallel import Whole


def _terms(recipe: Recipe, feature_dim: int, projected_dim: int) -> list[Term]:
    """All terms of a recipe that weigh something, in the order of their sum."""
    found = [term for room in recipe.rooms for term in room.terms(recipe, feature_dim, projected_dim)]
    found.append(Term("detection", 1.0, lambda view: view.detection, "beta"))
    schedules = recipe.schedules()
    for number, term in enumerate(found):
        if term.name in schedules or any(term.name == other.name for other in found[:number]):
            raise FaapError(f"{recipe.terms}: {term.name} is the name of another term or schedule; choose another.")
        if term.schedule is not None and term.schedule not in schedules:
            known = f"there is none but {', '.join(schedules)}.{nearest(str(term.schedule), schedules)}"
            raise FaapError(f"{recipe.terms}: the term {term.name} has the schedule {term.schedule!r}; {known}")
    return [term for term in found if term.weight]


class Objective(nn.Module):
    """The sum of a recipe's terms; it holds the projection head and whatever the terms remember.

    Args:
        recipe: weights, temperature, head and the kinds of terms.
        feature_dim: D, the width of the detector's decoder states.

    Attributes:
        head: trained with the generator; None where features are only normalised.
        terms: the summands.
        losses: of the names that `forward` returns, those of losses; the others describe a step.
    """

    def __init__(self, recipe: Recipe, feature_dim: int) -> None:
        super().__init__()
        if recipe.terms and recipe.own is None:  # a file's word imports nothing
            raise FaapError(f"the recipe has terms of your own: say --terms {recipe.terms} to import them.")
        self.recipe = recipe
        self.head = None if recipe.head == "none" else ProjectionHead(feature_dim, recipe)
        self.terms = _terms(recipe, feature_dim, feature_dim if self.head is None else recipe.proj_dim)
        self.states = nn.ModuleDict({term.name: term.state for term in self.terms if term.state is not None})
        of_states = [name for state in self.states.values() for name in getattr(state, "LOSSES", ())]
        self.losses = [*(term.name for term in self.terms), "total", *of_states]

    def view(self, detector: FrozenDetector, whole: Whole) -> View:
        """Collect what the terms see of a batch.

        Args:
            detector: supplies the detection loss.
            whole: its output for the augmented, perturbed batch of B images, and what `whole_batch` knows of them.
        """
        out, targets, groups, known = whole
        if torch.is_grad_enabled() and not any(each.requires_grad for each in (out.logits, out.boxes, out.features)):
            advice = "its code detaches them, or runs under torch.no_grad, and a training goes back through it"
            raise FaapError(f"the detector {detector.name} gives outputs without a gradient to its images: {advice}.")
        names = (self.recipe.anchor_group, self.recipe.reference_group)
        places = [_places([group == name for group in groups], out.logits.device) for name in names]
        pooled = out.features.float().mean(1)  # (B, D)
        projected = F.normalize(pooled, dim=1) if self.head is None else self.head(pooled)  # (B, d)
        scores = image_scores(out.logits.float(), self.recipe.score_top_k, activation=detector.activation)  # (B,)

        def matched_scores() -> Pair:
            per_image = list(zip(detector.matched_scores(out, targets, known), groups, strict=True))
            empty = out.logits.new_zeros(0)
            first, second = (torch.cat([empty, *(s for s, group in per_image if group == name)]) for name in names)
            return first, second

        loss, weight = detector.loss, self.recipe.no_object_weight
        if weight and type(detector).loss is FrozenDetector.loss:  # a loss of the detector's own is not ours to weigh
            loss = partial(loss, criterion=replace(detector.criterion, no_object_weight=weight))
        pairs = [(values[places[0]], values[places[1]]) for values in (pooled, projected, scores)]
        return View(pairs[0], pairs[1], pairs[2], matched_scores, lambda: loss(out, targets, known))

    def forward(self, view: View, schedule: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            view: of the batch.
            schedule: the epoch's value of every schedule.

        Returns:
            The total, a scalar, and every unweighted term and monitored statistic as detached scalars.
        """
        values = {term.name: scalar(term.name, term.value(view)) for term in self.terms}
        factors = [term.weight * (schedule[term.schedule] if term.schedule else 1.0) for term in self.terms]
        total = sum((f * v for f, v in zip(factors, values.values(), strict=True)), view.pooled[0].new_zeros(()))
        with torch.no_grad(), self.recipe.blamed():
            seen = {name: value.detach() for name, value in {**values, "total": total}.items()}
            seen["sim_f2m"], seen["sim_f2f"] = similarity_statistics(*view.projected)
            seen["score_gap"] = view.scores[1].mean() - view.scores[0].mean()
            seen["n_f"], seen["n_m"] = (total.new_full((), len(scores)) for scores in view.scores)
            for term in self.terms:
                for name, value in getattr(term.state, "monitored", dict)().items():
                    if name in seen:
                        raise FaapError(f"the term {term.name} monitors {name!r}, which is the name of another number.")
                    seen[name] = scalar(name, value).detach().to(total.device)
        return total, seen


def _places(chosen: list[bool], device: torch.device) -> slice | Tensor:
    """Return where images lie; as a slice, for which nothing goes to the device, if they lie next to each other."""
    first, count = (chosen.index(True), sum(chosen)) if any(chosen) else (0, 0)
    here = slice(first, first + count)
    return here if all(chosen[here]) else torch.tensor(chosen, device=device)
