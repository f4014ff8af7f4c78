"""PSNR and SSIM by another route."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from faap.evaluation import image_quality


def reference_ssim(first, second):
    """Wang et al.'s formula in double precision with SciPy's Gaussian filter, one channel at a time."""
    maps = []
    for x, y in zip(first.double().numpy(), second.double().numpy(), strict=True):

        def smooth(values):
            return gaussian_filter(values, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

        mean_x, mean_y = smooth(x), smooth(y)
        var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
        covariance = smooth(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        maps.append(luminance * (2 * covariance + 9e-4) / (var_x + var_y + 9e-4))
    return np.mean(maps)


def test_against_scipy_and_by_hand():
    generator = torch.Generator().manual_seed(0)
    original = (torch.rand(3, 30, 41, generator=generator) * 255).round() / 255
    change = torch.randint(-6, 7, original.shape, generator=generator) / 255
    perturbed = (original + change).clamp(0, 1)
    found = image_quality(original, perturbed)
    difference = np.round((perturbed - original).double().numpy() * 255)
    assert found["linf_pixels"] == pytest.approx(np.abs(difference).max(), abs=1e-3)
    assert found["psnr_db"] == pytest.approx(20 * np.log10(255 / np.sqrt(np.mean(difference**2))), abs=1e-3)
    assert found["ssim"] == pytest.approx(reference_ssim(original, perturbed), abs=1e-4)
    assert found["ssim"] < 0.9999


def test_equal_images_and_tiny_ones():
    same = image_quality(torch.full((3, 16, 16), 0.5), torch.full((3, 16, 16), 0.5))
    assert same["linf_pixels"] == 0
    assert same["psnr_db"] == math.inf
    assert same["ssim"] == pytest.approx(1)
    assert math.isnan(image_quality(torch.zeros(3, 10, 40), torch.ones(3, 10, 40))["ssim"])
