"""JPEG in training against the real one."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from faap.data.images import denormalise, normalise
from faap.evaluation.arrival import Arrival
from faap.perturbation.jpeg import code, draw_qualities
from faap.promenade import compose

QUALITIES = (50, 75, 95)


@pytest.fixture(scope="module")
def scenes() -> Tensor:
    images = np.stack([compose(0, "train", index, "female").image for index in range(4)])
    return normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


def through_files(pixels: Tensor, quality: int) -> Tensor:
    out = []
    for image in (denormalise(pixels) * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)))
    return normalise(torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize("quality", QUALITIES)
def test_it_does_what_files_do(scenes: Tensor, quality: int) -> None:
    real = through_files(scenes, quality)
    found = code(scenes, [quality] * 4)
    lost, wrong = ((denormalise(real) - denormalise(each)).abs().mean() for each in (scenes, found))
    assert wrong < 0.55 * lost


def test_each_image_has_its_own_quality_and_0_is_none(scenes: Tensor) -> None:
    mixed = code(scenes, [0, 50, 95, 0])
    assert torch.equal(mixed[[0, 3]], scenes[[0, 3]])
    torch.testing.assert_close(mixed[1], code(scenes, [50] * 4)[1])
    torch.testing.assert_close(mixed[2], code(scenes, [95] * 4)[2])


def test_a_gradient_passes_and_padding_stays_zero(scenes: Tensor) -> None:
    mask = torch.ones(4, 128, 160, dtype=torch.bool)
    mask[1, 100:] = False
    pixels = (scenes * mask[:, None]).requires_grad_()
    out = code(pixels, [75] * 4, mask)
    assert (out.movedim(1, -1)[~mask] == 0).all()
    out.square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
    # coarse structure passes: a little more light everywhere is a little more light
    direction = torch.ones_like(scenes)
    shifted = code(pixels.detach() + 0.02 * direction, [95] * 4)
    assert ((shifted - code(pixels.detach(), [95] * 4)) / 0.02).mean() == pytest.approx(1, abs=0.1)


def test_draws_are_functions_of_their_numbers_and_all_occur() -> None:
    seeds = [(3, 1, image) for image in range(200)]
    first = draw_qualities(QUALITIES, seeds)
    assert set(first) == {0, *QUALITIES}
    assert draw_qualities(QUALITIES, seeds[50:60]) == first[50:60]
    assert draw_qualities(QUALITIES, [(3, 2, image) for image in range(200)]) != first
    assert draw_qualities((), seeds) == [0] * 200


def test_measured_is_what_pillow_makes_of_the_image_without_its_padding(scenes: Tensor) -> None:
    pixels = scenes.clone()
    pixels[1, :, 100:] = 0
    valid = torch.tensor([[128, 160], [100, 160], [128, 160], [128, 160]])
    found = Arrival(jpeg=75).apply(pixels, valid)
    torch.testing.assert_close(found[[0, 2, 3]], through_files(scenes, 75)[[0, 2, 3]])
    torch.testing.assert_close(found[1, :, :100], through_files(scenes[1:2, :, :100], 75)[0])
    assert (found[1, :, 100:] == 0).all()
    assert not torch.equal(pixels, found)
