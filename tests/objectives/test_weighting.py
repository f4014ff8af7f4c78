from collections.abc import Callable

import pytest
import torch
from scipy.special import expit, softmax
from torch import Tensor

from faap.objectives import pair_log_weights, query_weights, reference_log_weights

WEIGHTINGS: list[Callable[[Tensor, Tensor], Tensor]] = [
    pair_log_weights,
    query_weights,
    lambda anchor, reference: reference_log_weights(reference),
]


def scores(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (4, 1), (3, 5)])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0])
def test_pair_weights_equal_a_double_loop(n: int, m: int, alpha: float) -> None:
    anchor, reference = scores(n, 0), scores(m, 1)
    weights = pair_log_weights(anchor, reference, alpha).exp()
    assert weights.shape == (n, m)
    for i, low in enumerate(anchor.tolist()):
        for j, high in enumerate(reference.tolist()):
            expected = (0.5 + expit(5 * (high - low))) ** alpha
            assert weights[i, j].item() == pytest.approx(expected, rel=1e-12)


def test_a_pair_weighs_more_the_surer_the_detector_is_of_the_reference_image() -> None:
    weights = pair_log_weights(torch.tensor([0.2, 0.6]), torch.tensor([0.1, 0.6, 0.9]))
    assert (weights.diff(dim=1) > 0).all()
    assert (weights.diff(dim=0) < 0).all()
    assert weights[1, 1] == 0


@pytest.mark.parametrize("m", [1, 2, 7])
def test_reference_weights_are_a_softmax_with_a_mean_of_one(m: int) -> None:
    reference = scores(m, 1)
    weights = reference_log_weights(reference).exp()
    assert weights.tolist() == pytest.approx((m * softmax(5 * reference.numpy())).tolist(), rel=1e-12)
    assert weights.mean().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (4, 1), (3, 5)])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0])
def test_query_weights_equal_a_loop(n: int, m: int, alpha: float) -> None:
    anchor, reference = scores(n, 0), scores(m, 1)
    weights = query_weights(anchor, reference, alpha)
    mean = sum(reference.tolist()) / m
    expected = [1 + alpha * expit(5 * (mean - score)) for score in anchor.tolist()]
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_scores_weigh_all_alike() -> None:
    anchor, reference = torch.full((3,), 0.4), torch.full((2,), 0.4)
    assert not pair_log_weights(anchor, reference).any()
    assert reference_log_weights(reference).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert query_weights(anchor, reference).tolist() == [1.5] * 3


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_gradient_reaches_the_scores(weighting: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert not weighting(scores(3, 0).requires_grad_(), scores(2, 1).requires_grad_()).requires_grad


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_absent_groups_give_finite_weights(weighting: Callable[[Tensor, Tensor], Tensor], n: int, m: int) -> None:
    assert weighting(scores(n, 0), scores(m, 1)).isfinite().all()
    assert query_weights(scores(n, 0), scores(0, 1)).tolist() == [1.0] * n


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(
    weighting: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    anchor, reference = scores(3, 0, dtype), scores(4, 1, dtype)
    weights = weighting(anchor, reference)
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.double(), weighting(anchor.double(), reference.double()), atol=1e-6)
