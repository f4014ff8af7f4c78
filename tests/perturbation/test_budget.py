import numpy as np
import torch

from faap.data.images import MEAN, STD
from faap.perturbation import quantise
from faap.perturbation.budget import add_within_budget


def test_quantise_is_what_saving_and_reading_eight_bits_does() -> None:
    pixels = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    saved = np.rint(pixels.numpy() * 255).astype(np.uint8)
    expected = (saved.astype(np.float64) / 255 - mean) / std
    rounded = quantise((pixels - torch.tensor(mean)) / torch.tensor(std))
    assert np.allclose(rounded.numpy(), expected, atol=1e-12)
    assert torch.allclose(quantise(rounded), rounded, atol=1e-12)
    single = quantise(((pixels - torch.tensor(mean)) / torch.tensor(std)).float())
    assert np.allclose(single.numpy(), expected, atol=1e-6)


def test_values_beyond_black_and_white_are_cut_off() -> None:
    far = quantise(torch.full((1, 3, 2, 2), 50.0))
    assert torch.allclose(far, torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)])[:, None, None])
    assert torch.allclose(quantise(-far - 50), quantise(torch.full((1, 3, 2, 2), -3.0)))


def test_gradient_of_the_budget_is_that_of_tanh_and_stops_at_the_bounds() -> None:
    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    x[..., 3] = (1 - MEAN[0]) / STD[0] + 1  # beyond white in red, so that no perturbation moves it
    raw = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[:, 3] = False
    assert torch.autograd.gradcheck(lambda r: add_within_budget(x, r, 0.1, mask), (raw,))
    add_within_budget(x, raw, 0.1, mask).sum().backward()
    assert raw.grad is not None
    assert torch.allclose(raw.grad[:, :, :3, :3], 0.1 * (1 - raw.detach().tanh()[:, :, :3, :3] ** 2))
    assert not raw.grad[:, :, 3].any()
    assert not raw.grad[0, 0, :, 3].any()
