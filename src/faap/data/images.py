"""Reading images, and turning them and their boxes into what a detector takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from faap.errors import FaapError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# DETR's training transform, for a detector whose shortest edge is 800.
EVALUATION_EDGE = 800
TRAINING_EDGES = tuple(range(480, 801, 32))
CROP_EDGES = (400, 500, 600)
CROP_RANGE = (384, 600)

Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Preprocessing:
    """How a detector wants its images.

    Attributes:
        shortest_edge: length in pixels to which the shorter side is resized; None: images keep their size.
        longest_edge: the most that the longer side may then have, in pixels; None: no bound.
        mean: per RGB channel, subtracted from values in [0, 1].
        std: per RGB channel, divides what is left.
    """

    shortest_edge: int | None = 800
    longest_edge: int | None = 1333
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, the way up that it is meant to be seen.

    EXIF orientation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits.

    Args:
        path: the file, of any format that Pillow reads.

    Returns:
        A PIL image of mode RGB.

    Raises:
        FaapError: the file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                # Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
                wide = np.asarray(image, dtype=np.float64) / 257
                image = Image.fromarray(wide.round().clip(0, 255).astype(np.uint8))
            elif image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    # Pillow's decoders raise many kinds of errors on broken files.
    except Exception as error:
        raise FaapError(f"{path}: cannot be read as an image: {error}") from error


def normalise(pixels: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Normalise pixels (..., 3, H, W) in [0, 1] by channel."""
    return (pixels - _channels(mean, pixels)) / _channels(std, pixels)


def denormalise(values: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Undo `normalise`: values (..., 3, H, W) back to pixels in [0, 1]."""
    return values * _channels(std, values) + _channels(mean, values)


def evaluation_transform(image: Image.Image, boxes: Boxes, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Resize and normalise an image as the detector's evaluation does.

    Args:
        image: RGB.
        boxes: (n, 4) xywh in pixels of the image.
        preprocessing: the detector's.

    Returns:
        Pixels (3, H, W) float32, normalised; boxes (n, 4) float32, cxcywh in [0, 1].
    """
    resized = _resize(image, preprocessing.shortest_edge, preprocessing.longest_edge)
    return _pixels(resized, preprocessing), _relative(boxes, image.size)


def training_transform(
    image: Image.Image,
    boxes: Boxes,
    labels: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    rng: np.random.Generator,
    edges: Sequence[int] = TRAINING_EDGES,
) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
    """Augment an image as DETR's training does: flip, then resize, or resize and crop and resize.

    All lengths are for a detector whose shortest edge is 800, and scaled by `shortest_edge` / 800. With `shortest_edge`
    None only the flip is left.

    Args:
        image: RGB.
        boxes: (n, 4) xywh in pixels of the image.
        labels: (n,) one for each box.
        preprocessing: the detector's.
        rng: the only source of randomness.
        edges: shortest edges to draw from, in pixels, for a detector whose own is 800.

    Returns:
        Pixels (3, H, W) float32, normalised; boxes (m, 4) float32, cxcywh in [0, 1], cut at the crop; their labels
        (m,). Boxes that lie outside the crop are dropped.

    Source: Carion et al., ECCV 2020, section 4; spec/recipes.md, "Data".
    """
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
        boxes = boxes.copy()
        boxes[:, 0] = image.width - boxes[:, 0] - boxes[:, 2]
    if preprocessing.shortest_edge is not None:
        scale = preprocessing.shortest_edge / EVALUATION_EDGE
        if rng.random() < 0.5:
            before = image.size
            image = _resize(image, round(scale * rng.choice(CROP_EDGES)), None)
            boxes = boxes * np.tile(np.divide(image.size, before), 2)
            image, boxes, labels = _crop(image, boxes, labels, [round(scale * edge) for edge in CROP_RANGE], rng)
        size = image.size
        image = _resize(image, round(scale * rng.choice(np.asarray(edges))), preprocessing.longest_edge)
        return _pixels(image, preprocessing), _relative(boxes, size), labels
    return _pixels(image, preprocessing), _relative(boxes, image.size), labels


def _crop(
    image: Image.Image, boxes: Boxes, labels: npt.NDArray[np.int64], bounds: Sequence[int], rng: np.random.Generator
) -> tuple[Image.Image, Boxes, npt.NDArray[np.int64]]:
    low, high = bounds
    size = np.array([rng.integers(low, max(low, min(edge, high)) + 1) for edge in image.size])
    size = np.minimum(size, image.size)
    corner = rng.integers(np.subtract(image.size, size) + 1)
    image = image.crop((*corner.tolist(), *(corner + size).tolist()))
    top_left = (boxes[:, :2] - corner).clip(0, size)
    bottom_right = (boxes[:, :2] + boxes[:, 2:] - corner).clip(0, size)
    kept = (bottom_right > top_left).all(1)
    return image, np.concatenate([top_left, bottom_right - top_left], 1)[kept], labels[kept]


def _resize(image: Image.Image, shortest: int | None, longest: int | None) -> Image.Image:
    if shortest is None:
        return image
    low, high = min(image.size), max(image.size)
    exact = float(shortest)
    if longest is not None and high / low * shortest > longest:
        exact = longest * low / high
    if low == max(1, round(exact)):
        return image
    edges = max(1, round(exact)), max(1, int(exact * high / low))
    return image.resize(edges if image.width <= image.height else edges[::-1], Image.Resampling.BILINEAR)


def _pixels(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return normalise(values, preprocessing.mean, preprocessing.std).contiguous()


def _relative(boxes: Boxes, size: tuple[int, int]) -> Tensor:
    centred = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], 1)
    return torch.from_numpy((centred / np.tile(size, 2)).astype(np.float32))


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
