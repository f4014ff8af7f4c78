"""The light generator: a residual U-Net that starts at a quarter of the resolution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faap.perturbation.generator import Generator, needed

PATCH = 4
STRIDE = 16
GROUPS = 8
# Standard deviation of the last layer's first weights: the perturbation starts at about two hundredths of ε.
FIRST_OUTPUT = 0.002


# where the images are at one resolution: (B, 1, H, W) of 0 and 1, and how many positions each has, (B, 1)
_Valid = tuple[Tensor, Tensor]


class _Norm(nn.GroupNorm):
    """Group norm and SiLU over the image alone: what lies in the padding neither counts nor comes out."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor, valid: _Valid | None = None) -> Tensor:
        if valid is None:
            # in place where no gradient needs what went in: a new tensor's pages cost more than the arithmetic
            return F.silu(super().forward(x), inplace=not torch.is_grad_enabled())
        kind, (mask, count) = x.dtype, valid
        x = x if kind == torch.float64 else x.float()  # half precision has no room for the sums
        size = count * (x.shape[1] // GROUPS)  # (B, 1)
        mean = self._group_sums(x * mask) / size  # (B, G)
        centred = (x - self._spread(mean)) * mask
        variance = self._group_sums(centred.square()) / size
        scale = self._spread((variance + self.eps).rsqrt()) * self.weight[:, None, None]
        return F.silu(torch.addcmul(self.bias[:, None, None] * mask, centred, scale)).to(kind)

    @staticmethod
    def _group_sums(x: Tensor) -> Tensor:
        return x.sum((2, 3)).view(x.shape[0], GROUPS, -1).sum(2)

    def _spread(self, per_group: Tensor) -> Tensor:
        return per_group.repeat_interleave(self.num_channels // GROUPS, 1)[:, :, None, None]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(channels), _Norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, valid: _Valid | None) -> Tensor:
        inner: Tensor = self.conv2(self.norm2(self.conv1(self.norm1(x, valid)), valid))
        return inner.add_(x)


class _Resized(nn.Module):
    """Half the resolution; or `up`, twice, cut to a skip connection and added to it."""

    def __init__(self, channels: int, out: int, up: bool = False) -> None:
        super().__init__()
        self.norm = _Norm(channels)
        self.conv = nn.Conv2d(channels, 4 * out, 1) if up else nn.Conv2d(channels, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor, valid: _Valid | None, skip: Tensor | None = None) -> Tensor:
        out: Tensor = self.conv(self.norm(x, valid))
        return out if skip is None else skip + F.pixel_shuffle(out, 2)[..., : skip.shape[2], : skip.shape[3]]


class Light(Generator):
    """Sees patches of 4×4 pixels, and whole persons at a sixteenth of the resolution; writes full resolution.

    Each 4×4 patch gets 48 values of its own, and three gains with which the patch itself, colour by colour, is added:
    so what is added can follow the image's finest detail, by an amount that depends on what the detail belongs to.
    Every convolution sees zeros outside the image, whether there is padding or the end of the tensor, and group norm
    counts the image alone: an image's output does not depend on how far, or with what, it was padded.

    Plain 3×3 convolutions, because depthwise ones save arithmetic but no time on a CPU, backward above all, and learn
    less in the same time.
    """

    arch = "light"
    WIDTHS = (16, 48, 96)  # channels at 1/4, 1/8 and 1/16 of the resolution
    DIVISOR = GROUPS

    def __init__(self, epsilon: float = 0.10, widths: Sequence[int] | None = None) -> None:
        super().__init__(epsilon, widths)
        quarter, eighth, sixteenth = self.widths
        self.stem = nn.Conv2d(3 * PATCH**2, quarter, 3, padding=1)
        self.encode4 = _Residual(quarter)
        self.down8 = _Resized(quarter, eighth)
        self.encode8 = _Residual(eighth)
        self.down16 = _Resized(eighth, sixteenth)
        self.encode16 = _Residual(sixteenth)
        self.up8 = _Resized(sixteenth, eighth, up=True)
        self.decode8 = _Residual(eighth)
        self.up4 = _Resized(eighth, quarter, up=True)
        self.decode4 = _Residual(quarter)
        self.norm = _Norm(quarter)
        self.out = nn.Conv2d(quarter, 3 * PATCH**2 + 3, 3, padding=1)
        nn.init.normal_(self.out.weight, std=FIRST_OUTPUT)
        self.out.bias = nn.Parameter(torch.zeros(self.out.out_channels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Compute the unbounded perturbation; see `Generator.forward`."""
        x, (height, width) = pixel_values, pixel_values.shape[-2:]
        at4: _Valid | None = None
        at8, at16, cell = at4, at4, PATCH
        # masks cost time; where nothing is padded, each resolution ends with the image instead
        if (pixel_mask := needed(pixel_mask)) is not None:
            cell = STRIDE
            mask = F.pad(pixel_mask[:, None].float(), (0, -width % STRIDE, 0, -height % STRIDE))
            at4, at8, at16 = _valid(mask, PATCH), _valid(mask, 2 * PATCH), _valid(mask, STRIDE)
            x = x * pixel_mask[:, None]
        x = F.pad(x, (0, -width % cell, 0, -height % cell))
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        pixels = x.reshape(-1, 3, rows, PATCH, columns, PATCH)
        # pixel_unshuffle and channels last in one copy: (B, 48, H/4, W/4)
        patches = pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, 3 * PATCH**2).permute(0, 3, 1, 2)
        quarter = self.encode4(self.stem(patches), at4)
        eighth = self.encode8(self.down8(quarter, at4), at8)
        sixteenth = self.encode16(self.down16(eighth, at8), at16)
        eighth = self.decode8(self.up8(sixteenth, at16, eighth), at8)
        quarter = self.decode4(self.up4(eighth, at8, quarter), at4)
        out = self.out(self.norm(quarter, at4))
        out = out.permute(0, 2, 3, 1)  # (B, H/4, W/4, 51): the patch's own values, and a gain for each colour
        own = out[..., :-3].unflatten(-1, (3, PATCH, PATCH)).permute(0, 3, 1, 4, 2, 5)
        gain = out[..., -3:].permute(0, 3, 1, 2)[:, :, :, None, :, None]
        raw: Tensor = (pixels * gain).add_(own)
        return raw.reshape(x.shape)[..., :height, :width]


def _valid(mask: Tensor, cell: int) -> _Valid:
    cells = F.max_pool2d(mask, cell)
    # an image without a single pixel has no statistics; 1 keeps them finite
    return cells, cells.sum((2, 3)).clamp(min=1)
