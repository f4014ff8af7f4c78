"""Boxes that were drawn on an image as it is stored follow it when EXIF turns it."""

import json
import struct
import zlib
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from faap.data import FaapImages, Preprocessing, load_dataset, read_image
from faap.data.orientation import open_image, read_header, turn_box, upright
from faap.errors import FaapError

STORED, BOX = (50, 30), (6, 4, 20, 9)


def turned(path, orientation, box=BOX, size=STORED):
    """A black PNG of `size` with a white box, and an EXIF orientation."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    x, y, across, down = box
    pixels[y : y + down, x : x + across] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def white_box(image):
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_box_turns_with_its_image(tmp_path, orientation):
    path = turned(tmp_path / "a.png", orientation)
    assert read_header(path) == (STORED, orientation)
    assert upright(STORED, orientation) == read_image(path).size == STORED[::-1]
    assert turn_box(list(BOX), STORED, orientation) == white_box(read_image(path))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_is_stored_as_it_is_read_without_turning(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", STORED).save(tmp_path / "a.tif", exif=exif)
    assert read_header(tmp_path / "a.tif") == (STORED, orientation)
    assert upright(STORED, orientation) == read_image(tmp_path / "a.tif").size


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RAW = b"\nexif\n      26\n" + (b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)).hex().encode()
BEHIND = {
    "EXIF": (b"eXIf", b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "raw profile": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW)),
}


@pytest.mark.parametrize(("kind", "content"), BEHIND.values(), ids=BEHIND.keys())
def test_a_png_may_say_its_orientation_behind_its_pixels(tmp_path, kind, content):
    Image.new("RGB", STORED).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:-12] + chunk(kind, content) + whole[-12:])
    assert read_header(tmp_path / "a.png") == (STORED, 6)
    assert read_image(tmp_path / "a.png").size == STORED[::-1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_the_header_of_a_picture_that_says_no_orientation_is_read_without_its_pixels(tmp_path, suffix):
    Image.new("RGB", STORED).save(tmp_path / f"a.{suffix}")
    with open_image(tmp_path / f"a.{suffix}") as image, patch.object(type(image), "load") as load:
        assert read_header(tmp_path / f"a.{suffix}") == (STORED, 1)
    assert not load.called


@pytest.mark.parametrize("orientation", [0, 1, 9, 77])
def test_other_orientations_turn_nothing(tmp_path, orientation):
    path = turned(tmp_path / "a.png", orientation)
    assert read_header(path) == (STORED, 1)
    assert turn_box(list(BOX), STORED, 1) == list(BOX)


def dataset(root, size, box, orientation):
    images = [
        {"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1], "gender": group}
        for n, group in ((1, "female"), (2, "male"))
    ]
    for entry in images:
        turned(root / entry["file_name"], orientation)
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": list(box)} for n in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (root / "data.json").write_text(json.dumps(content))
    return load_dataset(root)


FRAMES = [(frame, orientation) for frame in ("stored", "upright") for orientation in (1, 5, 6, 7, 8)]


# where the sizes are equal, the upright frame is meant
@pytest.mark.parametrize(("frame", "orientation"), [*FRAMES, ("upright", 2), ("upright", 3), ("upright", 4)])
def test_annotations_of_either_frame_are_read(tmp_path, orientation, frame):
    image = read_image(turned(tmp_path / "a.png", orientation))
    size, box = (STORED, BOX) if frame == "stored" else (image.size, [int(value) for value in white_box(image)])
    split = dataset(tmp_path, size, box, orientation).split("all")
    record = split.records[0]
    assert (record.width, record.height) == image.size
    assert record.boxes[0].tolist() == white_box(image)
    assert record.areas[0] == 180
    sample = FaapImages(split, Preprocessing(None, None), {1: 0})[0]
    assert sample.pixels.shape[1:] == image.size[::-1]


def test_a_size_of_neither_frame_is_refused(tmp_path):
    with pytest.raises(FaapError, match=r"image 1: .*1\.png has 30x50 pixels \(as EXIF turns it\), but .* are 30x51"):
        dataset(tmp_path, (30, 51), BOX, 6).split("all")


def test_a_box_is_held_against_the_frame_it_is_in(tmp_path):
    with pytest.raises(FaapError, match=r"leaves its image, which is 50x30 pixels"):
        dataset(tmp_path, STORED, (6, 25, 20, 9), 6).split("all")


@pytest.mark.parametrize(
    ("orientation", "size", "said"),
    [
        (6, STORED, "2 images, such as 1.png, are turned by their EXIF orientation, and their boxes with them"),
        (3, STORED, "which their size does not show; their boxes are taken to be of the upright image"),
        (6, STORED[::-1], ""),
        (1, STORED, ""),
    ],
)
def test_it_is_said_how_boxes_of_turned_images_are_taken(tmp_path, orientation, size, said):
    notes = dataset(tmp_path, size, (6, 4, 9, 9), orientation).usable("all")
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_a_box_that_fits_the_stored_frame_alone_is_said_to(tmp_path):
    with pytest.raises(
        FaapError, match=r"leaves its image, which is 30x50 .*as a box of the image turned by 90°, 50x30"
    ):
        dataset(tmp_path, STORED[::-1], (6, 4, 40, 9), 6).split("all")
