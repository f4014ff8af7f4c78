"""What the generator minimises: the weighted terms of a recipe, and the numbers that are monitored beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from faap.config import Recipe
from faap.detectors import DetectorOutput, FrozenDetector
from faap.objectives import (
    ProjectionHead,
    image_scores,
    infonce,
    mean_alignment,
    one_sided_wasserstein,
    similarity_statistics,
)


@dataclass(frozen=True)
class Weights:
    """The weights that change from epoch to epoch."""

    contrastive: float
    beta: float


class Objective(nn.Module):
    """The sum of a recipe's terms; it holds the projection head, which is trained with the generator.

    Args:
        recipe: weights, temperature and head.
        feature_dim: D, the width of the detector's decoder states.
    """

    def __init__(self, recipe: Recipe, feature_dim: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.head = ProjectionHead(feature_dim, recipe.proj_dim, recipe.head, recipe.proj_dropout)

    def forward(
        self,
        detector: FrozenDetector,
        out: DetectorOutput,
        targets: Sequence[Mapping[str, Tensor]],
        groups: Sequence[str],
        weights: Weights,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            detector: supplies the detection loss.
            out: its output for the augmented, perturbed batch of B images.
            targets: b dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
            groups: the group of each image.
            weights: the epoch's weights.

        Returns:
            The total, a scalar, and every unweighted term and monitored statistic as detached scalars.
        """
        recipe = self.recipe
        device = out.logits.device
        anchor = torch.tensor([group == recipe.anchor_group for group in groups], device=device)
        reference = torch.tensor([group == recipe.reference_group for group in groups], device=device)
        pooled = out.features.float().mean(1)  # (B, D)
        projected = self.head(pooled)  # (B, proj_dim)
        scores = image_scores(out.logits.float(), recipe.score_top_k, activation=detector.activation)  # (B,)
        terms = {
            "infonce": infonce(projected[anchor], projected[reference], recipe.temperature),
            "alignment": mean_alignment(pooled[anchor], pooled[reference], detach_reference=True),
            "wasserstein": one_sided_wasserstein(scores[anchor], scores[reference]),
            "detection": detector.loss(out, [dict(target) for target in targets]),
        }
        total = (
            weights.contrastive * terms["infonce"]
            + recipe.lambda_align * terms["alignment"]
            + recipe.lambda_wass * terms["wasserstein"]
            + weights.beta * terms["detection"]
        )
        with torch.no_grad():
            sim_f2m, sim_f2f = similarity_statistics(projected[anchor], projected[reference])
            seen = {name: value.detach() for name, value in terms.items()} | {
                "total": total.detach(),
                "sim_f2m": sim_f2m,
                "sim_f2f": sim_f2f,
                "score_gap": scores[reference].mean() - scores[anchor].mean(),
                "n_f": anchor.sum(),
                "n_m": reference.sum(),
            }
        return total, seen
