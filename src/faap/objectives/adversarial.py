"""The adversarial term: features from which a discriminator cannot read the group."""

import torch
from torch import Tensor
from torch.nn import functional as F

from faap.objectives.numerics import connected_zero, widen


def adversarial_confusion(logits: Tensor, label: int | Tensor, *, entropy_weight: float = 0.2) -> Tensor:
    """Reward the generator for images whose group the discriminator gets wrong or is unsure of.

    Args:
        logits: (n, 2) the discriminator's, for the images of one group.
        label: the group's class (anchor 1, reference 0), or (n,) one for each image.
        entropy_weight: weight of the prediction's entropy beside the cross-entropy.

    Returns:
        A scalar, −(cross-entropy + entropy_weight · entropy), each a mean over images; 0 without images.

    Source: spec/recipes.md, "Terms", Adversarial.
    """
    if len(logits) < 1:
        return connected_zero(logits)
    log_probabilities = widen(logits).log_softmax(1)
    labels = torch.as_tensor(label, device=logits.device).expand(len(logits))
    cross_entropy = F.nll_loss(log_probabilities, labels)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
    return -(cross_entropy + entropy_weight * entropy)
