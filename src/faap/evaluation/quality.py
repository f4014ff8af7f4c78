"""How visible a perturbation is."""

import math

from kornia.metrics import ssim
from torch import Tensor

_WINDOW = 11


def image_quality(original: Tensor, perturbed: Tensor) -> dict[str, float]:
    """Compare an image with its perturbed version, as pixels.

    Args:
        original: (3, H, W) pixels in [0, 1], without padding.
        perturbed: the same with the perturbation.

    Returns:
        The largest change of any value, in levels of 255 (linf_pixels); the peak signal-to-noise ratio, infinite for
        equal images (psnr_db); structural similarity in [-1, 1] over 11×11 Gaussian windows (σ 1.5) that lie inside
        the image, mean over pixels and channels, nan if a side is below 11 pixels (ssim).

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, TIP 2004.
    """
    original, perturbed = original.float(), perturbed.float()
    difference = perturbed - original
    error = float(difference.square().mean())
    similarity = math.nan
    if min(original.shape[-2:]) >= _WINDOW:
        similarity = float(ssim(original[None], perturbed[None], _WINDOW, padding="valid").mean())
    largest, noise = 255.0 * float(difference.abs().max()), -10.0 * math.log10(error) if error else math.inf
    return {"linf_pixels": largest, "psnr_db": noise, "ssim": similarity}
