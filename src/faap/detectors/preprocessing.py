"""How images are resized, normalised and padded for a detector, from its preprocessor_config.json."""

import math
from pathlib import Path
from typing import Any

from PIL import Image

from faap.conform import conform
from faap.data.images import MEAN, STD, Preprocessing
from faap.detectors.families import FAMILIES
from faap.errors import FaapError
from faap.files import read_json

_SWITCH, _SIZE = (
    (bool, None),
    {"height?": int, "width?": int, "shortest_edge?": (int, None), "longest_edge?": (int, None)},
)
_CONFIG: dict[str, Any] = {
    **dict.fromkeys(("do_resize?", "do_rescale?", "do_normalize?", "do_pad?"), _SWITCH),
    "max_size?": int,
    "resample?": int,
    "rescale_factor?": float,
    "image_mean?": [float],
    "image_std?": [float],
    "pad_size?": _SIZE,
}
_LONGEST = 10_000  # pixels


def read_preprocessing(path: Path, kind: str = "detr", model_config: Any = None) -> Preprocessing:
    """Read how images are resized, normalised and padded from a preprocessor_config.json.

    Args:
        path: the file; `size` may be {"shortest_edge", "longest_edge"}, {"height", "width"} or, as in older files, a
            number with `max_size` beside it. `do_resize` false means that images keep their size, `do_normalize` false
            that values stay in [0, 1].
        kind: one of the `FAMILIES`, whose image processor has its own defaults.
        model_config: of the model, which tells what must divide the sides of an image; None: nothing.

    Returns:
        The preprocessing.

    Raises:
        FaapError: the file is missing, broken, or asks for something else.
    """
    config = {key: value for key, value in read_json(path).items() if value is not None or key.startswith("do_")}
    size = config.get("size")
    conform(config, _CONFIG | ({"size?": _SIZE} if isinstance(size, dict) else {"size?": int}), str(path))
    for key in ("do_center_crop", "size_divisor"):
        if config.get(key):
            raise FaapError(f"{path}: {key} is {config[key]!r}, which is not supported; it should be left out")
    edges: dict[str, Any] = {"shortest_edge": None, "longest_edge": None}
    if config.get("do_resize", True):
        if (fixed := _height_width(size)) is not None:
            edges["size"] = fixed
        elif isinstance(size, dict):
            edges = {key: size.get(key) for key in edges}
        else:
            edges = {"shortest_edge": size, "longest_edge": config.get("max_size", 1333)}
        valid = all(edge is None or 0 < edge <= _LONGEST for edge in (edges["shortest_edge"], edges["longest_edge"]))
        if fixed is None and (not valid or edges["shortest_edge"] is None):
            raise FaapError(
                f'{path}: size is {size!r}; it should be {{"shortest_edge": 800, "longest_edge": 1333}} or '
                f'{{"height": 640, "width": 640}}, or alike, up to {_LONGEST}'
            )
    statistics = config.get("image_mean", list(MEAN)), config.get("image_std", list(STD))
    if any(len(values) != 3 or max(map(abs, values)) > 1e6 for values in statistics) or min(statistics[1]) < 1e-6:
        raise FaapError(f"{path}: image_mean and image_std should be three numbers each, found {statistics}")
    family = FAMILIES[kind]
    if not config.get("do_normalize", family.normalises):
        statistics = [0.0] * 3, [1.0] * 3
    rescale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    if not 1e-6 <= rescale <= 1e6:
        raise FaapError(f"{path}: rescale_factor is {rescale!r}; it should be a number such as 1/255")
    scale = 255 * rescale
    mean, std = (tuple(value if scale == 1 else value / scale for value in map(float, v)) for v in statistics)
    resample = config.get("resample", Image.Resampling.BILINEAR)
    if resample not in list(Image.Resampling):
        raise FaapError(f"{path}: resample is {resample!r}; it should be a filter of Pillow, such as 2 for bilinear")
    pad_size = config.get("pad_size") if config.get("do_pad", True) else None
    if pad_size is not None and _height_width(pad_size) is None:
        raise FaapError(f'{path}: pad_size is {pad_size!r}; it should be {{"height": 800, "width": 1333}} or alike')
    divisor = 1 if model_config is None else family.divisor(model_config)
    for key, sides in (("size", edges.get("size")), ("pad_size", _height_width(pad_size))):
        if sides is not None and any(side % divisor for side in sides):
            near = " or ".join(str((sides[0] // divisor + more) * divisor) for more in (0, 1))
            raise FaapError(
                f"{path}: {key} is {sides[1]}x{sides[0]} pixels (width x height); this {kind} takes multiples of "
                f"{divisor} alone, such as {near}"
            )
    return Preprocessing(
        **edges,
        mean=mean,
        std=std,
        multiple=math.lcm(family.cut, divisor),
        resample=int(resample),
        pad_size=_height_width(pad_size),
    )


def _height_width(value: Any) -> tuple[int, int] | None:
    height, width = (value.get("height"), value.get("width")) if isinstance(value, dict) else (None, None)
    if height is not None and width is not None and 0 < height <= _LONGEST and 0 < width <= _LONGEST:
        return height, width
    return None
