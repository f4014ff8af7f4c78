import copy
import io
import math

import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn import functional as F

from faap.objectives import Adversary, adversarial_confusion
from faap.objectives.adversarial import Settings


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


def features(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def adversary(dtype: torch.dtype = torch.float64) -> Adversary:
    torch.manual_seed(3)
    return Adversary(8, Settings(lr_d=1e-2)).to(dtype)


def by_hand(rival: nn.Sequential, anchor: Tensor, reference: Tensor, entropy_weight: float, share: float) -> float:
    total = 0.0
    for images, label, weight in ((anchor, 1, 1.0), (reference, 0, share)):
        rows = log_softmax(rival(images).detach().numpy(), axis=1) if len(images) else []
        terms = [-(-row[label] + entropy_weight * entropy([math.exp(value) for value in row])) for row in rows]
        total += weight * sum(terms) / max(len(terms), 1)
    return float(total)


def separate_copy(player: Adversary, learning_rate: float) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    rival = copy.deepcopy(player.discriminator)
    return rival, torch.optim.Adam(rival.parameters(), lr=learning_rate)


def train_by_hand(
    rival: nn.Sequential, optimizer: torch.optim.Optimizer, anchor: Tensor, reference: Tensor, steps: int
) -> float:
    for _ in range(steps):
        logits = rival(torch.cat([anchor, reference]).detach())
        loss = F.cross_entropy(logits, torch.tensor([1] * len(anchor) + [0] * len(reference)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_the_discriminator_is_the_spec() -> None:
    layers = list(Adversary(8, Settings()).discriminator)
    kinds = [nn.LayerNorm, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)] == [
        (256, 8),
        (256, 256),
        (2, 256),
    ]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (1, 4), (4, 0), (0, 2)])
@pytest.mark.parametrize(("entropy_weight", "share"), [(0.2, 0.5), (0.0, 1.0), (0.7, 0.0)])
def test_the_term_equals_a_loop(n: int, m: int, entropy_weight: float, share: float) -> None:
    player = Adversary(8, Settings(adv_entropy_weight=entropy_weight, adv_reference_weight=share)).double().eval()
    value = player(features(n, 0), features(m, 1))
    expected = by_hand(player.discriminator, features(n, 0), features(m, 1), entropy_weight, share)
    assert value.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (2, 5), (3, 0), (0, 3)])
def test_a_batch_is_four_steps_of_adam_and_then_the_term(n: int, m: int) -> None:
    torch.manual_seed(0)
    player = Adversary(8, Settings()).double()
    rival, optimizer = separate_copy(player, 1e-4)
    for number in range(3):
        anchor, reference = features(n, 2 * number), features(m, 2 * number + 1)
        value = player(anchor, reference)
        last = train_by_hand(rival, optimizer, anchor, reference, 4)
        assert value.item() == pytest.approx(by_hand(rival, anchor, reference, 0.2, 0.5), rel=1e-12)
        assert player.monitored()["discriminator"].item() == pytest.approx(last, rel=1e-12)
        for mine, other in zip(player.discriminator.parameters(), rival.parameters(), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("steps", [1, 7])
def test_steps_and_learning_rate_are_settings(steps: int) -> None:
    player = Adversary(8, Settings(adv_steps=steps, lr_d=3e-3)).double()
    rival, optimizer = separate_copy(player, 3e-3)
    player(features(3, 0), features(2, 1))
    train_by_hand(rival, optimizer, features(3, 0), features(2, 1), steps)
    assert torch.equal(player.discriminator[-1].weight, rival[-1].weight)


def test_the_discriminator_learns_to_tell_the_groups_apart() -> None:
    player = adversary()
    tilt = torch.linspace(-3, 3, 8, dtype=torch.float64)
    for number in range(20):
        player(features(4, 2 * number) + tilt, features(4, 2 * number + 1) - tilt)
    assert player.monitored()["discriminator"] < 0.1 < math.log(2)
    assert (player.discriminator(features(9, 100) + tilt).argmax(1) == 1).all()
    assert (player.discriminator(features(9, 101) - tilt).argmax(1) == 0).all()


def test_in_evaluation_the_discriminator_stays() -> None:
    player = adversary().eval()
    before = {name: value.clone() for name, value in player.named_parameters()}
    player(features(3, 0), features(2, 1))
    assert all(torch.equal(before[name], value) for name, value in player.named_parameters())
    assert not player.optimizer.state


def test_the_gradient_equals_finite_differences() -> None:
    player = adversary()
    player(features(4, 2), features(4, 3))
    player.eval()
    both = features(3, 0).requires_grad_(), features(2, 1).requires_grad_()
    assert torch.autograd.gradcheck(player, both)


def test_the_term_moves_the_features_and_no_weight_and_the_steps_the_reverse() -> None:
    player = adversary()
    generator = nn.Linear(8, 8).double()
    both = generator(features(5, 0))
    player.update(both[:3], both[3:])
    assert generator.weight.grad is None
    for parameter in player.discriminator.parameters():
        parameter.grad = None
    player.eval()
    player(both[:3], both[3:]).backward()
    assert generator.weight.grad is not None
    assert generator.weight.grad.any()
    assert all(parameter.grad is None for parameter in player.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in player.discriminator.parameters())


def test_the_steps_are_made_where_gradients_are_off() -> None:
    player, other = adversary(), adversary()
    with torch.no_grad():
        value = player(features(3, 0), features(2, 1))
    assert value.item() == other(features(3, 0), features(2, 1)).item()


def test_a_step_along_the_gradient_makes_the_discriminator_less_sure() -> None:
    player = adversary()
    player(features(4, 0), features(4, 1))
    player.eval()
    anchor, reference = features(4, 0).requires_grad_(), features(4, 1).requires_grad_()
    player(anchor, reference).backward()
    for images, group in ((anchor, 1), (reference, 0)):
        assert images.grad is not None
        moved = images - 0.1 * images.grad
        sure, less_sure = (player.discriminator(x).log_softmax(1)[:, group].mean() for x in (images, moved))
        assert less_sure < sure


def test_it_goes_on_from_a_file_to_the_bit() -> None:
    batches = [(features(3, 2 * k, torch.float32), features(2, 2 * k + 1, torch.float32)) for k in range(5)]
    whole, first = adversary(torch.float32), adversary(torch.float32)
    values = [whole(*batch).item() for batch in batches]
    for batch in batches[:2]:
        first(*batch)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    second = Adversary(8, Settings(lr_d=1e-2))
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [second(*batch).item() for batch in batches[2:]] == values[2:]
    for mine, other in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("same", [False, True])
def test_small_and_equal_batches_are_finite(n: int, m: int, same: bool) -> None:
    player = adversary()
    both = torch.cat([features(n, 0), features(m, 1)]) * (0.0 if same else 1.0)
    both.requires_grad_()
    for _ in range(3):
        value = player(both[:n], both[n:])
        both.grad = None
        value.backward()
        assert value.isfinite()
        assert both.grad is not None
        assert both.grad.isfinite().all()
    assert (value.item() == 0) == (n + m == 0)
    assert bool(player.optimizer.state) == (n + m > 0)  # without an image there is no step
    assert all(parameter.isfinite().all() for parameter in player.parameters())


def test_half_precision_is_computed_in_float32() -> None:
    player = adversary(torch.float32)
    anchor = features(3, 0, torch.bfloat16).requires_grad_()
    value = player(anchor, features(2, 1, torch.bfloat16))
    value.backward()
    assert value.dtype == torch.float32
    assert anchor.grad is not None
    assert anchor.grad.isfinite().all()
