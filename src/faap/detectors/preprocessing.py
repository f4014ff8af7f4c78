"""Reading a detector directory's JSON files: preprocessor_config.json, and what they all have in common."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from faap.data.images import MEAN, STD, Preprocessing
from faap.errors import FaapError


def read_preprocessing(path: Path, kind: str = "detr") -> Preprocessing:
    """Read how images are resized, normalised and padded from a preprocessor_config.json.

    Args:
        path: the file; `size` may be {"shortest_edge", "longest_edge"}, {"height", "width"} or, as in older files, a
            number with `max_size` beside it. `do_resize` false means that images keep their size, `do_normalize` false
            that values stay in [0, 1].
        kind: model_type of the config.json beside it, whose image processor has its own defaults.

    Returns:
        The preprocessing.

    Raises:
        FaapError: the file is missing, broken, or asks for something else.
    """
    config = read_json(path)
    for key in ("do_center_crop", "size_divisor"):
        if config.get(key):
            raise FaapError(f"{path}: {key} is {config[key]!r}, which is not supported; it should be left out")
    edges: dict[str, Any] = {"shortest_edge": None, "longest_edge": None}
    size = config.get("size")
    if config.get("do_resize", True):
        fixed = _height_width(size)
        if fixed is not None:
            edges["size"] = fixed
        elif isinstance(size, dict):
            edges = {key: size.get(key) for key in edges}
        else:
            edges = {"shortest_edge": size, "longest_edge": config.get("max_size", 1333)}
        valid = all(edge is None or (type(edge) is int and edge > 0) for edge in edges.values())
        if fixed is None and (not valid or edges["shortest_edge"] is None):
            raise FaapError(
                f'{path}: size is {size!r}; it should be {{"shortest_edge": 800, "longest_edge": 1333}} or '
                '{"height": 640, "width": 640}, or alike'
            )
    statistics = config.get("image_mean", list(MEAN)), config.get("image_std", list(STD))
    if not all(
        isinstance(values, list) and len(values) == 3 and all(isinstance(value, int | float) for value in values)
        for values in statistics
    ) or not all(statistics[1]):
        raise FaapError(f"{path}: image_mean and image_std should be three numbers each, found {statistics}")
    # RT-DETR's processor, which D-FINE shares, does not normalise unless it is told to
    if not config.get("do_normalize", kind not in ("rt_detr", "rt_detr_v2", "d_fine")):
        statistics = [0.0] * 3, [1.0] * 3
    rescale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    if not isinstance(rescale, int | float) or rescale <= 0:
        raise FaapError(f"{path}: rescale_factor is {rescale!r}; it should be a number such as 1/255")
    scale = 255 * rescale
    mean, std = (tuple(value if scale == 1 else value / scale for value in map(float, v)) for v in statistics)
    resample = config.get("resample", Image.Resampling.BILINEAR)
    if resample not in list(Image.Resampling):
        raise FaapError(f"{path}: resample is {resample!r}; it should be a filter of Pillow, such as 2 for bilinear")
    pad_size = config.get("pad_size") if config.get("do_pad", True) else None
    if pad_size is not None and _height_width(pad_size) is None:
        raise FaapError(f'{path}: pad_size is {pad_size!r}; it should be {{"height": 800, "width": 1333}} or alike')
    return Preprocessing(
        **edges,
        mean=mean,
        std=std,
        multiple=16 if kind == "yolos" else 1,
        resample=int(resample),
        pad_size=_height_width(pad_size),
    )


def _height_width(value: Any) -> tuple[int, int] | None:
    height, width = (value.get("height"), value.get("width")) if isinstance(value, dict) else (None, None)
    if type(height) is int and type(width) is int and height > 0 and width > 0:
        return height, width
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a FaapError says what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FaapError(
            f"{path}: {error.strerror}; a detector directory holds config.json, model.safetensors and "
            "preprocessor_config.json"
        ) from error
    except ValueError as error:
        raise FaapError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise FaapError(f"{path}: should hold a JSON object, found {type(content).__name__}")
    return content
