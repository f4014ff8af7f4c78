import numpy as np
import pytest
import torch
from kornia.enhance import adjust_hue
from PIL import Image, ImageEnhance
from torch import Tensor

from faap.data.images import denormalise, normalise
from faap.perturbation.jitter import STRENGTHS, Strength, _draw, _turn_hue, apply, draw


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fixed:
    """Stands in for the random generator: draws the given shares of each range, in the given order."""

    def __init__(self, shares: list[float], order: list[int], grey: float = 1.0) -> None:
        self.shares, self.order, self.grey = iter(shares), order, grey

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.shares)

    def permutation(self, count: int) -> list[int]:
        return self.order

    def random(self) -> float:
        return self.grey


def jitter(images: Tensor, strength: str, seeds: list[tuple[int, int, int]], mask: Tensor | None = None) -> Tensor:
    drawn = draw(strength, seeds)
    return images if drawn is None else apply(images, drawn, mask)


def _jitter_one(image: Tensor, ranges: Strength, rng: np.random.Generator) -> Tensor:
    return denormalise(apply(normalise(image[None]), _draw(ranges, [rng])))[0]


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def unpillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB")) / 255).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("ranges", "enhance"),
    [
        ((0.4, 0, 0, 0, 0), ImageEnhance.Brightness),
        ((0, 0.4, 0, 0, 0), ImageEnhance.Contrast),
        ((0, 0, 0.4, 0, 0), ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_each_operation_is_pillows(ranges: Strength, enhance, share: float) -> None:  # type: ignore[no-untyped-def]
    image = pixels(3, 12, 14)
    rng = Fixed([share if reach else 0.5 for reach in (*ranges[:3], 0)], [0, 1, 2, 3])
    ours = _jitter_one(image, ranges, rng)  # type: ignore[arg-type]
    theirs = unpillow(enhance(pillow(image)).enhance(0.6 + 0.8 * share))
    assert (ours - theirs).abs().max() < 3 / 255


@pytest.mark.parametrize("turn", [-0.1, -0.05, 0.0, 0.03, 0.1, 0.5])
def test_hue_is_kornias(turn: float) -> None:
    image = pixels(3, 40, 40)
    image[:, :5] = image[:1, :5]  # grey
    image[:, 5] = 0
    image[:, 6] = 1
    image[:, 7] = torch.tensor([1.0, 0, 0])[:, None]
    image[0, 8] = image[1, 8]  # two equal channels
    image[1, 9] = image[2, 9]
    assert torch.allclose(_turn_hue(image, turn), adjust_hue(image, 2 * np.pi * turn), atol=1e-6)


def test_strengths_are_the_specs() -> None:
    assert STRENGTHS["none"] is None
    assert STRENGTHS["weak"] == (0.2, 0.2, 0.2, 0.05, 0)
    assert STRENGTHS["medium"] == (0.3, 0.3, 0.3, 0.1, 0)
    assert STRENGTHS["strong"] == (0.4, 0.4, 0.4, 0.1, 0.2)


def test_draws_fill_their_ranges_and_orders_vary() -> None:
    flat = torch.full((1, 3, 1, 1), 0.5)
    seeds = [(0, 0, i) for i in range(400)]
    out = denormalise(jitter(normalise(flat.expand(400, -1, -1, -1)), "weak", seeds))
    # a flat grey image is moved by the brightness alone
    factors = out[:, 0, 0, 0] / 0.5
    assert factors.min() == pytest.approx(0.8, abs=0.01)
    assert factors.max() == pytest.approx(1.2, abs=0.01)
    assert factors.mean() == pytest.approx(1, abs=0.02)
    orders = {tuple(np.random.default_rng([*seed, 1]).permutation(4)) for seed in seeds}
    assert len(orders) == 24


def test_order_matters_and_grey_comes_last() -> None:
    image = pixels(3, 6, 6)
    ranges = (0.4, 0.4, 0.4, 0.1, 0.2)
    one, other = (
        _jitter_one(image, ranges, Fixed([1, 0, 1, 1], order))  # type: ignore[arg-type]
        for order in ([0, 1, 2, 3], [3, 2, 1, 0])
    )
    assert (one - other).abs().max() > 0.02
    grey = _jitter_one(image, ranges, Fixed([1, 0, 1, 1], [0, 1, 2, 3], grey=0.1))  # type: ignore[arg-type]
    assert torch.allclose(grey[0], grey[1])
    assert torch.allclose(grey[0], (one * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0), atol=1e-3)


def test_a_fifth_of_strongly_jittered_images_is_grey() -> None:
    x = normalise(pixels(1, 3, 2, 2).expand(300, -1, -1, -1))
    out = denormalise(jitter(x, "strong", [(1, 2, i) for i in range(300)]))
    grey = (out.amax(1) - out.amin(1)).amax((1, 2)) < 1e-6
    assert 0.13 < grey.double().mean() < 0.27


def test_a_draw_depends_on_its_own_numbers_alone() -> None:
    x = normalise(pixels(3, 3, 8, 10))
    seeds = [(3, 1, 7), (3, 1, 8), (3, 1, 9)]
    together = jitter(x, "medium", seeds)
    assert torch.equal(jitter(x, "medium", seeds), together)
    assert torch.equal(jitter(x.flip(0), "medium", seeds[::-1]), together.flip(0))
    assert torch.equal(jitter(x[1:2], "medium", seeds[1:2]), together[1:2])
    for other in [(4, 1, 7), (3, 2, 7), (3, 1, 6)]:
        assert not torch.equal(jitter(x[:1], "medium", [other]), together[:1])


def test_padding_stays_zero_and_does_not_count() -> None:
    x = normalise(pixels(2, 3, 8, 10))
    mask = torch.ones(2, 8, 10, dtype=torch.bool)
    mask[0, 6:] = False
    mask[1, :, 4:] = False
    batch = x * mask[:, None]
    seeds = [(0, 0, 0), (0, 0, 1)]
    out = jitter(batch, "strong", seeds, mask)
    assert not out[~mask[:, None].expand_as(out)].any()
    assert torch.equal(out[0, :, :6], jitter(x[:1, :, :6], "strong", seeds[:1])[0])
    assert torch.equal(out[1, :, :, :4], jitter(x[1:, :, :, :4], "strong", seeds[1:])[0])


def test_none_changes_nothing() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert jitter(x, "none", [(0, 0, 0), (0, 0, 1)]) is x


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_the_gradient_equals_finite_differences(strength: str) -> None:
    x = normalise(0.3 + 0.4 * pixels(2, 3, 3, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: jitter(y, strength, [(0, 0, 0), (0, 0, 3)]), (x,))


@pytest.mark.parametrize("strength", ["weak", "medium", "strong"])
def test_gradients_are_finite_at_grey_black_white_pure_and_nearly_grey_pixels(strength: str) -> None:
    colours = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 1), (1, 1, 0.999999), (0.2, 0.2, 0.7)]
    nearly = [(0.5, 0.5, 0.5 + 1e-7), (1e-7, 0, 0), (1e-20, 0, 0), (1e-38, 0, 0), (1e-42, 0, 0)]
    image = torch.tensor([*colours, *nearly], dtype=torch.float32).T.reshape(1, 3, 3, 4)
    out = image.new_zeros(())
    x = image.expand(20, -1, -1, -1).clone().requires_grad_()
    for image_pixels, i in zip(x, range(20), strict=True):
        out = out + _jitter_one(image_pixels, STRENGTHS[strength], np.random.default_rng(i)).square().sum()  # type: ignore[arg-type]
    out.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 100
    y = normalise(image).expand(20, -1, -1, -1).clone().requires_grad_()
    jitter(y, strength, [(0, 0, i) for i in range(20)]).sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()
    assert y.grad.abs().sum() > 0


def test_autocast_does_not_lower_the_precision() -> None:
    x = normalise(pixels(2, 3, 8, 8)).float()
    seeds = [(0, 0, 0), (0, 0, 1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = jitter(x, "weak", seeds)
    assert torch.equal(out, jitter(x, "weak", seeds))
