import math

import pytest
import torch

from faap.objectives import image_scores


def loop_scores(logits: torch.Tensor, top_k: int, activation: str) -> list[float]:
    scores = []
    for image in logits.tolist():
        confidences = []
        for query in image:
            if activation == "softmax":
                total = sum(math.exp(value) for value in query)
                confidences.append(max(math.exp(value) / total for value in query[:-1]))
            else:
                confidences.append(max(1 / (1 + math.exp(-value)) for value in query))
        kept = sorted(confidences)[-top_k:]
        scores.append(sum(kept) / len(kept))
    return scores


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 3, 7, 10])
def test_equals_a_loop(activation, top_k: int) -> None:  # type: ignore[no-untyped-def]
    logits = 3 * torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = image_scores(logits, top_k, activation=activation)
    assert scores.shape == (4,)
    assert scores.tolist() == pytest.approx(loop_scores(logits, top_k, activation))


def test_certainty_of_no_object_is_a_low_score() -> None:
    logits = torch.tensor([[[0.0, 0.0, 20.0]], [[20.0, 0.0, 0.0]]])
    assert image_scores(logits, 10).tolist() == pytest.approx([0, 1], abs=1e-6)


def test_gradient_equals_finite_differences() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: image_scores(x, 3), (logits,))
    assert torch.autograd.gradcheck(lambda x: image_scores(x, 3, activation="sigmoid"), (logits,))


def test_half_precision_is_computed_in_float32() -> None:
    logits = (30 * torch.randn(2, 20, 92, generator=torch.Generator().manual_seed(0))).half()
    scores = image_scores(logits, 10)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, image_scores(logits.double(), 10).float(), atol=1e-6)
