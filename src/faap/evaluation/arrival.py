"""What others do to images before the detector sees them: few arrive as the generator made them."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faap.conform import Between, conform
from faap.data import denormalise, normalise


@dataclass(frozen=True)
class Arrival:
    """What is done to images, with and without a generator, in this order; None: nothing.

    Attributes:
        jpeg: quality of a JPEG file that they come in, 1 to 100.
        resize: factor that their sides are resized by, and back again, bilinearly.
        shift: pixels of the detector's input by which they are shifted to the right and down.

    Raises:
        FaapError: one of them is out of range.
    """

    jpeg: int | None = None
    resize: float | None = None
    shift: int | None = None

    def __post_init__(self) -> None:
        ranges = {"jpeg": Between(1, 100, 1), "resize": Between(0.1, 10), "shift": Between(0, 1000, 1)}
        for name, allowed in ranges.items():
            if (value := getattr(self, name)) is not None:
                conform(value, allowed, name)

    def apply(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return images (B, 3, H, W), ImageNet-normalised, as Pillow makes them; their padding (B, 2) stays apart."""
        if self == AS_MADE:
            return pixels
        pixels = pixels.clone()
        for image, (height, width) in zip(pixels, valid.tolist(), strict=True):
            inside = image[:, :height, :width]
            levels = denormalise(inside).mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            arrived = torch.from_numpy(np.array(self._arrived(Image.fromarray(levels)))).permute(2, 0, 1)
            inside.copy_(normalise(arrived.to(inside) / 255))
        return pixels

    def _arrived(self, image: Image.Image) -> Image.Image:
        size = image.size
        if self.jpeg is not None:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=self.jpeg)
            image = Image.open(file).convert("RGB")
        if self.resize is not None:
            smaller = [max(1, round(side * self.resize)) for side in size]
            image = image.resize((smaller[0], smaller[1]), Image.Resampling.BILINEAR)
            image = image.resize(size, Image.Resampling.BILINEAR)
        if self.shift:
            pixels = np.pad(np.asarray(image), ((self.shift, 0), (self.shift, 0), (0, 0)), mode="edge")
            image = Image.fromarray(pixels[: size[1], : size[0]])
        return image


AS_MADE = Arrival()
