"""The first convolution's own way back is the plain one's."""

import copy

import pytest
import torch
from torch import nn

from faap.detectors import load_detector
from faap.detectors.stem import Stem


def stem_of(plain: nn.Conv2d) -> nn.Conv2d:
    stem = copy.deepcopy(plain).requires_grad_(False)
    stem.__class__ = Stem
    return stem


def found_by(module: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes out, and a gradient that differs in every pixel."""
    image = image.clone().requires_grad_()
    out = module(image)
    out.mul(torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out, image.grad


@pytest.mark.parametrize("size", [(24, 32), (25, 31), (7, 8), (1, 2)])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("channels", [1, 3])
def test_output_and_gradient_are_the_plain_convolutions(kernel, size, channels):
    plain = nn.Conv2d(channels, 5, kernel, stride=2, padding=kernel // 2, bias=kernel != 3).double()
    image = torch.randn(2, channels, *size, dtype=torch.float64)
    assert Stem.suits(plain)
    expected, gradient = found_by(plain, image)
    out, own = found_by(stem_of(plain), image)
    assert torch.equal(out, expected)
    torch.testing.assert_close(own, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_in_float32_they_differ_by_rounding(layout):
    plain = nn.Conv2d(3, 24, 7, stride=2, padding=3).to(memory_format=layout)
    image = torch.randn(4, 3, 64, 80).contiguous(memory_format=layout)
    expected, gradient = found_by(plain, image)
    out, own = found_by(stem_of(plain), image)
    assert torch.equal(out, expected)
    torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_half_precision_comes_back_as_what_went_in():
    plain, image = nn.Conv2d(3, 8, 7, stride=2, padding=3), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, gradient = found_by(plain, image)
        out, own = found_by(stem_of(plain), image)
    assert torch.equal(out, expected)
    assert own.dtype == torch.float32
    torch.testing.assert_close(own, gradient, rtol=0.05, atol=0.02 * float(gradient.abs().max()))


def test_weights_that_are_trained_get_their_gradient():
    stem = stem_of(nn.Conv2d(3, 8, 7, stride=2, padding=3)).requires_grad_()
    stem(torch.randn(1, 3, 16, 16, requires_grad=True)).sum().backward()
    assert stem.weight.grad is not None


def options(**changed):
    return {"in_channels": 3, "out_channels": 8, "kernel_size": 7, "stride": 2, "padding": 3} | changed


@pytest.mark.parametrize(
    "changed",
    [
        {"stride": 1},
        {"stride": 4},
        {"padding": 2},
        {"padding": (3, 2)},
        {"kernel_size": 6},
        {"kernel_size": (7, 3), "padding": (3, 1)},
        {"dilation": 2},
        {"groups": 3, "out_channels": 9},
        {"padding_mode": "reflect"},
        {"in_channels": 16},
        {"stride": (2, 1)},
    ],
)
def test_other_convolutions_stay(changed):
    assert Stem.suits(nn.Conv2d(**options()))
    assert not Stem.suits(nn.Conv2d(**options(**changed)))


def test_a_subclass_may_do_more_and_stays():
    assert not Stem.suits(type("Own", (nn.Conv2d,), {})(**options()))


def test_the_embedded_detectors_image_is_read_by_one():
    stems = [each for each in load_detector("promenade").modules() if isinstance(each, Stem)]
    assert [each.in_channels for each in stems] == [3]
