"""Reading images, and turning them and their boxes into what a detector takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from faap.data.orientation import open_image, orientation_of
from faap.data.problems import opening, place
from faap.errors import FaapError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# DETR's training transform, for a detector whose shortest edge is 800.
EVALUATION_EDGE = 800
TRAINING_EDGES = tuple(range(480, 801, 32))
CROP_EDGES = (400, 500, 600)
CROP_RANGE = (384, 600)

# How Pillow turns an image of EXIF orientation 2, 3 and so on. Its own function rewrites all of EXIF, which may fail.
TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]

Boxes = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Picture = Pixels | Image.Image


@dataclass(frozen=True)
class Preprocessing:
    """How a detector wants its images.

    The transforms of this module resize by it. Batches are normalised as ImageNet, in whose units ε, clamp and jitter
    are; `FrozenDetector.adapt` goes from there to the detector's own `mean`, `std` and `pad_size`.

    Attributes:
        shortest_edge: length in pixels to which the shorter side is resized; None: images keep their size.
        longest_edge: the most that the longer side may then have, in pixels; None: no bound.
        mean: per RGB channel, subtracted from values in [0, 1].
        std: per RGB channel, divides what is left.
        size: (height, width) in pixels that every image is stretched to, instead of the edges; None: by the edges.
        multiple: both sides are cut to a multiple of this when resized by the edges.
        resample: Pillow's number of the filter; 2 is bilinear, 3 bicubic.
        pad_size: (height, width) in pixels that images are padded to; None: the largest in the batch.
    """

    shortest_edge: int | None = 800
    longest_edge: int | None = 1333
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    size: tuple[int, int] | None = None
    multiple: int = 1
    resample: int = Image.Resampling.BILINEAR
    pad_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """What training does to an image, in this order.

    Attributes:
        flip: mirror it.
        scaled: (width, height) in pixels to resize to before the crop; the image's own without a crop.
        crop: (left, top, right, bottom) in pixels of that; None: no crop.
        size: (width, height) in pixels to resize to at the end.
    """

    flip: bool
    scaled: tuple[int, int]
    crop: tuple[int, int, int, int] | None
    size: tuple[int, int]


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, the way up that it is meant to be seen.

    EXIF orientation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits.

    Args:
        path: the file, of one of `FORMATS`.

    Returns:
        A PIL image of mode RGB.

    Raises:
        Problem: the file is missing, truncated or not an image.
    """
    path = Path(path)
    with opening(path, place(path), "image"), open_image(path) as file:
        file.load()  # which turns a TIFF, and so comes first
        if (orientation := orientation_of(file)) > 1:
            return to_rgb(file.transpose(Image.Transpose[TURNS[orientation - 2]]))
        return to_rgb(file)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a picture of any mode into 8-bit RGB as `read_image` does; a ValueError says which it cannot be."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
        wide = np.asarray(image, dtype=np.float64) / 257
        if wide.min() < 0 or wide.max() > 255:
            raise ValueError("its pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits")
        image = Image.fromarray(wide.round().astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def normalise(pixels: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Normalise pixels (..., 3, H, W) in [0, 1] by channel; as ImageNet by default."""
    return (pixels - channels(mean, pixels)) / channels(std, pixels)


def denormalise(values: Tensor) -> Tensor:
    """Undo `normalise` as ImageNet: values (..., 3, H, W) back to pixels in [0, 1]."""
    return values * channels(STD, values) + channels(MEAN, values)


def evaluation_transform(image: Picture, boxes: Boxes, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Resize an image as the detector's evaluation does.

    Args:
        image: RGB, Pillow's or (h, w, 3).
        boxes: (n, 4) xywh in pixels of the image.
        preprocessing: the detector's.

    Returns:
        Pixels (3, H, W) uint8; boxes (n, 4) float32, cxcywh in [0, 1].
    """
    image = np.asarray(image)
    size = _size(image)
    resized = _resize(image, _fitted(size, preprocessing, preprocessing.shortest_edge), preprocessing)
    return planes(resized), _relative(boxes, size)


def training_transform(
    image: Picture,
    boxes: Boxes,
    labels: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    rng: np.random.Generator,
    edges: Sequence[int] = TRAINING_EDGES,
) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
    """Augment an image as DETR's training does: flip, then resize, or resize and crop and resize.

    All lengths are for a detector whose shortest edge is 800, and scaled by `shortest_edge` / 800. A detector of one
    fixed size counts with the smaller side of it, and the last resizing is to that size. Where images keep their size
    only the flip is left.

    Args:
        image: RGB, Pillow's or (h, w, 3).
        boxes: (n, 4) xywh in pixels of the image.
        labels: (n,) one for each box.
        preprocessing: the detector's.
        rng: the only source of randomness.
        edges: shortest edges to draw from, in pixels, for a detector whose own is 800.

    Returns:
        Pixels (3, H, W) uint8; boxes (m, 4) float32, cxcywh in [0, 1], cut at the crop; their labels (m,). Boxes that
        lie outside the crop are dropped.

    Source: Carion et al., ECCV 2020, section 4; docs/recipes.md, "Data".
    """
    image = np.asarray(image)
    plan = plan_training(_size(image), preprocessing, rng, edges)
    if plan.flip:
        image = image[:, ::-1]
        boxes = boxes.copy()
        boxes[:, 0] = image.shape[1] - boxes[:, 0] - boxes[:, 2]
    if plan.crop is not None:
        boxes = boxes * np.tile(np.divide(plan.scaled, _size(image)), 2)
        left, top, right, bottom = plan.crop
        image = _resize(image, plan.scaled, preprocessing)[top:bottom, left:right]
        top_left = (boxes[:, :2] - plan.crop[:2]).clip(0, _size(image))
        bottom_right = (boxes[:, :2] + boxes[:, 2:] - plan.crop[:2]).clip(0, _size(image))
        kept = (bottom_right > top_left).all(1)
        boxes, labels = np.concatenate([top_left, bottom_right - top_left], 1)[kept], labels[kept]
    return planes(_resize(image, plan.size, preprocessing)), _relative(boxes, _size(image)), labels


def plan_training(
    size: tuple[int, int], preprocessing: Preprocessing, rng: np.random.Generator, edges: Sequence[int] = TRAINING_EDGES
) -> TrainingPlan:
    """Draw what `training_transform` does to an image; it needs the size alone, so no file has to be read.

    Args:
        size: width and height of the image in pixels.
        preprocessing: the detector's.
        rng: the only source of randomness.
        edges: as in `training_transform`.

    Returns:
        The plan.
    """
    flip = bool(rng.random() < 0.5)
    edge = min(preprocessing.size) if preprocessing.size else preprocessing.shortest_edge
    if edge is None:
        return TrainingPlan(flip, size, None, size)
    scale = edge / EVALUATION_EDGE
    scaled, crop, end = size, None, size
    if rng.random() < 0.5:
        scaled = _scaled(size, round(scale * CROP_EDGES[int(rng.integers(len(CROP_EDGES)))]), None)
        low, high = (round(scale * bound) for bound in CROP_RANGE)
        drawn = [int(rng.integers(low, max(low, min(side, high)) + 1)) for side in scaled]
        end = min(drawn[0], scaled[0]), min(drawn[1], scaled[1])
        left, top = (int(rng.integers(outer - inner + 1)) for outer, inner in zip(scaled, end, strict=True))
        crop = left, top, left + end[0], top + end[1]
    shortest = round(scale * edges[int(rng.integers(len(edges)))])
    return TrainingPlan(flip, scaled, crop, _fitted(end, preprocessing, shortest))


def _fitted(size: tuple[int, int], preprocessing: Preprocessing, shortest: int | None) -> tuple[int, int]:
    """Return the detector's fixed size if it has one, else that of a shortest edge; all as (width, height)."""
    if preprocessing.size is not None:
        return preprocessing.size[1], preprocessing.size[0]
    if shortest is None:
        return size
    return _scaled(size, shortest, preprocessing.longest_edge, preprocessing.multiple)


def _scaled(size: tuple[int, int], shortest: int, longest: int | None, multiple: int = 1) -> tuple[int, int]:
    low, high = min(size), max(size)
    exact = shortest if longest is None or high / low * shortest <= longest else longest * low / high
    edges = max(1, round(exact)), max(1, int(exact * high / low))
    if low == edges[0]:
        edges = low, high
    width, height = (max(multiple, edge // multiple * multiple) for edge in edges)
    return (width, height) if size[0] <= size[1] else (height, width)


def _size(image: Pixels) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _resize(image: Pixels, size: tuple[int, int], preprocessing: Preprocessing) -> Pixels:
    if _size(image) == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling(preprocessing.resample)))


def planes(image: Pixels) -> Tensor:
    """Turn pixels (h, w, 3) into a tensor (3, h, w) of its own."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


def _relative(boxes: Boxes, size: tuple[int, int]) -> Tensor:
    centred = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], 1)
    return torch.from_numpy((centred / np.tile(size, 2)).astype(np.float32))


def is_coloured(image: Any, *kinds: torch.dtype) -> bool:
    """Whether it is a tensor (..., 3, H, W) of floats or of these kinds."""
    right = isinstance(image, Tensor) and (image.is_floating_point() or image.dtype in kinds)
    return right and image.ndim > 2 and image.shape[-3] == 3


def odd(found: Any, wanted: str, what: str = "image") -> FaapError:
    """Return the error of an image, or a mask, that is not what is wanted."""
    shape = tuple(getattr(found, "shape", getattr(found, "size", ())))
    kind = f"{type(found).__name__} {getattr(found, 'dtype', '')} {shape}"
    return FaapError(f"the {what} is {kind}; it should be {wanted}.")


def channels(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a value for each channel as (C, 1, 1), made where `like` is: no device has to be waited for.

    Raises:
        FaapError: if `like` is no image of floats (..., 3, H, W).
    """
    if not is_coloured(like):
        raise odd(like, "a tensor (..., 3, H, W) of floats")
    return torch.cat([like.new_full((1, 1, 1), value) for value in values])
