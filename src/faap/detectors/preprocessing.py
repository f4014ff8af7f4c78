"""How images are resized, normalised and padded for a detector, from its preprocessor_config.json."""

import math
from pathlib import Path
from typing import Any

from PIL import Image

from faap.conform import Between, conform
from faap.data.images import MEAN, STD, Preprocessing
from faap.detectors.families import FAMILIES
from faap.errors import FaapError
from faap.files import read_json

_SIDE = Between(1, 10_000, 1)  # pixels
_SIDES = {"height": _SIDE, "width": _SIDE}
_EDGES = {"shortest_edge": _SIDE, "longest_edge?": (_SIDE, None)}
_SWITCHED = {"do_resize": ("size", "max_size"), "do_pad": ("pad_size",), "do_rescale": ("rescale_factor",)}
_SWITCHED["do_normalize"] = ("image_mean", "image_std")
_CONFIG: dict[str, Any] = {
    "max_size?": _SIDE,
    "pad_size?": _SIDES,
    "resample?": Between(0, 5, 1),  # Pillow's filters
    "rescale_factor?": Between(1e-6, 1e6),
    "image_mean?": [Between(-1e6, 1e6)] * 3,
    "image_std?": [Between(1e-6, 1e6)] * 3,
}


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
    family = FAMILIES[kind]
    does = {"do_resize": True, "do_rescale": True, "do_normalize": family.normalises, "do_pad": True}
    content = read_json(path)
    conform(content, {f"{switch}?": (bool, None) for switch in does}, str(path))
    does |= content
    for key in ("do_center_crop", "size_divisor"):
        if does.get(key):
            raise FaapError(f"{path}: {key} is {does[key]!r}, which is not supported; it should be left out")
    unused = [key for switch, keys in _SWITCHED.items() if not does[switch] for key in keys]
    config = {key: value for key, value in content.items() if value is not None and key not in unused}
    size = config.get("size", {})
    shape = _SIDE if not isinstance(size, dict) else _SIDES if size.get("height") else _EDGES
    conform(config, _CONFIG | {"size" if does["do_resize"] else "size?": shape}, str(path))
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": config.get("max_size", 1333)}
    given = {"size": size, "pad_size": config.get("pad_size", {})}
    sides = {key: (each["height"], each["width"]) for key, each in given.items() if each.get("height")}
    divisor = 1 if model_config is None else family.divisor(model_config)
    for key, lengths in sides.items():
        if any(length % divisor for length in lengths):
            near = " or ".join(str((lengths[0] // divisor + more) * divisor) for more in (0, 1))
            found = f"{key} is {lengths[1]}x{lengths[0]} pixels (width x height)"
            raise FaapError(f"{path}: {found}; this {kind} takes multiples of {divisor} alone, such as {near}")
    edges = {} if "size" in sides else size
    scale = 255 * (config.get("rescale_factor", 1 / 255) if does["do_rescale"] else 1)
    statistics = config.get("image_mean", MEAN), config.get("image_std", STD)
    mean, std = statistics if does["do_normalize"] else ([0.0] * 3, [1.0] * 3)
    return Preprocessing(
        shortest_edge=edges.get("shortest_edge"),
        longest_edge=edges.get("longest_edge"),
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
        multiple=math.lcm(family.cut, divisor),
        resample=config.get("resample", Image.Resampling.BILINEAR),
        **sides,
    )
