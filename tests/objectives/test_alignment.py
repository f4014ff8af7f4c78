import statistics

import pytest
import torch
from torch import Tensor

from faap.objectives import mean_alignment, variance_alignment


def features(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (2, 7)])
def test_mean_alignment_equals_a_loop(n: int, m: int) -> None:
    anchor, reference = features(n, 0), features(m, 1)
    squares = [
        (statistics.fmean(a) - statistics.fmean(r)) ** 2
        for a, r in zip(anchor.T.tolist(), reference.T.tolist(), strict=True)
    ]
    value = mean_alignment(anchor, reference, detach_reference=True)
    assert value.item() == pytest.approx(statistics.fmean(squares))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (4, 4), (2, 7)])
def test_variance_alignment_equals_a_loop(n: int, m: int) -> None:
    anchor, reference = features(n, 0), features(m, 1)
    squares = [
        (statistics.variance(a) - statistics.variance(r)) ** 2
        for a, r in zip(anchor.T.tolist(), reference.T.tolist(), strict=True)
    ]
    assert variance_alignment(anchor, reference).item() == pytest.approx(statistics.fmean(squares))


def test_gradients_equal_finite_differences() -> None:
    anchor, reference = features(3, 0).requires_grad_(), features(2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, r: mean_alignment(a, r, detach_reference=False), (anchor, reference))
    assert torch.autograd.gradcheck(variance_alignment, (anchor, reference))


def test_the_reference_mean_is_detached_when_asked_for() -> None:
    anchor, reference = features(3, 0).requires_grad_(), features(2, 1).requires_grad_()
    mean_alignment(anchor, reference, detach_reference=True).backward()
    assert reference.grad is None
    assert anchor.grad is not None
    assert anchor.grad.abs().sum() > 0
    mean_alignment(anchor, reference, detach_reference=False).backward()
    assert reference.grad is not None
    assert reference.grad.abs().sum() > 0


@pytest.mark.parametrize(("n", "m", "mean_is_zero"), [(0, 3, True), (3, 0, True), (0, 0, True), (1, 3, False)])
def test_too_few_images_give_zero(n: int, m: int, mean_is_zero: bool) -> None:
    both = torch.cat([features(n, 0), features(m, 1)]).requires_grad_()
    mean = mean_alignment(both[:n], both[n:], detach_reference=False)
    variance = variance_alignment(both[:n], both[n:])
    (mean + variance).backward()
    assert (mean.item() == 0) == mean_is_zero
    assert variance.item() == 0
    assert both.grad is not None
    assert both.grad.isfinite().all()


def test_half_precision_is_averaged_in_float32() -> None:
    # 4096 times 20 overflows float16, and 0.1 vanishes beside a large bfloat16
    anchor = torch.full((4096, 2), 20.0, dtype=torch.float16)
    value = mean_alignment(anchor, torch.full((3, 2), 19.0, dtype=torch.float16), detach_reference=True)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1)
    wide = torch.tensor([[300.0], [-300.0]], dtype=torch.float16)
    assert variance_alignment(wide, wide * 0).item() == pytest.approx(180000.0**2)
