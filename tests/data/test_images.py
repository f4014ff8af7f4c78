"""Every kind of file becomes the right RGB image, and boxes go where their objects go."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from faap.data import (
    MEAN,
    STD,
    Preprocessing,
    Sample,
    collate,
    denormalise,
    evaluation_transform,
    normalise,
    read_image,
    training_transform,
)
from faap.data.images import TRAINING_EDGES
from faap.errors import FaapError
from faap.perturbation import quantise

KEEP = Preprocessing(shortest_edge=None, longest_edge=None)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def centre(image):
    return image.getpixel((image.width // 2, image.height // 2))


# The EXIF standard: which side of the picture the stored array's first row and first column are.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("orientation", SIDES)
def test_exif_orientation_is_honoured(orientation, tmp_path, rng):
    upright = rng.integers(0, 255, (4, 6, 3), dtype=np.uint8)
    first_row, first_column = SIDES[orientation]
    stored = upright if first_row in ("top", "bottom") else upright.transpose(1, 0, 2)
    stored = stored[::-1] if first_row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if first_column in ("bottom", "right") else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(path)), upright)


def test_grayscale_becomes_three_equal_channels(tmp_path):
    assert centre(read_image(saved(Image.new("L", (8, 6), 77), tmp_path / "a.png"))) == (77, 77, 77)
    assert centre(read_image(saved(Image.new("1", (8, 6), 1), tmp_path / "b.png"))) == (255, 255, 255)


def test_cmyk_keeps_its_colour(tmp_path):
    colour = (200, 60, 30)
    path = saved(Image.new("RGB", (16, 16), colour).convert("CMYK"), tmp_path / "a.jpg", quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert centre(read_image(path)) == pytest.approx(colour, abs=4)


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_32_bits_that_may_mean_anything_are_an_error(value: int, tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.full((6, 8), value, np.int32)), tmp_path / "a.tif")
    with pytest.raises(FaapError, match="32-bit numbers of unknown range; save it with 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 1), (257 * 200, 200), (65535, 255)])
def test_sixteen_bit_values_are_scaled_not_clipped(value, expected, tmp_path):
    path = saved(Image.fromarray(np.full((6, 8), value, np.uint16)), tmp_path / "a.png")
    assert centre(read_image(path)) == (expected,) * 3
    path = saved(Image.fromarray(np.full((6, 8), value, np.int32)), tmp_path / "a.tif")
    assert centre(read_image(path)) == (expected,) * 3


def test_transparency_lies_on_white(tmp_path):
    path = saved(Image.new("RGBA", (8, 6), (200, 0, 100, 0)), tmp_path / "clear.png")
    assert centre(read_image(path)) == (255, 255, 255)
    path = saved(Image.new("RGBA", (8, 6), (200, 0, 100, 255)), tmp_path / "solid.png")
    assert centre(read_image(path)) == (200, 0, 100)
    path = saved(Image.new("RGBA", (8, 6), (200, 0, 100, 51)), tmp_path / "veil.png")
    assert centre(read_image(path)) == pytest.approx((244, 204, 224), abs=1)
    path = saved(Image.new("LA", (8, 6), (30, 0)), tmp_path / "grey.png")
    assert centre(read_image(path)) == (255, 255, 255)
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert centre(read_image(saved(palette, tmp_path / "p.png"))) == (9, 8, 7)
    assert centre(read_image(saved(palette, tmp_path / "q.png", transparency=1))) == (255, 255, 255)


@pytest.mark.parametrize("kept", [0, 3, 0.3, 0.9])
def test_a_broken_file_is_named(kept, tmp_path, rng):
    picture = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for suffix in ("jpg", "png"):
        path = saved(picture, tmp_path / f"whole.{suffix}")
        content = path.read_bytes()
        path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
        with pytest.raises(FaapError, match=rf"whole\.{suffix}: cannot be read as an image"):
            read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FaapError, match=r"none\.jpg: cannot be read as an image"):
        read_image(tmp_path / "none.jpg")


def test_normalising_is_undone_exactly_for_every_byte():
    bytes_ = torch.arange(256, dtype=torch.float32).expand(3, 1, 256)
    values = normalise(bytes_ / 255)
    for channel in range(3):
        assert values[channel, 0, 51].item() == pytest.approx((0.2 - MEAN[channel]) / STD[channel], rel=1e-5)
    assert torch.equal((denormalise(values) * 255).round(), bytes_)


@pytest.mark.parametrize(
    ("size", "edges", "expected"),
    [
        ((640, 480), (800, 1333), (1066, 800)),
        ((480, 640), (800, 1333), (800, 1066)),
        ((1000, 300), (800, 1333), (1333, 400)),
        ((300, 300), (120, None), (120, 120)),
        ((160, 128), (None, None), (160, 128)),
    ],
)
def test_evaluation_sizes(size, edges, expected):
    pixels, _ = evaluation_transform(Image.new("RGB", size), np.zeros((0, 4)), Preprocessing(*edges))
    assert tuple(pixels.shape) == (3, expected[1], expected[0])


@pytest.mark.parametrize("size", [(180, 120), (120, 180), (200, 100), (133, 100), (311, 77), (64, 64)])
def test_evaluation_equals_the_librarys_processor(size, rng):
    picture = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).resize(size)
    boxes = np.array([[10.0, 20, 50, 40]])
    pixels, targets = evaluation_transform(picture, boxes, Preprocessing(100, 140))
    pixels = normalise(pixels / 255)
    processor = DetrImageProcessorPil(size={"shortest_edge": 100, "longest_edge": 140})
    theirs = processor(images=np.asarray(picture), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, theirs, rtol=1e-4, atol=1e-5)
    width, height = size
    assert targets.tolist()[0] == pytest.approx([35 / width, 40 / height, 50 / width, 40 / height])


def test_kept_size_gives_the_very_pixels(rng):
    values = rng.integers(0, 255, (7, 9, 3), dtype=np.uint8)
    pixels, _ = evaluation_transform(Image.fromarray(values), np.zeros((0, 4)), KEEP)
    assert np.array_equal(pixels.permute(1, 2, 0), values)
    assert pixels.is_contiguous()


def test_a_batch_has_the_normalised_bytes_to_the_last_bit():
    values = np.stack([np.roll(np.arange(256, dtype=np.uint8).reshape(8, 32), shift) for shift in (0, 5, 77)], 2)
    pixels, boxes = evaluation_transform(values, np.zeros((0, 4)), KEEP)
    batch = collate([Sample(pixels, torch.zeros(0, dtype=torch.long), boxes, "female", 1, (8, 32))])
    wanted = (values.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    assert np.array_equal(batch.pixel_values[0].permute(1, 2, 0), wanted)


def resized(image, shortest, longest, preprocessing, multiple=1):
    height, width = get_size_with_aspect_ratio(image.size[::-1], shortest, longest)  # the library's own rule
    edges = [max(multiple, edge // multiple * multiple) for edge in (width, height)]
    return image.resize(edges, preprocessing.resample)


def augmented_step_by_step(image, box, preprocessing, rng):
    """DETR's augmentation with each number drawn just before it is used."""
    x0, y0, x1, y1 = box
    if rng.random() < 0.5:
        image, x0, x1 = ImageOps.mirror(image), image.width - x1, image.width - x0
    own = min(preprocessing.size) if preprocessing.size else preprocessing.shortest_edge
    if own is not None and rng.random() < 0.5:
        before = image.size
        image = resized(image, round(own / 800 * rng.choice([400, 500, 600])), None, preprocessing)
        low, high = round(own / 800 * 384), round(own / 800 * 600)
        width = min(rng.integers(low, max(low, min(image.width, high)) + 1), image.width)
        height = min(rng.integers(low, max(low, min(image.height, high)) + 1), image.height)
        left, top = rng.integers([image.width - width + 1, image.height - height + 1]).tolist()
        across, down = image.width / before[0], image.height / before[1]
        x0, x1 = (min(max(x * across - left, 0), width) for x in (x0, x1))
        y0, y1 = (min(max(y * down - top, 0), height) for y in (y0, y1))
        image = image.crop((left, top, left + int(width), top + int(height)))
    w, h = image.size
    found = [[(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h]] if x0 < x1 and y0 < y1 else []
    if preprocessing.size:
        image = image.resize(preprocessing.size[::-1], preprocessing.resample)
    elif own is not None:
        shortest = round(own / 800 * rng.choice(TRAINING_EDGES))
        image = resized(image, shortest, preprocessing.longest_edge, preprocessing, preprocessing.multiple)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), found


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    preprocessing=st.sampled_from(
        [
            Preprocessing(100, 140),
            Preprocessing(80, None),
            Preprocessing(100, 133, multiple=16, resample=3),
            Preprocessing(None, None, size=(60, 90)),
            KEEP,
        ]
    ),
    seed=st.integers(0, 2**32),
)
def test_drawing_everything_first_changes_no_bit_of_a_sample(size, preprocessing, seed):
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, box = Image.fromarray(noise), (width * 0.2, height * 0.1, width * 0.7, height * 0.5)
    xywh = np.array([[box[0], box[1], box[2] - box[0], box[3] - box[1]]])
    drawn = (np.random.default_rng([seed, 1]) for _ in range(2))
    pixels, boxes, labels = training_transform(image, xywh, np.array([7]), preprocessing, next(drawn))
    wanted, found = augmented_step_by_step(image, box, preprocessing, next(drawn))
    assert torch.equal(pixels, wanted)
    assert labels.tolist() == [7] * len(found)
    assert boxes.numpy() == pytest.approx(np.reshape(found, (-1, 4)), abs=1e-5)


def rectangle(size, box, value=255):
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    x, y, w, h = box
    picture[y : y + h, x : x + w] = value
    return Image.fromarray(picture)


def bright_extent(pixels):
    """The bounding box (x0, y0, x1, y1) of what is brighter than half, in pixels."""
    rows, columns = np.nonzero(pixels.float().mean(0).numpy() > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("preprocessing", [Preprocessing(800, 1333), Preprocessing(200, 300), KEEP])
@pytest.mark.parametrize("seed", range(6))
def test_boxes_hug_their_objects_through_augmentation(preprocessing, seed):
    size, box = (320, 240), (70, 60, 90, 120)
    rng = np.random.default_rng(seed)
    pixels, boxes, labels = training_transform(
        rectangle(size, box), np.array([box], dtype=float), np.array([7]), preprocessing, rng
    )
    if not len(boxes):
        assert pixels.max() < 150
        return
    height, width = pixels.shape[1:]
    cx, cy, w, h = boxes[0].double().numpy() * [width, height, width, height]
    assert labels.tolist() == [7]
    assert bright_extent(pixels) == pytest.approx([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], abs=2.5)


def test_augmentation_has_every_branch_and_respects_the_edges():
    picture = rectangle((320, 240), (10, 10, 60, 50))
    picture.putpixel((0, 0), (255, 255, 255))
    boxes, labels = np.array([[10.0, 10, 60, 50], [250, 180, 40, 40]]), np.array([1, 2])
    preprocessing = Preprocessing(200, 280)
    flipped, dropped, sizes, shapes = 0, 0, set(), set()
    for seed in range(150):
        pixels, moved, kept = training_transform(picture, boxes, labels, preprocessing, np.random.default_rng(seed))
        height, width = pixels.shape[1:]
        assert max(height, width) <= 280
        assert min(height, width) <= 200
        assert len(moved) == len(kept)
        assert ((moved[:, 2:] > 0) & (moved[:, :2] - moved[:, 2:] / 2 > -1e-6)).all()
        assert (moved[:, :2] + moved[:, 2:] / 2 < 1 + 1e-6).all()
        dropped += len(kept) < 2
        sizes.add(min(height, width))
        shapes.add(round(width / height, 1))
        flipped += len(kept) == 2 and bool(moved[0, 0] > moved[1, 0])
    assert dropped > 5
    assert flipped > 30
    # Uncropped images have shortest edges of 480 ... 800 in steps of 32, times 200/800.
    assert {round(edge / 4) for edge in range(480, 801, 32)} <= sizes
    assert len(shapes) > 5


def test_kept_size_is_flipped_half_of_the_time():
    picture, box = rectangle((40, 30), (3, 5, 10, 8)), np.array([[3.0, 5, 10, 8]])
    centres = set()
    for seed in range(40):
        pixels, boxes, _ = training_transform(picture, box, np.array([1]), KEEP, np.random.default_rng(seed))
        assert tuple(pixels.shape) == (3, 30, 40)
        x0, y0, x1, y1 = bright_extent(pixels)
        assert (boxes[0] * torch.tensor([40, 30, 40, 30])).tolist() == pytest.approx(
            [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], abs=1e-4
        )
        centres.add((x0 + x1) / 2)
    assert centres == {8, 32}
    assert box.tolist() == [[3, 5, 10, 8]]


def test_an_image_of_too_many_pixels_is_not_decoded_unless_it_is_said(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(FaapError, match=r"large\.png: .* 200,000,000 pixels, and 100,000,000 are the most; FAAP_MAX"):
        read_image(path)
    small = tmp_path / "small.png"
    Image.new("RGB", (60, 50)).save(small)
    monkeypatch.setenv("FAAP_MAX_PIXELS", "2999")
    with pytest.raises(FaapError, match="3,000 pixels, and 2,999 are the most"):
        read_image(small)
    monkeypatch.setenv("FAAP_MAX_PIXELS", "2e8")
    assert read_image(path).size == (20_000, 10_000)


def test_only_raster_images_are_opened(tmp_path, monkeypatch):
    """An EPS would have Pillow run Ghostscript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it is run"))
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "/bin/true")
    for name in ("scene.eps", "scene.jpg"):
        Image.new("RGB", (30, 20)).save(tmp_path / name, "EPS")
        with pytest.raises(FaapError, match="cannot be read as an image"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("change", [normalise, denormalise, quantise])
def test_what_is_no_image_of_floats_is_neither_normalised_nor_back(change):
    for wrong in (torch.ones(3, 4, 4, dtype=torch.uint8), torch.ones(1, 4, 4), torch.ones(4, 4), np.ones((3, 4, 4))):
        with pytest.raises(FaapError, match=r"the image is .*; it should be a tensor \(..., 3, H, W\) of floats"):
            change(wrong)
