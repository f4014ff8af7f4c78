"""What others do to images, and where the detector's boxes are then."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import faap
from faap.data import denormalise, normalise
from faap.errors import FaapError
from faap.evaluation import detect, detect_baseline
from faap.evaluation.arrival import AS_MADE, Arrival
from faap.promenade import compose


@pytest.fixture(scope="module")
def scene() -> Tensor:
    pixels = torch.from_numpy(compose(0, "train", 3, "female").image)
    return normalise(pixels.permute(2, 0, 1)[None].float() / 255)


def pixels_of(values: Tensor) -> Any:
    return denormalise(values)[0].mul(255).round().byte().permute(1, 2, 0).numpy()


def test_an_image_is_resized_and_back_without_its_padding(scene: Tensor) -> None:
    padded = torch.nn.functional.pad(scene, (0, 7, 0, 5))
    found = Arrival(resize=0.9).apply(padded, torch.tensor([[128, 160]]))
    image = Image.fromarray(pixels_of(scene))
    wanted = image.resize((144, 115), Image.Resampling.BILINEAR).resize((160, 128), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels_of(found[:, :, :128, :160]), np.asarray(wanted))
    assert (found[:, :, 128:] == 0).all()
    assert (found[:, :, :, 160:] == 0).all()


def test_a_shift_keeps_pixels_whole_and_repeats_the_edge(scene: Tensor) -> None:
    found, image = pixels_of(Arrival(shift=3).apply(scene, torch.tensor([[128, 160]]))), pixels_of(scene)
    assert np.array_equal(found[3:, 3:], image[:-3, :-3])
    assert np.array_equal(found[0], found[3])
    assert np.array_equal(found[:, 1], found[:, 3])


def test_nothing_is_done_unless_it_is_said(scene: Tensor) -> None:
    assert AS_MADE.apply(scene, torch.tensor([[128, 160]])) is scene


@pytest.mark.parametrize(("name", "value"), [("jpeg", 0), ("jpeg", 101), ("jpeg", 75.5), ("resize", 0), ("shift", -1)])
def test_what_is_no_such_thing_is_named(name: str, value: Any) -> None:
    with pytest.raises(FaapError, match=rf"^{name}: is {value}; it should be .* to \d+\.$"):
        Arrival(**{name: value})


@pytest.fixture(scope="module")
def split(tiny_promenade: Path) -> Any:
    return faap.load_dataset(tiny_promenade).split("test")


def test_boxes_are_where_the_people_were(split: Any) -> None:
    """A shifted picture shows the same people in the same places of the file."""
    detector = faap.load_detector("promenade")
    plain, shifted = (detect(detector, split, arrival=Arrival(shift=shift)) for shift in (None, 8))
    moved = []
    for before, after in zip(plain, shifted, strict=True):
        for box in after.boxes[after.scores > 0.4]:
            moved.append(np.abs(before.boxes[before.scores > 0.3] - box)[:, :2].max(1).min())
    assert len(moved) > 4
    assert np.median(moved) < 3  # and not 8


def test_a_baseline_is_kept_for_each_arrival(split: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path))
    detector = faap.load_detector("promenade")
    plain = detect_baseline(detector, split)
    again, jpeg = (detect_baseline(detector, split, arrival=arrival) for arrival in (AS_MADE, Arrival(10)))
    assert len(list(tmp_path.rglob("*.npz"))) == 2
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(plain, again, strict=True))
    assert not all(np.array_equal(a.scores, b.scores) for a, b in zip(plain, jpeg, strict=True))
