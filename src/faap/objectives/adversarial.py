"""The adversarial term: features from which a discriminator cannot read the group, and that discriminator."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from faap.objectives.numerics import connected_zero, widen
from faap.objectives.term import Term
from faap.settings import setting

# width of the discriminator's two hidden layers
HIDDEN = 256


def adversarial_confusion(logits: Tensor, label: int | Tensor, *, entropy_weight: float = 0.2) -> Tensor:
    """Reward the generator for images whose group the discriminator gets wrong or is unsure of.

    Args:
        logits: (n, 2) the discriminator's, for the images of one group.
        label: the group's class (anchor 1, reference 0), or (n,) one for each image.
        entropy_weight: weight of the prediction's entropy beside the cross-entropy.

    Returns:
        A scalar, −(cross-entropy + entropy_weight · entropy), each a mean over images; 0 without images.

    Source: docs/recipes.md, "Terms", Adversarial.
    """
    if len(logits) < 1:
        return connected_zero(logits)
    log_probabilities = widen(logits).log_softmax(1)
    if not isinstance(label, Tensor):
        label = torch.full((len(logits),), label, device=logits.device)
    cross_entropy = F.nll_loss(log_probabilities, label)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
    return -(cross_entropy + entropy_weight * entropy)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the adversarial term and its discriminator."""

    lambda_adv: float = setting(0.0, "weight of the adversarial term", low=0)
    adv_steps: int = setting(4, "steps of the discriminator a step of the generator", low=1)
    lr_d: float = setting(1e-4, "learning rate of the discriminator", above=0)
    adv_entropy_weight: float = setting(0.2, "weight of the entropy in the adversarial term", low=0)
    adv_reference_weight: float = setting(0.5, "weight of the reference group in that term; anchor: 1", low=0)


class Adversary(nn.Module):
    """A discriminator that is trained on every batch, and the generator's term against it.

    In training mode it first makes its own steps on the batch's features, cut off from the generator, with its own
    optimizer; both are part of `state_dict`. The term's gradient reaches the features and no weight of the
    discriminator.

    Args:
        feature_dim: D, the width of the detector's decoder states.
        settings: its steps a batch, its Adam's learning rate, and the weights in the term.

    Attributes:
        discriminator: (n, D) features to (n, 2) logits; the anchor group is class 1, the reference group class 0.

    Source: docs/recipes.md, "Terms", Adversarial.
    """

    LOSSES = ("discriminator",)

    def __init__(self, feature_dim: int, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        layers = nn.Linear(feature_dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)
        self.discriminator = nn.Sequential(nn.LayerNorm(feature_dim), *layers)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=settings.lr_d)
        self.loss = torch.tensor(torch.nan)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the optimizer's state, so that `state_dict` holds it."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the optimizer's state; its learning rate stays the one given."""
        self.optimizer.load_state_dict({**state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def monitored(self) -> dict[str, Tensor]:
        """Return the discriminator's cross-entropy before its last step; log 2 is what guessing costs."""
        return {"discriminator": self.loss}

    @torch.enable_grad()
    def update(self, anchor: Tensor, reference: Tensor) -> None:
        """Train the discriminator on one batch.

        Args:
            anchor: (n, D) features of the anchor group's images, averaged over queries; n + m ≥ 1.
            reference: (m, D) those of the reference group.
        """
        features = widen(torch.cat([anchor, reference]).detach())
        labels = (torch.arange(len(features), device=features.device) < len(anchor)).long()
        for _ in range(self.settings.adv_steps):
            loss = F.cross_entropy(self.discriminator(features), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.loss = loss.detach()

    def forward(self, anchor: Tensor, reference: Tensor) -> Tensor:
        """Compute the generator's term on one batch.

        Args:
            anchor: (n, D) features of the anchor group's images, averaged over queries.
            reference: (m, D) those of the reference group.

        Returns:
            A scalar; a group without images adds 0.
        """
        if self.training and len(anchor) + len(reference):
            self.update(anchor, reference)
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}

        def confusion(features: Tensor, label: int) -> Tensor:
            logits = functional_call(self.discriminator, fixed, (widen(features),))
            return adversarial_confusion(logits, label, entropy_weight=self.settings.adv_entropy_weight)

        return confusion(anchor, 1) + self.settings.adv_reference_weight * confusion(reference, 0)


def terms(recipe: Settings, feature_dim: int, projected_dim: int) -> Iterator[Term]:
    """The term of a recipe."""
    adversary = Adversary(feature_dim, recipe)
    yield Term("adversarial", recipe.lambda_adv, lambda view: adversary(*view.pooled), state=adversary)
