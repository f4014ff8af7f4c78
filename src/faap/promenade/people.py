"""Promenade's people: sprites of one byte a pixel that a scene colours, each identity as a woman and as a man."""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from PIL import Image

GROUPS = ("female", "male")


@dataclass(frozen=True)
class People:
    """The atlas and where each sprite lies in it.

    Attributes:
        atlas: (H, W) uint8, `part << 5 | shade`; part 0 is background, parts 1 to 5 are skin, hair, top, bottom
            and shoes; shade is in [1, 31].
        height: height in pixels of every sprite.
        places: {(identity, view, group): (x, y, width)}.
        splits: {split: range of identities}; no identity is in two splits.
        views: number of views an identity has.
    """

    atlas: np.ndarray
    height: int
    places: dict[tuple[int, int, str], tuple[int, int, int]]
    splits: dict[str, range]
    views: int

    def sprite(self, identity: int, view: int, group: str) -> np.ndarray:
        """Return the (height, width) uint8 sprite."""
        x, y, width = self.places[identity, view, group]
        return self.atlas[y : y + self.height, x : x + width]


@cache
def load_people() -> People:
    """Read the shipped atlas (made by `tools/make_promenade_people.py`)."""
    assets = resources.files("faap.promenade") / "assets"
    header = json.loads((assets / "people.json").read_text())
    with (assets / "people.webp").open("rb") as file, Image.open(file) as image:
        atlas = np.asarray(image.convert("RGB"))[..., 1].copy()
    places = {(i, v, GROUPS[0] if female else GROUPS[1]): (x, y, w) for i, v, female, x, y, w in header["sprites"]}
    splits = {name: range(*bounds) for name, bounds in header["splits"].items()}
    return People(atlas, header["height"], places, splits, 1 + max(view for _, view, _ in places))


def colour(sprite: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colour a sprite.

    Args:
        sprite: (h, w) uint8 as in `People.atlas`.
        colours: (5, 3) float RGB in [0, 255], one a part.

    Returns:
        (h, w, 4) uint8 RGBA.
    """
    palette = np.concatenate([np.zeros((1, 3)), colours, np.zeros((2, 3))])
    values = np.arange(256)
    rgba = np.empty((256, 4), np.uint8)  # of every value that a pixel of a sprite can have
    rgba[:, :3] = np.clip(palette[values >> 5] * ((values & 31) / 31.0)[:, None], 0, 255)
    rgba[:, 3] = np.where(values > 0, 255, 0)
    return np.take(rgba, sprite, axis=0)
