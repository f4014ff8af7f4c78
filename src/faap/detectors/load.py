"""Finding a detector by its name: the embedded one, a file, a directory, the hub, or a function of one's own."""

import importlib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

from faap.detectors.base import FrozenDetector
from faap.detectors.hugging_face import FILES, OLDER_FILES, load_hugging_face, try_out
from faap.detectors.original import load_original
from faap.errors import FaapError
from faap.files import hub_folder

_HOLDS = "config.json, model.safetensors and preprocessor_config.json"


def load_detector(name: str | Path, device: str | torch.device | None = None) -> FrozenDetector:
    """Load a detector, frozen and ready.

    Args:
        name: "promenade" for the detector of the embedded benchmark; a directory with config.json, model.safetensors
            and preprocessor_config.json of one of the `FAMILIES` of transformers; a checkpoint (.pth) of the original
            DETR; "organisation/model" for a model of the Hugging Face hub; or "package.module:function" for a function
            of your own that takes nothing and returns a `FrozenDetector`.
        device: where to put it; the CPU by default.

    Returns:
        The detector.

    Raises:
        FaapError: `name` is none of these, or its content is not a supported detector.
    """
    return _load(str(name)).to(device)


def _load(name: str) -> FrozenDetector:
    if name == "promenade":
        from faap.promenade import detector_dir

        return load_hugging_face(detector_dir("biased"), name="promenade")
    place = Path(name)
    if place.is_file():
        if place.suffix in (".safetensors", ".bin", ".json"):
            raise FaapError(f"{place}: is one of a detector's files; give its folder, {place.parent}, with {_HOLDS}")
        return load_original(place)
    if place.is_dir():
        return load_hugging_face(place)
    if re.fullmatch(r"[\w.]+:\w+", name):
        return _call(*name.split(":"))
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and place.suffix != ".pth":
        folder = hub_folder(name, FILES)
        if not any(folder.glob("model*.safetensors")):
            folder = hub_folder(name, [*FILES, *OLDER_FILES])
        return load_hugging_face(folder, name=name)
    raise FaapError(
        f"detector {name} does not exist; give 'promenade', a directory with {_HOLDS} of a DETR or one of its kin, an "
        "original DETR checkpoint (.pth), the name of a model on the Hugging Face hub (organisation/model), or a "
        "function of your own (package.module:function)"
    )


def _call(module: str, function: str) -> FrozenDetector:
    """Call a user's function, which may stand in a file of the working directory."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        try:
            build = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            wanted = "a function of a module that Python can import, or of a file in the working directory"
            raise FaapError(f"detector {module}:{function}: {error}; it should name {wanted}") from error
        detector = build() if callable(build) else build
    finally:
        with suppress(ValueError):  # the module may have put others before it, or taken it away
            sys.path.remove(here)
    if not isinstance(detector, FrozenDetector):
        wanted = "a function that takes nothing and returns a faap.detectors.FrozenDetector"
        raise FaapError(f"detector {module}:{function}: is {type(detector).__name__}; it should be {wanted}")
    try_out(detector, f"detector {module}:{function}")
    return detector
