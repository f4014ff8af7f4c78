import math
from collections.abc import Callable

import pytest
import torch
from scipy.special import expit, logsumexp, softmax
from torch import Tensor
from torch.nn import functional as F

from faap.objectives import (
    cross_group_similarity,
    infonce,
    pair_log_weights,
    reference_log_weights,
    similarity_statistics,
)


def units(n: int, d: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def scores(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop_infonce(anchor: Tensor, reference: Tensor, temperature: float, log_weights: Tensor | None = None) -> float:
    """−log(Σ positives / (Σ positives + Σ negatives)), pair by pair in Python's floats."""
    a, r = anchor.tolist(), reference.tolist()
    losses = []
    for i, query in enumerate(a):
        positives = negatives = 0.0
        for j, key in enumerate(r):
            weight = 1.0 if log_weights is None else math.exp(log_weights[i, j].item())
            positives += weight * math.exp(sum(x * y for x, y in zip(query, key, strict=True)) / temperature)
        for k, key in enumerate(a):
            if k != i:
                negatives += math.exp(sum(x * y for x, y in zip(query, key, strict=True)) / temperature)
        losses.append(-math.log(positives / (positives + negatives)))
    return sum(losses) / len(losses)


def loop_3rd(anchor: Tensor, reference: Tensor, scores: tuple[list[float], list[float]], temperature: float) -> float:
    """Both directions from features and scores: 1.5 times the weighted one to the reference, 0.5 times the one back."""

    def one_way(rows: list[list[float]], columns: list[list[float]], weight: Callable[[int, int], float]) -> float:
        if len(rows) < 2 or not columns:
            return 0.0
        losses = []
        for i, row in enumerate(rows):
            positives = sum(
                weight(i, j) * math.exp(sum(x * y for x, y in zip(row, c, strict=True)) / temperature)
                for j, c in enumerate(columns)
            )
            negatives = sum(
                math.exp(sum(x * y for x, y in zip(row, other, strict=True)) / temperature)
                for k, other in enumerate(rows)
                if k != i
            )
            losses.append(math.log(positives + negatives) - math.log(positives))
        return sum(losses) / len(losses)

    a, r, (low, high) = anchor.tolist(), reference.tolist(), scores
    to_reference = one_way(a, r, lambda i, j: 0.5 + float(expit(5 * (high[j] - low[i]))))
    return 1.5 * to_reference + 0.5 * one_way(r, a, lambda i, j: 1.0)


def loop_fix2(anchor: Tensor, reference: Tensor, reference_scores: list[float], temperature: float) -> float:
    """From features and scores: log of (positives + negatives) over the positives weighted by n·softmax(5·s)."""
    weights = len(reference_scores) * softmax([5 * score for score in reference_scores])
    losses = []
    for i, query in enumerate(anchor):
        positives = [float(query @ key) / temperature for key in reference]
        negatives = [float(query @ key) / temperature for k, key in enumerate(anchor) if k != i]
        losses.append(logsumexp(positives + negatives) - logsumexp(positives, b=weights))
    return float(sum(losses) / len(losses))


def loop_similarity(anchor: Tensor, reference: Tensor, temperature: float) -> float:
    def one_way(rows: list[list[float]], columns: list[list[float]]) -> float:
        total = 0.0
        for row in rows:
            mean = sum(math.exp(sum(x * y for x, y in zip(row, c, strict=True)) / temperature) for c in columns)
            total -= math.log(mean / len(columns))
        return total / len(rows)

    a, r = anchor.tolist(), reference.tolist()
    return (one_way(a, r) + one_way(r, a)) / 2


@pytest.mark.parametrize(("n", "m"), [(2, 1), (2, 3), (4, 4), (7, 2)])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_infonce_equals_a_double_loop(n: int, m: int, temperature: float, weighted: bool) -> None:
    anchor, reference = units(n), units(m, seed=1)
    log_weights = torch.randn(n, m, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    value = infonce(anchor, reference, temperature, log_weights=log_weights if weighted else None)
    expected = loop_infonce(anchor, reference, temperature, log_weights if weighted else None)
    assert value.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (1, 2), (2, 3), (4, 4), (5, 2)])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_both_directions_weighted_by_scores_equal_a_double_loop(n: int, m: int, temperature: float) -> None:
    anchor, reference = units(n), units(m, seed=1)
    low, high = scores(n, 2), scores(m, 3)
    value = 1.5 * infonce(
        anchor, reference, temperature, detach_reference=False, log_weights=pair_log_weights(low, high)
    ) + 0.5 * infonce(reference, anchor, temperature, detach_reference=False)
    expected = loop_3rd(anchor, reference, (low.tolist(), high.tolist()), temperature)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    assert expected > 0


@pytest.mark.parametrize(("n", "m"), [(2, 1), (2, 3), (4, 4), (7, 2)])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_weights_in_the_numerator_equal_a_loop(n: int, m: int, temperature: float) -> None:
    anchor, reference, high = units(n), units(m, seed=1), scores(m, 3)
    value = infonce(
        anchor, reference, temperature, log_weights=reference_log_weights(high), weights_in="numerator"
    ).item()
    assert value == pytest.approx(loop_fix2(anchor, reference, high.tolist(), temperature), rel=1e-10)
    without = infonce(anchor, reference, temperature).item()
    assert (value == pytest.approx(without, rel=1e-12)) == (m == 1)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (4, 4), (3, 5)])
def test_uniform_weights_in_the_numerator_change_nothing(n: int, m: int) -> None:
    anchor, reference = units(n), units(m, seed=1)
    expected = infonce(anchor, reference, 0.07).item()
    for weights in (reference_log_weights(torch.full((m,), 0.37, dtype=torch.float64)), torch.zeros(m).double()):
        value = infonce(anchor, reference, 0.07, log_weights=weights, weights_in="numerator").item()
        assert value == pytest.approx(expected, abs=1e-13)


def test_weights_in_the_numerator_alone_can_bring_infonce_below_zero() -> None:
    angle = math.pi / 6  # both anchor images lie near the reference image of weight 1.99, at 60 degrees to each other
    anchor = torch.tensor([[math.cos(angle), math.sin(angle)], [math.cos(angle), -math.sin(angle)]]).double()
    reference = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    weights = reference_log_weights(torch.tensor([1.0, 0.0], dtype=torch.float64))
    value = infonce(anchor, reference, 0.07, log_weights=weights, weights_in="numerator").item()
    assert value == pytest.approx(loop_fix2(anchor, reference, [1.0, 0.0], 0.07), rel=1e-9)
    assert -math.log(2) < value < -0.6
    assert infonce(anchor, reference, 0.07, log_weights=weights).item() > 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 3), (3, 1), (4, 4), (2, 5)])
def test_cross_group_similarity_equals_a_double_loop(n: int, m: int) -> None:
    anchor, reference = units(n), units(m, seed=1)
    value = cross_group_similarity(anchor, reference, 0.1)
    assert value.item() == pytest.approx(loop_similarity(anchor, reference, 0.1), rel=1e-10)


def test_cross_group_similarity_is_lowest_for_equal_vectors() -> None:
    same = units(1).expand(3, -1)
    assert cross_group_similarity(same, same[:2], 0.1).item() == pytest.approx(-10)
    assert cross_group_similarity(same, -same[:2], 0.1).item() == pytest.approx(10)


def test_gradients_equal_finite_differences() -> None:
    anchor, reference = units(3).requires_grad_(), units(2, seed=1).requires_grad_()
    weights = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, r, w: infonce(a, r, 0.5, detach_reference=False, log_weights=w), (anchor, reference, weights)
    )
    assert torch.autograd.gradcheck(
        lambda a, r, w: infonce(a, r, 0.5, detach_reference=False, log_weights=w, weights_in="numerator"),
        (anchor, reference, weights),
    )
    assert torch.autograd.gradcheck(lambda a: infonce(a, reference.detach(), 0.5), (anchor,))
    assert torch.autograd.gradcheck(lambda a, r: cross_group_similarity(a, r, 0.5), (anchor, reference))


@pytest.mark.parametrize("weights_in", [None, "both", "numerator"])
def test_infonce_moves_the_reference_only_when_asked_to(weights_in) -> None:  # type: ignore[no-untyped-def]
    anchor, reference = units(3).requires_grad_(), units(2, seed=1).requires_grad_()
    weighting = {} if weights_in is None else {"log_weights": scores(2, 0), "weights_in": weights_in}
    infonce(anchor, reference, 0.1, **weighting).backward()
    assert reference.grad is None
    assert anchor.grad is not None
    assert anchor.grad.abs().sum() > 0
    infonce(anchor, reference, 0.1, detach_reference=False, **weighting).backward()
    assert reference.grad is not None
    assert reference.grad.abs().sum() > 0


@pytest.mark.parametrize("weights_in", ["both", "numerator"])
def test_scores_that_weigh_get_no_gradient(weights_in) -> None:  # type: ignore[no-untyped-def]
    anchor, reference = units(3).requires_grad_(), units(2, seed=1)
    low, high = scores(3, 2).requires_grad_(), scores(2, 3).requires_grad_()
    weights = pair_log_weights(low, high) if weights_in == "both" else reference_log_weights(high)
    infonce(anchor, reference, 0.1, log_weights=weights, weights_in=weights_in).backward()
    assert low.grad is None
    assert high.grad is None
    assert anchor.grad is not None


def test_infonce_in_one_batch_tensor_leaves_the_reference_rows_alone() -> None:
    features = units(6).requires_grad_()
    infonce(features[:3], features[3:], 0.1).backward()
    assert features.grad is not None
    assert torch.equal(features.grad[3:], torch.zeros(3, 6, dtype=torch.float64))


def test_a_step_along_the_gradient_brings_anchors_nearer_to_references_and_apart() -> None:
    anchor, reference = units(4).requires_grad_(), units(4, seed=1)
    infonce(anchor, reference, 0.5).backward()
    assert anchor.grad is not None
    moved = F.normalize(anchor.detach() - 0.1 * anchor.grad, dim=1)
    before, after = similarity_statistics(anchor, reference), similarity_statistics(moved, reference)
    assert after[0] > before[0]
    assert after[1] < before[1]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (1, 3), (1, 0), (4, 0)])
@pytest.mark.parametrize("weights_in", [None, "both", "numerator"])
def test_infonce_without_a_pair_is_zero_and_can_be_differentiated(n: int, m: int, weights_in) -> None:  # type: ignore[no-untyped-def]
    features = torch.cat([units(n), units(m, seed=1)]).requires_grad_()
    weighting = {} if weights_in is None else {"log_weights": scores(m, 0), "weights_in": weights_in}
    value = infonce(features[:n], features[n:], 0.1, **weighting)
    value.backward()
    assert value.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (4, 0)])
def test_cross_group_similarity_without_a_group_is_zero(n: int, m: int) -> None:
    features = torch.cat([units(n), units(m, seed=1)]).requires_grad_()
    value = cross_group_similarity(features[:n], features[n:], 0.1)
    value.backward()
    assert value.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 0.001])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, temperature: float) -> None:
    anchor, reference = units(4, dtype=dtype).requires_grad_(), units(3, seed=1, dtype=dtype)
    value = infonce(anchor, reference, temperature)
    value.backward()
    assert value.dtype == torch.float32
    assert anchor.grad is not None
    assert anchor.grad.isfinite().all()
    # a similarity of 1 at temperature 0.001 is an exponent of 1000, beyond any float: lse by the largest term
    exact = infonce(anchor.detach().double(), reference.double(), temperature).item()
    assert value.item() == pytest.approx(exact, rel=1e-3, abs=1e-5)


def test_autocast_does_not_lower_the_precision() -> None:
    anchor, reference = units(4, dtype=torch.float32), units(3, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = infonce(anchor, reference, 0.07), cross_group_similarity(anchor, reference, 0.07)
    assert values[0].item() == infonce(anchor, reference, 0.07).item()
    assert values[1].item() == cross_group_similarity(anchor, reference, 0.07).item()


@pytest.mark.parametrize("temperature", [0.1, 0.001])
def test_infonce_of_equal_vectors_is_the_log_of_their_share(temperature: float) -> None:
    anchor = units(1, dtype=torch.float32).repeat(4, 1).requires_grad_()
    value = infonce(anchor, anchor.detach()[:2], temperature)
    value.backward()
    assert value.item() == pytest.approx(math.log((2 + 3) / 2), rel=1e-4)
    assert anchor.grad is not None
    assert anchor.grad.isfinite().all()


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("temperature", [0.07, 0.001])
def test_weighted_infonce_of_equal_vectors_is_the_log_of_their_share(m: int, temperature: float) -> None:
    anchor = units(1, dtype=torch.float32).repeat(4, 1).requires_grad_()
    log_weights = torch.tensor([0.3, -0.9][:m])
    both = infonce(anchor, anchor.detach()[:m], temperature, log_weights=log_weights)
    numerator = infonce(anchor, anchor.detach()[:m], temperature, log_weights=log_weights, weights_in="numerator")
    (both + numerator).backward()
    weight = sum(math.exp(value) for value in log_weights.tolist())
    # to float32 beside a similarity of 1 at temperature 0.001, an exponent of 1000
    assert both.item() == pytest.approx(math.log((weight + 3) / weight), abs=1e-3)
    assert numerator.item() == pytest.approx(math.log((m + 3) / weight), abs=1e-3)
    assert anchor.grad is not None
    assert anchor.grad.isfinite().all()


def test_similarity_statistics_are_means_over_pairs() -> None:
    anchor, reference = units(4), units(3, seed=1)
    f2m, f2f = similarity_statistics(anchor.clone().requires_grad_(), reference)
    between = [float(a @ r) for a in anchor for r in reference]
    within = [float(anchor[i] @ anchor[k]) for i in range(4) for k in range(4) if i != k]
    assert f2m.item() == pytest.approx(sum(between) / len(between))
    assert f2f.item() == pytest.approx(sum(within) / len(within))
    assert not f2m.requires_grad
    assert not f2f.requires_grad


def test_similarity_statistics_without_pairs_are_nan() -> None:
    f2m, f2f = similarity_statistics(units(1), units(2, seed=1))
    assert f2m.isfinite()
    assert f2f.isnan()
    assert all(value.isnan() for value in similarity_statistics(units(0), units(2)))
    assert similarity_statistics(units(3), units(0))[0].isnan()
