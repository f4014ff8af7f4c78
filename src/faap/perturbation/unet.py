"""The original generator: a U-Net at full resolution, as expensive as the detector behind it."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faap.perturbation.generator import Generator


def _down(channels: int, out: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, step in ((channels, stride), (out, 1)):
        layers += [nn.Conv2d(inside, out, 3, step, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(OrderedDict(net=nn.Sequential(*layers)))


class _Up(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return F.relu(self.bn(self.conv(x))) + skip


class UNet(Generator):
    """Three stages down, a bottleneck, two stages up whose skips are added; names as in the original checkpoints.

    Batch norm makes an image's output depend on its batch while training, and zeros in the padding are seen as image.
    """

    arch = "unet"
    WIDTHS = (32, 64, 128)  # channels at full, half and quarter resolution

    def __init__(self, epsilon: float = 0.10, widths: Sequence[int] | None = None) -> None:
        super().__init__(epsilon, widths)
        full, half, quarter = self.widths
        self.down1 = _down(3, full, 1)
        self.down2 = _down(full, half, 2)
        self.down3 = _down(half, quarter, 2)
        self.bottleneck = _down(quarter, quarter, 1)
        self.up2 = _Up(quarter, half)
        self.up1 = _Up(half, full)
        self.out_conv = nn.Conv2d(full, 3, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Compute the unbounded perturbation, without a look at the mask; see `Generator.forward`."""
        full = self.down1(pixel_values.contiguous(memory_format=torch.channels_last))
        half = self.down2(full)
        deep = self.bottleneck(self.down3(half))
        out: Tensor = self.out_conv(self.up1(self.up2(deep, half), full))
        return out
