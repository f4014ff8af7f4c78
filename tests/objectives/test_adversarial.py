import math

import pytest
import torch

from faap.objectives import adversarial_confusion


def loop_confusion(logits: torch.Tensor, labels: list[int], entropy_weight: float) -> float:
    cross_entropy = entropy = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        total = sum(math.exp(value) for value in row)
        probabilities = [math.exp(value) / total for value in row]
        cross_entropy -= math.log(probabilities[label])
        entropy -= sum(p * math.log(p) for p in probabilities)
    return -(cross_entropy + entropy_weight * entropy) / len(labels)


@pytest.mark.parametrize("label", [0, 1, [1, 0, 0, 1, 1]])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.2, 1.0])
def test_equals_a_loop(label, entropy_weight: float) -> None:  # type: ignore[no-untyped-def]
    logits = 2 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = label if isinstance(label, list) else [label] * 5
    value = adversarial_confusion(
        logits, torch.tensor(label) if isinstance(label, list) else label, entropy_weight=entropy_weight
    )
    assert value.item() == pytest.approx(loop_confusion(logits, labels, entropy_weight))


def test_entropy_counts_a_fifth_by_default() -> None:
    logits = torch.tensor([[1.0, -0.5]])
    assert adversarial_confusion(logits, 1).item() == adversarial_confusion(logits, 1, entropy_weight=0.2).item()


def test_gradient_equals_finite_differences() -> None:
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: adversarial_confusion(x, 1), (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_certain_discriminator_gives_finite_values_and_gradients(dtype: torch.dtype) -> None:
    logits = torch.tensor([[2e4, -2e4], [-2e4, 2e4]], dtype=dtype, requires_grad=True)
    value = adversarial_confusion(logits, 1)
    value.backward()
    assert value.item() == pytest.approx(-2e4)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_without_images_it_is_zero() -> None:
    logits = torch.zeros(0, 2, requires_grad=True)
    value = adversarial_confusion(logits, 0)
    value.backward()
    assert value.item() == 0
