"""That an image reaches a detector as its own preprocessor would have it, from preprocessor_config.json on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

from faap.data import MEAN, STD, Preprocessing, evaluation_transform, normalise, training_transform
from faap.data.images import TRAINING_EDGES
from faap.detectors import FrozenDetector
from faap.detectors.preprocessing import read_preprocessing
from faap.errors import FaapError


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def detector_with(preprocessing):
    return FrozenDetector(
        torch.nn.Identity(),
        name="mine",
        labels={0: "person"},
        num_queries=1,
        feature_dim=1,
        preprocessing=preprocessing,
        activation="sigmoid",
        file_sha256="",
    )


OWN = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize("size", [(180, 120), (120, 180), (311, 77), (64, 64), (49, 80)])
@pytest.mark.parametrize(
    ("kind", "processor", "content"),
    [
        ("detr", DetrImageProcessorPil, {"size": {"shortest_edge": 64, "longest_edge": 90}}),
        ("detr", DetrImageProcessorPil, {"size": {"shortest_edge": 64, "longest_edge": 90}, "resample": 3} | OWN),
        ("detr", DetrImageProcessorPil, {"size": {"height": 40, "width": 70}} | OWN),
        ("deformable_detr", DetrImageProcessorPil, {"do_resize": False} | OWN),
        ("deformable_detr", DetrImageProcessorPil, {"do_resize": False, "pad_size": {"height": 200, "width": 320}}),
        ("detr", DetrImageProcessorPil, {"do_resize": False, "rescale_factor": 0.01} | OWN),
        ("detr", DetrImageProcessorPil, {"do_resize": False, "do_rescale": False, "image_mean": [99, 98, 97.5]}),
        ("rt_detr", RTDetrImageProcessorPil, {"size": {"height": 64, "width": 48}}),
        ("d_fine", RTDetrImageProcessorPil, {"size": {"height": 64, "width": 48}, "resample": 0}),
        ("rt_detr_v2", RTDetrImageProcessorPil, {"size": {"height": 64, "width": 48}, "do_normalize": True}),
        ("yolos", YolosImageProcessorPil, {"size": {"shortest_edge": 52, "longest_edge": 90}}),
        ("yolos", YolosImageProcessorPil, {"size": {"shortest_edge": 64, "longest_edge": 1333}}),
    ],
)
def test_an_image_arrives_as_the_librarys_processor_has_it(kind, processor, content, size, tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).resize(size)
    preprocessing = read_preprocessing(write(tmp_path / "p.json", content), kind)
    pixels, _ = evaluation_transform(picture, np.zeros((0, 4)), preprocessing)
    pixels = normalise(pixels / 255)
    mine, mask = detector_with(preprocessing).adapt(pixels[None], torch.ones(1, *pixels.shape[1:], dtype=torch.bool))
    theirs = processor(**content)(images=np.asarray(picture), return_tensors="pt")
    scale = float(theirs["pixel_values"].abs().max())
    torch.testing.assert_close(mine / scale, theirs["pixel_values"].float() / scale, rtol=0, atol=2e-6)
    if "pixel_mask" in theirs:
        assert torch.equal(mask.long(), theirs["pixel_mask"])


@pytest.mark.parametrize(
    ("content", "edges"),
    [
        ({"size": 800, "max_size": 1333}, (800, 1333)),
        ({"size": 700}, (700, 1333)),
        ({"size": {"shortest_edge": 640}}, (640, None)),
        ({"do_resize": False}, (None, None)),
        ({"size": {"height": 3, "width": 4}}, (None, None)),
    ],
)
def test_formats_of_size(content, edges, tmp_path):
    preprocessing = read_preprocessing(write(tmp_path / "p.json", content))
    assert (preprocessing.shortest_edge, preprocessing.longest_edge) == edges
    assert preprocessing.size == ((3, 4) if "height" in str(content) else None)
    assert (preprocessing.mean, preprocessing.std) == (MEAN, STD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"size": {"height": 64, "width": -64}}, "size: width: is -64; it should be a whole number from 1 to 10000"),
        ({"size": {"max_height": 64, "max_width": 64}}, "size: has no entry 'shortest_edge'"),
        ({"size": -3}, "size: is -3"),
        ({}, "has no entry 'size'"),
        ({"size": 800, "image_mean": "grey"}, "image_mean"),
        ({"size": 800, "image_std": [1, 0, 1]}, "image_std"),
        ({"size": 800, "resample": 17}, "resample: is 17; it should be a whole number from 0 to 5"),
        ({"size": 800, "resample": "soft"}, "resample: is 'soft'"),
        ({"size": 800, "pad_size": 1333}, "pad_size: is 1333; it should be a mapping"),
        ({"size": 800, "rescale_factor": 0}, "rescale_factor: is 0"),
        ({"size": 800, "do_center_crop": True}, "do_center_crop is True"),
        ({"size": 800, "size_divisor": 32}, "size_divisor is 32"),
        ([], "it should be a mapping"),
    ],
)
def test_errors_name_the_file(content, message, tmp_path):
    with pytest.raises(FaapError, match=rf"p\.json.*{message}"):
        read_preprocessing(write(tmp_path / "p.json", content))


def test_images_in_the_detectors_units_already_are_passed_through():
    pixels, mask = torch.randn(2, 3, 5, 6), torch.ones(2, 5, 6, dtype=torch.bool)
    same, mask_too = detector_with(Preprocessing()).adapt(pixels, mask)
    assert same is pixels
    assert mask_too is mask
    assert detector_with(Preprocessing()).adapt(pixels) == (pixels, None)


def test_units_change_by_channel_and_padding_stays_zero():
    own = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = torch.randn(2, 3, 4, 5, requires_grad=True)
    mask = torch.ones(2, 4, 5, dtype=torch.bool)
    mask[1, 2:], mask[0, :, 3:] = False, False
    out, _ = detector_with(own).adapt(pixels, mask)
    for image, channel, row, column in np.ndindex(2, 3, 4, 5):
        value = float(pixels[image, channel, row, column].detach()) * STD[channel] + MEAN[channel]
        expected = (value - own.mean[channel]) / own.std[channel] if mask[image, row, column] else 0
        assert float(out[image, channel, row, column].detach()) == pytest.approx(expected, abs=1e-6)
    out.sum().backward()
    for channel in range(3):
        assert pixels.grad[0, channel, 0, 0].item() == pytest.approx(STD[channel] / own.std[channel])
    assert pixels.grad[1, :, 2:].abs().sum() == 0


def test_padding_to_a_fixed_size_is_masked_and_too_large_images_are_refused():
    detector = detector_with(Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, pad_size=(6, 7)))
    for given in (None, torch.ones(2, 4, 5, dtype=torch.bool)):
        pixels, mask = detector.adapt(normalise(torch.ones(2, 3, 4, 5)), given)
        assert pixels.shape == (2, 3, 6, 7)
        assert mask.shape == (2, 6, 7)
        torch.testing.assert_close(pixels, mask[:, None].expand(-1, 3, -1, -1).float())
        assert mask[:, :4, :5].all()
        assert mask.sum() == 2 * 4 * 5
    with pytest.raises(FaapError, match=r"mine pads images to 7x6 pixels.* some of 8x4; raise pad_size"):
        detector.adapt(torch.zeros(1, 3, 4, 8))


def rectangle(size, box):
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    x, y, w, h = box
    picture[y : y + h, x : x + w] = 255
    return Image.fromarray(picture)


def test_a_detector_of_one_size_is_trained_on_that_size_with_boxes_that_hug():
    preprocessing = Preprocessing(None, None, size=(128, 96), mean=(0.0,) * 3, std=(1.0,) * 3)
    size, box = (160, 120), (30, 40, 50, 30)
    cropped, flipped, whole = 0, 0, 0
    for seed in range(60):
        pixels, boxes, _ = training_transform(
            rectangle(size, box), np.array([box], float), np.array([7]), preprocessing, np.random.default_rng(seed)
        )
        assert pixels.shape == (3, 128, 96)
        if not len(boxes):
            cropped += 1
            continue
        bright = pixels.float().mean(0).numpy() > 127  # whatever the detector's own units
        rows, columns = np.nonzero(bright)
        extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        cx, cy, w, h = boxes[0].double().numpy() * [96, 128, 96, 128]
        assert extent == pytest.approx([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], abs=2.5)
        whole += w == pytest.approx(96 * 50 / 160)
        cropped += w != pytest.approx(96 * 50 / 160)
        flipped += cx == pytest.approx(96 * (160 - 55) / 160)
    assert min(cropped, flipped, whole) > 8


def test_every_edge_of_the_draw_ends_in_the_one_size():
    preprocessing = Preprocessing(None, None, size=(32, 32))
    shapes = {
        training_transform(
            Image.new("RGB", (50, 40)),
            np.zeros((0, 4)),
            np.zeros(0, int),
            preprocessing,
            np.random.default_rng(seed),
            TRAINING_EDGES,
        )[0].shape
        for seed in range(20)
    }
    assert shapes == {(3, 32, 32)}


def test_what_is_switched_off_may_be_anything(tmp_path):
    off = {"do_resize": False, "max_size": 0, "do_rescale": False, "rescale_factor": 0}
    off |= {"do_normalize": False, "image_mean": "none", "do_pad": False, "pad_size": {"height": 0}}
    own = read_preprocessing(write(tmp_path / "preprocessor_config.json", off))
    assert (own.shortest_edge, own.pad_size) == (None, None)
