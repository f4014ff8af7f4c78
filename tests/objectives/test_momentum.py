import io
import math

import pytest
import torch
from scipy.special import expit, logsumexp
from torch import Tensor
from torch.nn import functional as F

from faap.objectives import MomentumContrast, momentum_infonce, query_weights


def units(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def loop_momentum(query: Tensor, centroid: Tensor, queue: Tensor, temperature: float, weights: list[float]) -> float:
    losses = []
    for z, weight in zip(query, weights, strict=True):
        positive = math.exp(float(z @ centroid) / temperature)
        negatives = sum(math.exp(float(z @ past) / temperature) for past in queue)
        losses.append(-weight * math.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


class LoopMemory:
    """The queue as a list, the centroid as a list of numbers, and the loss of each batch query by query."""

    def __init__(self, size: int, momentum: float) -> None:
        self.size, self.momentum = size, momentum
        self.queue: list[list[float]] = []
        self.centroid = [0.0] * 6

    def update(self, anchor: Tensor, reference: Tensor) -> None:
        for feature in anchor.tolist():
            self.queue.append(feature)
            if len(self.queue) > self.size:
                self.queue.pop(0)
        if len(reference):
            mean = [sum(column) / len(reference) for column in reference.T.tolist()]
            mixed = [self.momentum * c + (1 - self.momentum) * v for c, v in zip(self.centroid, mean, strict=True)]
            length = math.sqrt(sum(value**2 for value in mixed))
            self.centroid = [value / length for value in mixed]

    def loss(self, anchor: Tensor, low: list[float], high: list[float], temperature: float, alpha: float) -> float:
        losses = []
        for query, score in zip(anchor.tolist(), low, strict=True):
            keys = [self.centroid, *self.queue]
            logits = [sum(x * y for x, y in zip(query, key, strict=True)) / temperature for key in keys]
            weight = 1 + alpha * expit(5 * (sum(high) / len(high) - score))
            losses.append(weight * (logsumexp(logits) - logits[0]))
        return float(sum(losses) / len(losses))


def scores(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def memory(size: int = 5, temperature: float = 0.07, momentum: float = 0.99) -> MomentumContrast:
    return MomentumContrast(6, temperature, size, momentum).double()


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


# batches of 3 anchor images fit, overflow at once (1, 2), overflow in the middle (4, 7) or fill exactly (6)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7, 2048])
@pytest.mark.parametrize(("temperature", "momentum", "alpha"), [(0.07, 0.99, 1.0), (0.5, 0.0, 0.3), (0.2, 0.6, 0.0)])
def test_several_batches_equal_a_loop(size: int, temperature: float, momentum: float, alpha: float) -> None:
    contrast, loop = memory(size, temperature, momentum), LoopMemory(size, momentum)
    for number, (n, m) in enumerate([(3, 3), (3, 1), (1, 4), (3, 2), (5, 3), (3, 3)]):
        anchor, reference = units(n, 2 * number), units(m, 2 * number + 1)
        low, high = scores(n, number), scores(m, 100 + number)
        value = contrast(anchor, reference, query_weights(low, high, alpha))
        loop.update(anchor, reference)
        expected = loop.loss(anchor, low.tolist(), high.tolist(), temperature, alpha)
        assert value.item() == pytest.approx(expected, rel=1e-9)
        assert contrast.centroid.tolist() == pytest.approx(loop.centroid, rel=1e-12)
        assert contrast.centroid.norm().item() == pytest.approx(1, rel=1e-12)
        held = contrast.queue[: len(loop.queue)]
        assert sorted(held.tolist()) == sorted(loop.queue)
        assert contrast.monitored()["queue"].item() == len(loop.queue)


def test_the_defaults_are_the_recipes() -> None:
    contrast = MomentumContrast(6, 0.07)
    assert contrast.queue.shape == (2048, 6)
    contrast(units(1, 0).float(), units(1, 1).float())
    before = contrast.centroid.clone()
    contrast(units(1, 0).float(), units(1, 2).float())
    assert torch.allclose(contrast.centroid, F.normalize(0.99 * before + 0.01 * units(1, 2)[0].float(), dim=0))


def test_a_batch_is_remembered_before_its_loss() -> None:
    anchor, reference = units(2, 0), units(2, 1)
    centroid = F.normalize(reference.mean(0), dim=0)
    value = memory()(anchor, reference).item()
    assert value == pytest.approx(momentum_infonce(anchor, centroid, anchor, 0.07).item())
    assert value > momentum_infonce(anchor, centroid, anchor[:0], 0.07).item() == 0


def test_in_evaluation_nothing_is_remembered() -> None:
    contrast = memory()
    contrast(units(3, 0), units(3, 1))
    before = {name: value.clone() for name, value in contrast.state_dict().items()}
    contrast.eval()
    value = contrast(units(2, 2), units(2, 3)).item()
    assert all(torch.equal(before[name], value) for name, value in contrast.state_dict().items())
    assert value == pytest.approx(momentum_infonce(units(2, 2), before["centroid"], before["queue"][:3], 0.07).item())


def test_the_gradient_equals_finite_differences_and_reaches_the_query_alone() -> None:
    contrast = memory(temperature=0.5)
    contrast(units(4, 0), units(3, 1))
    contrast(units(4, 2), units(3, 3))
    weights = query_weights(scores(3, 0), scores(2, 1))
    reference = units(2, 5).requires_grad_()
    low, high = scores(3, 0).requires_grad_(), scores(2, 1).requires_grad_()
    contrast.eval()
    assert torch.autograd.gradcheck(lambda a: contrast(a, reference.detach(), weights), (units(3, 4).requires_grad_(),))
    contrast.train()
    anchor = units(3, 4).requires_grad_()
    contrast(anchor, reference, query_weights(low, high)).backward()
    assert reference.grad is low.grad is high.grad is None
    assert anchor.grad is not None
    assert anchor.grad.abs().sum(1).all()
    assert not any(value.requires_grad for value in contrast.buffers())


def test_a_loss_can_be_differentiated_after_the_next_batch() -> None:
    contrast, fresh = memory(), memory()
    anchor, other = units(3, 0).requires_grad_(), units(3, 0).requires_grad_()
    first = contrast(anchor, units(3, 1))
    contrast(units(3, 2), units(3, 3))
    first.backward()
    fresh(other, units(3, 1)).backward()
    assert anchor.grad is not None
    assert other.grad is not None
    assert torch.equal(anchor.grad, other.grad)


@pytest.mark.parametrize("size", [2, 5, 2048])
def test_it_goes_on_from_a_file_to_the_bit(size: int) -> None:
    batches = [(units(3, 2 * k).float(), units(2, 2 * k + 1).float()) for k in range(6)]
    whole = MomentumContrast(6, 0.07, size)
    losses = [whole(*batch).item() for batch in batches]
    first, second = MomentumContrast(6, 0.07, size), MomentumContrast(6, 0.07, size)
    for batch in batches[:3]:
        first(*batch)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [second(*batch).item() for batch in batches[3:]] == losses[3:]
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (2, 0), (1, 1), (1, 2)])
def test_small_batches_are_finite_first_and_later(n: int, m: int) -> None:
    contrast = memory()
    for first in (True, False):
        both = torch.cat([units(n, 0), units(m, 1)]).requires_grad_()
        value = contrast(both[:n], both[n:], query_weights(scores(n, 0), scores(m, 1)))
        value.backward()
        assert (value.item() == 0) == (n == 0 or (first and m == 0))  # no query, or no centroid yet
        assert both.grad is not None
        assert both.grad.isfinite().all()
        contrast(units(3, 2), units(3, 3))


def test_batches_without_a_group_change_the_other_memory_alone() -> None:
    contrast = memory()
    contrast(units(2, 0), units(2, 1))
    centroid, queue = contrast.centroid.clone(), contrast.queue.clone()
    contrast(units(1, 2), units(0, 0))
    assert torch.equal(contrast.centroid, centroid)
    assert contrast.queue[2].tolist() == units(1, 2)[0].tolist()
    queue = contrast.queue.clone()
    contrast(units(0, 0), units(1, 3))
    assert torch.equal(contrast.queue, queue)
    assert not torch.equal(contrast.centroid, centroid)


def test_equal_vectors_cost_the_log_of_their_number() -> None:
    contrast = memory(size=4, temperature=0.001)
    same = units(1, 0).repeat(3, 1).requires_grad_()
    for held in (3, 4):
        value = contrast(same, same.detach(), torch.full((3,), 1.5, dtype=torch.float64))
        value.backward()
        assert value.item() == pytest.approx(1.5 * math.log(1 + held))
        assert same.grad is not None
        assert same.grad.isfinite().all()


def test_half_precision_is_remembered_in_float32() -> None:
    contrast = MomentumContrast(6, 0.07, 5)
    value = contrast(units(3, 0).bfloat16().requires_grad_(), units(2, 1).bfloat16())
    value.backward()
    assert value.dtype == contrast.queue.dtype == contrast.centroid.dtype == torch.float32
    assert contrast.centroid.norm().item() == pytest.approx(1, abs=1e-6)
