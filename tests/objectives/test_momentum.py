import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from faap.objectives import momentum_infonce


def units(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def loop_momentum(query: Tensor, centroid: Tensor, queue: Tensor, temperature: float, weights: list[float]) -> float:
    losses = []
    for z, weight in zip(query, weights, strict=True):
        positive = math.exp(float(z @ centroid) / temperature)
        negatives = sum(math.exp(float(z @ past) / temperature) for past in queue)
        losses.append(-weight * math.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("size", [0, 1, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_a_double_loop(size: int, weighted: bool) -> None:
    query, centroid, queue = units(4, 0), units(1, 1)[0], units(size, 2)
    weights = torch.tensor([1.0, 1.5, 0.2, 2.0], dtype=torch.float64)
    value = momentum_infonce(query, centroid, queue, 0.07, sample_weights=weights if weighted else None)
    expected = loop_momentum(query, centroid, queue, 0.07, weights.tolist() if weighted else [1.0] * 4)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_only_the_query_gets_a_gradient() -> None:
    query, centroid, queue = units(3, 0).requires_grad_(), units(1, 1)[0].requires_grad_(), units(5, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: momentum_infonce(q, centroid.detach(), queue.detach(), 0.5), (query,))
    momentum_infonce(query, centroid, queue, 0.07).backward()
    assert centroid.grad is None
    assert queue.grad is None
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


def test_half_precision_and_low_temperature_stay_finite() -> None:
    query = units(3, 0).half().requires_grad_()
    value = momentum_infonce(query, -query.detach()[0], query.detach(), 0.001)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_without_queries_it_is_zero() -> None:
    query = units(0, 0).requires_grad_()
    value = momentum_infonce(query, units(1, 1)[0], units(5, 2), 0.07)
    value.backward()
    assert value.item() == 0
