"""Small shifts and resizes between generator and detector, differentiable: few images arrive pixel for pixel."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from faap.data.targets import Targets

# Keeps the draws apart from those of the jitter and of JPEG.
_STREAM = 3


def draw_moves(shift: int, resize: float, seeds: Sequence[tuple[int, int, int]], valid: Tensor) -> Tensor | None:
    """Draw for half of the images how they are moved; the others stay as they are.

    Args:
        shift: the most, in pixels of the detector's input, to either side and up or down.
        resize: the most that an image becomes larger or smaller, as a share of its size, around its middle.
        seeds: B times (seed, epoch, image id), each ≥ 0.
        valid: (B, 2) height and width of the images in pixels.

    Returns:
        (B, 5) of factor of the size, shift to the right and down, width and height; None if nothing is to be moved.
    """
    if not (shift or resize):
        return None
    rows = []
    for seed, (height, width) in zip(seeds, valid.tolist(), strict=True):
        rng = np.random.default_rng([*seed, _STREAM])
        moved, row = rng.random() < 0.5, [rng.uniform(1 - resize, 1 + resize), *rng.uniform(-shift, shift, 2)]
        rows.append([*(row if moved else (1, 0, 0)), width, height])
    return torch.tensor(rows, dtype=torch.float32)


def move(pixel_values: Tensor, moves: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
    """Resize images around their middles and shift them, bilinearly; what comes in at an edge is the edge's pixels.

    Args:
        pixel_values: (B, 3, H, W), padded at the right and the bottom.
        moves: (B, 5) as drawn, on the same device.
        pixel_mask: (B, H, W) bool, True where the image is; None: everywhere.

    Returns:
        The same shape; padding is 0.
    """
    canvas = pixel_values.shape[2:]
    places = []
    for axis, side in ((0, canvas[1]), (1, canvas[0])):
        factor, shift, size = (moves[:, index, None] for index in (0, 1 + axis, 3 + axis))
        here = torch.arange(side, device=moves.device) + 0.5
        there = ((here - size / 2 - shift) / factor + size / 2).clamp(min=0.5).minimum(size - 0.5)
        places.append(2 * there / side - 1)
    across, down = places
    grid = torch.stack([across[:, None].expand(-1, *canvas), down[:, :, None].expand(-1, *canvas)], -1)
    moved = F.grid_sample(pixel_values, grid.to(pixel_values.dtype), padding_mode="border", align_corners=False)
    # bilinear arithmetic moves the last bit of a pixel that stays where it is
    stays = (moves[:, 0] == 1) & (moves[:, 1] == 0) & (moves[:, 2] == 0)
    moved = torch.where(stays[:, None, None, None], pixel_values, moved)
    return moved if pixel_mask is None else torch.where(pixel_mask[:, None], moved, 0)


def move_targets(targets: Targets, moves: Tensor) -> Targets:
    """Move boxes with their images (both on the CPU), cut them at the edges, and drop those that lie outside."""
    result = []
    for target, row in zip(targets, moves, strict=True):
        factor, shift, size = row[0], row[1:3], row[3:]
        centre, extent = target["boxes"][:, :2], target["boxes"][:, 2:]
        corners = torch.stack([centre - extent / 2, centre + extent / 2])  # (2, n, 2)
        first, last = ((corners - 0.5) * factor + 0.5 + shift / size).clamp(0, 1)
        kept = (last > first).all(1)
        boxes = torch.cat([(first + last) / 2, last - first], 1)[kept]
        result.append({"labels": target["labels"][kept], "boxes": boxes})
    return Targets.of(result)
