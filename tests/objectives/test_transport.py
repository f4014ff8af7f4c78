import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from faap.objectives import one_sided_wasserstein, score_distribution, score_gap_penalty


def scores(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_equals_scipy_when_the_reference_lies_above(n: int) -> None:
    anchor, reference = scores(n, 0), scores(n, 1) + 1
    value = one_sided_wasserstein(anchor, reference)
    assert value.item() == pytest.approx(wasserstein_distance(anchor.numpy(), reference.numpy()))
    assert one_sided_wasserstein(reference, anchor).item() == 0


@pytest.mark.parametrize("n", [1, 4, 50])
def test_both_directions_add_up_to_scipy(n: int) -> None:
    anchor, reference = scores(n, 0), scores(n, 1)
    both = one_sided_wasserstein(anchor, reference) + one_sided_wasserstein(reference, anchor)
    assert both.item() == pytest.approx(wasserstein_distance(anchor.numpy(), reference.numpy()))


@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 1), (3, 5), (5, 3), (2, 9)])
def test_unequal_numbers_are_stretched_over_their_index(n: int, m: int) -> None:
    anchor, reference = 0.3 * scores(n, 0), scores(m, 1) + 0.2
    length = max(n, m)

    def quantiles(values: Tensor) -> list[float]:
        ordered = sorted(values.tolist())
        return [np.interp(k * (len(ordered) - 1) / (length - 1), range(len(ordered)), ordered) for k in range(length)]

    missing = [max(high - low, 0) for low, high in zip(quantiles(anchor), quantiles(reference), strict=True)]
    assert sum(missing) > 0
    assert one_sided_wasserstein(anchor, reference).item() == pytest.approx(sum(missing) / length)


def test_score_distribution_by_hand() -> None:
    anchor, reference = torch.tensor([0.1, 0.2, 0.6]), torch.tensor([0.3, 0.4, 0.5, 0.6])
    # means .3 and .45; quartiles .15 .2 .4 against .375 .45 .525
    expected = 0.15 + (0.225 + 0.25 + 0.125) / 3
    assert score_distribution(anchor, reference).item() == pytest.approx(expected)
    assert score_distribution(anchor[:2], reference).item() == pytest.approx(0.3)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 9), (2, 5), (5, 1)])
def test_score_distribution_equals_numpy(n: int, m: int) -> None:
    anchor, reference = 0.6 * scores(n, 0), scores(m, 3)
    a, r = anchor.numpy(), reference.numpy()
    expected = max(r.mean() - a.mean(), 0)
    if min(n, m) >= 3:
        expected += np.mean([max(np.quantile(r, q) - np.quantile(a, q), 0) for q in (0.25, 0.5, 0.75)])
    assert score_distribution(anchor, reference).item() == pytest.approx(expected)


@pytest.mark.parametrize("term", [one_sided_wasserstein, score_distribution])
@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 5), (5, 3)])
def test_gradient_equals_finite_differences_and_spares_the_reference(term, n: int, m: int) -> None:  # type: ignore[no-untyped-def]
    anchor, reference = (0.5 * scores(n, 0)).requires_grad_(), (scores(m, 1) + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: term(a, reference.detach()), (anchor,))
    term(anchor, reference).backward()
    assert reference.grad is None
    assert anchor.grad is not None
    assert (anchor.grad <= 0).all()
    assert anchor.grad.sum() < 0


@pytest.mark.parametrize("term", [one_sided_wasserstein, score_distribution])
def test_equal_and_absent_scores_give_zero(term) -> None:  # type: ignore[no-untyped-def]
    for anchor, reference in [(scores(0, 0), scores(3, 0)), (scores(3, 0), scores(0, 0)), (scores(0, 0), scores(0, 0))]:
        anchor.requires_grad_()
        value = term(anchor, reference)
        value.backward()
        assert value.item() == 0
    equal = torch.full((4,), 0.5, requires_grad=True)
    value = term(equal, equal.detach())
    value.backward()
    assert value.item() == 0
    assert equal.grad is not None
    assert equal.grad.isfinite().all()


@pytest.mark.parametrize("term", [one_sided_wasserstein, score_distribution])
def test_half_precision_is_computed_in_float32(term) -> None:  # type: ignore[no-untyped-def]
    anchor, reference = scores(4, 0, torch.bfloat16) / 4, scores(6, 1, torch.bfloat16)
    value = term(anchor, reference)
    assert value.dtype == torch.float32
    assert value > 0
    assert value.item() == pytest.approx(term(anchor.double(), reference.double()).item(), rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (2, 5)])
@pytest.mark.parametrize("shift", [-1.0, -0.05, 0.0, 0.05, 1.0])
def test_score_gap_penalty_is_what_the_anchor_mean_lacks_and_moves_nothing(n: int, m: int, shift: float) -> None:
    anchor, reference = scores(n, 0).requires_grad_(), (scores(m, 1) + shift).requires_grad_()
    value = score_gap_penalty(anchor, reference)
    assert value.item() == pytest.approx(max(sum(reference.tolist()) / m - sum(anchor.tolist()) / n, 0))
    assert not value.requires_grad


def test_score_gap_penalty_of_equal_and_absent_scores_is_zero() -> None:
    for anchor, reference in [(scores(0, 0), scores(3, 0)), (scores(3, 0), scores(0, 0)), (scores(3, 0), scores(3, 0))]:
        assert score_gap_penalty(anchor.requires_grad_(), reference).item() == 0


def test_score_gap_penalty_of_half_precision_is_computed_in_float32() -> None:
    anchor, reference = scores(4, 0, torch.float16) / 4, scores(6, 1, torch.float16)
    value = score_gap_penalty(anchor, reference)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(float(reference.double().mean() - anchor.double().mean()), rel=1e-5)
