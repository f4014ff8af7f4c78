"""A detector's first convolution, with a faster way back to the image on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stem(nn.Conv2d):
    """A convolution of an image, with stride 2 and weights that stay as they are.

    What comes out is the plain convolution's, to the bit. On a CPU the gradient of three channels is slow to compute: a
    third of a small detector's time. Here it is a convolution, too, with the four pixels of a stride as channels.
    """

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Whether a module is a convolution that this one can stand for."""
        if type(module) is not nn.Conv2d:
            return False
        side = module.kernel_size[0]
        shape = module.kernel_size, module.stride, module.padding, module.dilation
        square = side % 2 == 1 and shape == ((side, side), (2, 2), (side // 2, side // 2), (1, 1))
        return square and module.in_channels <= 4 and module.groups == 1 and module.padding_mode == "zeros"

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        if x.is_cpu and x.requires_grad and not self.weight.requires_grad:
            out: Tensor = _Convolve.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return out
        return super().forward(x)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size = x.shape[2:]
        return F.conv2d(x, weight, bias, stride=2, padding=weight.shape[2] // 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        half = weight.shape[2] // 2
        before, after = half // 2, (half + 1) // 2
        # pixel 2 i + d (d is 0 or 1) gets weight[half + d - 2 u] of gradient[i + u], for u from -before to after
        low, high, taps = 2 * after - half, 2 * before + 1 - half, before + after + 1
        pairs = F.pad(weight, (low, high, low, high)).reshape(*weight.shape[:2], taps, 2, taps, 2).flip(2, 4)
        kernel = pairs.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).to(gradient.dtype)
        found = F.conv2d(gradient, kernel.contiguous(memory_format=torch.channels_last), padding=after)
        found = found[:, :, after - before :, after - before :]  # (B, 4 C, H / 2, W / 2)
        whole = F.pixel_shuffle(found, 2)
        return whole[:, :, : ctx.size[0], : ctx.size[1]], None, None
