"""Image scores: how sure a detector is of what it found in an image."""

from typing import Literal

from torch import Tensor

from faap.objectives.numerics import widen


def image_scores(logits: Tensor, top_k: int, *, activation: Literal["softmax", "sigmoid"] = "softmax") -> Tensor:
    """Average the K most confident queries of each image.

    Args:
        logits: (B, Q, C+1) class logits with the no-object class last for softmax; (B, Q, C) for sigmoid.
        top_k: K ≥ 1; all queries count if there are fewer.
        activation: how logits become probabilities.

    Returns:
        (B,) in [0, 1]: the mean of the K largest over queries of the largest class probability.

    Source: docs/recipes.md, "Notation", s_i.
    """
    logits = widen(logits)
    probabilities = logits.softmax(-1)[..., :-1] if activation == "softmax" else logits.sigmoid()
    confidence = probabilities.amax(-1)  # (B, Q)
    return confidence.topk(min(top_k, confidence.shape[1]), dim=1).values.mean(1)
