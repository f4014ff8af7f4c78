"""What of a run is there already, and how it goes on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from faap.compare.gather import read
from faap.config import Recipe
from faap.errors import FaapError
from faap.runs import Run
from faap.training.checkpoints import is_from


class Standing(NamedTuple):
    """How far a run is.

    Attributes:
        recipe: with which it goes on.
        finished: whether it is complete, with these settings, and what it left can be read.
        note: what a user wants to know of what lies there, or nothing.
    """

    recipe: Recipe
    finished: bool = False
    note: str = ""


def standing(run: Recipe, test_sha256: str = "", origin: Mapping[str, str] = {}) -> Standing:
    """Look at what lies in a run's folder; nothing there is trusted, and nothing there is an error.

    Args:
        run: what is to be there.
        test_sha256: fingerprint of the test images on which it is to be measured; empty: any.
        origin: of what it is to be, as `origin_of` says it; empty: of anything.
    """
    folder = Run(run.output_dir)
    if not (folder.is_trained_with(run) and is_from(folder, origin)):
        what = "a run with other settings, of other data, detector or code, or one that cannot be read"
        note = f"{folder.path} holds {what}; it is moved aside."
        return Standing(replace(run, fresh=True), note=note if folder.config.exists() or folder.epochs() else "")
    if not folder.is_complete():
        return Standing(run)
    try:
        source = read(run).metrics.get("provenance", {})
    except FaapError as error:
        return Standing(replace(run, resume=run.output_dir), note=f"{error} It is measured again.")
    if test_sha256 and source.get("split_sha256", test_sha256) != test_sha256:
        return Standing(run, note=f"{folder.path}: was measured on other test images. It is measured again.")
    return Standing(run, finished=True)
