"""Shifts and resizes in training, against a pixel-by-pixel route."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from faap.data.targets import Targets
from faap.perturbation.moves import draw_moves, move, move_targets

SEEDS = [(3, 1, image) for image in range(400)]


def slow_route(image: Tensor, factor: float, right: float, down: float) -> Tensor:
    """Look each pixel up in the image that it comes from."""
    height, width = image.shape[1:]
    rows, columns = np.mgrid[:height, :width] + 0.5
    y = (rows - height / 2 - down) / factor + height / 2 - 0.5
    x = (columns - width / 2 - right) / factor + width / 2 - 0.5
    found = [map_coordinates(each.numpy(), [y, x], order=1, mode="nearest") for each in image]
    return torch.from_numpy(np.stack(found))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_each_image_is_moved_as_if_pixel_by_pixel(images: Tensor) -> None:
    moves = [(1.1, 0.0, 0.0), (1.0, 3.0, -2.0), (0.93, -1.4, 2.7)]
    found = move(images, torch.tensor([[*each, 40, 24] for each in moves], dtype=torch.float64))
    for image, each, moved in zip(images, moves, found, strict=True):
        torch.testing.assert_close(moved, slow_route(image, *each), rtol=0, atol=1e-9)
    torch.testing.assert_close(found[1, :, :-2, 3:], images[1, :, 2:, :-3])  # whole pixels stay whole


def test_what_is_not_moved_keeps_its_bits_and_padding_stays_zero(images: Tensor) -> None:
    valid = torch.tensor([[24, 40], [24, 40], [20, 33]])
    mask = torch.ones(3, 24, 40, dtype=torch.bool)
    mask[2, 20:], mask[2, :, 33:] = False, False
    padded = (images * mask[:, None]).float()
    moves = torch.tensor([[1, 0, 0], [0.9, 2, 1], [1.1, 4, -3]])
    found = move(padded, torch.cat([moves, valid.flip(1)], 1), mask)
    assert torch.equal(found[0], padded[0])
    assert (found.movedim(1, -1)[~mask] == 0).all()
    alone = move(padded[2:, :, :20, :33], torch.tensor([[1.1, 4, -3, 33, 20]]))
    torch.testing.assert_close(found[2:, :, :20, :33], alone)  # no padding is drawn into the image


def test_a_gradient_passes(images: Tensor) -> None:
    pixels, moves = images.requires_grad_(), torch.tensor([[1.05, 1.3, -0.6, 40, 24]] * 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda each: move(each, moves), pixels[:, :, :6, :7].detach().requires_grad_())
    move(pixels, moves).square().sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad != 0).double().mean() > 0.7


def test_boxes_go_with_what_is_in_them() -> None:
    """A box is where the bright rectangle is, before and after."""
    height, width = 80, 120
    boxes = torch.tensor([[0.4, 0.5, 0.2, 0.3], [0.05, 0.9, 0.1, 0.2], [0.99, 0.5, 0.02, 0.2]])
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    corners = (corners * torch.tensor([width, height] * 2)).round().int()
    images = torch.zeros(3, 1, height, width)
    for image, (left, top, right, bottom) in zip(images, corners.tolist(), strict=True):
        image[:, top:bottom, left:right] = 1
    drawn = [(1.1, 3.0, -2.0), (0.9, -8.0, 4.0), (1.1, 6.0, 0.0)]
    moves = torch.tensor([[*each, width, height] for each in drawn])
    targets = Targets.of([{"labels": torch.tensor([7]), "boxes": box[None]} for box in boxes])
    moved = move_targets(targets, moves)
    seen = move(images.expand(-1, 3, -1, -1), moves)[:, 0] > 0.5
    for index in range(2):
        rows, columns = seen[index].any(1).nonzero(), seen[index].any(0).nonzero()
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        x, y, w, h = moved[index]["boxes"][0].tolist()
        said = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        assert said == pytest.approx([float(each) for each in found], abs=1.01)
        assert moved[index]["labels"].tolist() == [7]
    assert moved.counts == (1, 1, 0)  # the last has left the image
    assert all(0 <= edge <= 1 for index in range(2) for edge in moved[index]["boxes"].flatten().tolist())


def test_draws_are_functions_of_their_numbers_and_within_bounds() -> None:
    valid = torch.tensor([[24, 40]]).expand(400, 2)
    moves = draw_moves(4, 0.1, SEEDS, valid)
    assert moves is not None
    still = (moves[:, :3] == torch.tensor([1.0, 0, 0])).all(1)
    assert 150 < int(still.sum()) < 250
    moved = moves[~still]
    for column, (low, high) in zip(moved[:, :3].T, [(0.9, 1.1), (-4, 4), (-4, 4)], strict=True):
        assert low <= column.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < column.max() <= high
    assert (moves[:, 3:] == torch.tensor([40.0, 24])).all()
    again = draw_moves(4, 0.1, SEEDS[50:60], valid[:10])
    assert again is not None
    assert torch.equal(again, moves[50:60])
    others = [draw_moves(4, 0.1, [(seed, epoch, 5)], valid[:1]) for seed, epoch in [(3, 1), (3, 2), (4, 1), (5, 9)]]
    assert any(not torch.equal(a, b) for a, b in pairwise(others) if a is not None and b is not None)
    assert draw_moves(0, 0.0, SEEDS, valid) is None
