"""What happens to perturbed images on their way to the detector, in training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from faap.perturbation.jitter import Drawn, apply, draw
from faap.perturbation.jpeg import code, draw_qualities
from faap.perturbation.moves import draw_moves, move

if TYPE_CHECKING:
    from faap.config import Recipe


@dataclass(frozen=True)
class Way:
    """What is done to each of B images, in this order; of each kind it may be nothing.

    Attributes:
        qualities: of JPEG; 0 leaves an image alone.
        moves: (B, 5) as drawn.
        colours: their jitter.
    """

    qualities: Sequence[int] = ()
    moves: Tensor | None = None
    colours: Drawn | None = None

    @classmethod
    def drawn(cls, recipe: "Recipe", seeds: Sequence[tuple[int, int, int]], valid: Tensor) -> "Way":
        """Draw what a recipe says, as a function of each image's (seed, epoch, image id); `valid` is (B, 2) sizes."""
        moved = draw_moves(recipe.shift, recipe.resize, seeds, valid)
        return cls(draw_qualities(recipe.jpeg, seeds), moved, draw(recipe.aug_strength, seeds))

    @property
    def is_plain(self) -> bool:
        """Whether nothing is done."""
        return not any(self.qualities) and self.moves is None and self.colours is None

    def to(self, device: torch.device) -> "Way":
        """Return it with what the device needs there, for which nobody waits."""

        def there(values: Tensor) -> Tensor:
            return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)

        colours = self.colours and replace(self.colours, factors=there(self.colours.factors))
        return replace(self, moves=None if self.moves is None else there(self.moves), colours=colours)

    def apply(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Return images (B, 3, H, W), ImageNet-normalised, as they arrive."""
        arrived = code(pixel_values, self.qualities, pixel_mask)
        arrived = arrived if self.moves is None else move(arrived, self.moves, pixel_mask)
        return arrived if self.colours is None else apply(arrived, self.colours, pixel_mask)
