"""The recipe that a training starts with: as it was asked for, or as the checkpoint says that it goes on from."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from faap.config import Recipe, load_recipe, recipe_names
from faap.errors import FaapError
from faap.runs import FREE_FIELDS
from faap.training.checkpoints import read_checkpoint

# what a field looks like that names Python to import
_CODE = {"detr_checkpoint": r"[\w.]+:\w+", "terms": r".+"}
EMBEDDED = "promenade"


def recipe_to_resume(path: Path, name: str, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe with which a run goes on: the checkpoint's, but for the fields that are given.

    Args:
        path: the checkpoint.
        name: the recipe that was asked for; it must be the checkpoint's.
        overrides: fields that the user gave.

    Raises:
        FaapError: if the checkpoint cannot be read, is of another recipe, or names code that nobody asked for.
    """
    asked = load_recipe(name, **overrides)
    stored = read_checkpoint(path)["recipe"]
    if stored.get("name") != asked.name:
        raise FaapError(f"{path}: a checkpoint of the recipe {stored.get('name')!r}, not of {asked.name!r}.")
    kept = {key: value for key, value in stored.items() if key not in FREE_FIELDS} | dict(overrides)
    for field, code in _CODE.items():
        value = str(kept.get(field, ""))
        if re.fullmatch(code, value) and value != getattr(asked, field, ""):
            raise FaapError(
                f"{path}: its recipe has {field} {value!r}, which is Python to run, and nothing that a file names is "
                f"run unless you name it too: if you trust it, say --{field} {value}."
            )
    try:
        return load_recipe(name, **kept)
    except FaapError as error:
        raise FaapError(f"{path}: its recipe cannot go on: {error}") from None


def refuse_half_given(name_or_path: str | Path, overrides: Mapping[str, Any]) -> None:
    """Refuse a person's own data without a detector, or the reverse: the other would be the embedded benchmark's.

    Args:
        name_or_path: of the recipe, which `load_recipe` has found right; what its file says is given, too.
        overrides: fields that the user gave.

    Raises:
        FaapError: naming the flag that is missing.
    """
    given = dict(overrides)
    if name_or_path not in recipe_names():
        given = yaml.load(Path(name_or_path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader) | given
    for one, other, what in (
        ("dataset_root", "detr_checkpoint", "the detector to train in front of"),
        ("detr_checkpoint", "dataset_root", "the data set to train on"),
    ):
        if other not in given and str(given.get(one, EMBEDDED)) != EMBEDDED:
            raise FaapError(
                f"{one} is {given[one]}, but {other} is not given: say {what} with --{other} (promenade: that of the "
                "embedded benchmark)."
            )
