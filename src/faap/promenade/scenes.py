"""Promenade's scenes: one to three people of one group before a cluttered background.

A scene is a pure function of (seed, split, index, group). In validation and test the group changes nothing but the
people's sprites: every random draw, placement included, is made without looking at the group, so the two versions of a
scene are counterfactual twins.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from faap.promenade.people import GROUPS, People, colour, load_people

WIDTH, HEIGHT = 160, 128
SPLITS = ("train", "val", "test")
PAIRED_SPLITS = ("val", "test")
SHORTEST, TALLEST = 44, 116  # pixels, of a person
NOMINAL_WIDTH = 0.36  # of a person's height; placement uses it instead of the sprite's own width
MINIMUM_SIDE = 4.0  # pixels

_SKIN = np.array(
    [(250, 214, 188), (234, 190, 158), (205, 152, 116), (160, 110, 78), (112, 76, 54), (78, 52, 38)], float
)
_HAIR = np.array([(36, 26, 22), (70, 46, 30), (112, 76, 44), (170, 126, 70), (150, 72, 40), (150, 148, 146)], float)

# what is upright and no person: half its width, as a share of its height
_DECOYS = {"sign": 0.12, "bollard": 0.10, "parasol": 0.3, "stand": 0.13}


@dataclass(frozen=True)
class Scene:
    """One picture and the people in it.

    Attributes:
        image: (128, 160, 3) uint8 RGB.
        boxes: (n, 4) float xywh in pixels, tight around what is visible of each person.
        identities: (n,) identity of each person.
    """

    image: np.ndarray
    boxes: np.ndarray
    identities: tuple[int, ...]


@dataclass(frozen=True)
class _Person:
    identity: int
    view: int
    mirrored: bool
    height: float
    centre: float
    feet: float
    colours: np.ndarray


def compose(
    seed: int, split: str, index: int, group: str, people: People | None = None, *, statues: bool = True
) -> Scene:
    """Compose one scene.

    Args:
        seed: seed of the whole benchmark.
        split: "train", "val" or "test"; each has its own identities.
        index: number of the scene. In "val" and "test" the same index gives twins for the two groups.
        group: "female" or "male".
        people: the atlas; the shipped one by default.
        statues: whether there may be statues; the rest of the scene is the same without them.

    Raises:
        ValueError: if the split or the group is unknown.
    """
    if split not in SPLITS or group not in GROUPS:
        raise ValueError(f"split {split!r} must be one of {SPLITS} and group {group!r} one of {GROUPS}")
    people = people or load_people()
    twin = 0 if split in PAIRED_SPLITS else 1 + GROUPS.index(group)
    rng = np.random.default_rng([seed, SPLITS.index(split), index, twin])
    horizon = rng.uniform(0.30, 0.55) * HEIGHT
    canvas = _background(rng, horizon)
    cast = _cast(rng, people.splits[split], people.views)
    _decoys(rng, canvas, horizon)
    if statues:
        _statues(np.random.default_rng([seed, SPLITS.index(split), index, twin, 1]), canvas, people, split)
    layers = [_draw(canvas, people, person, group) for person in cast]
    cover = _occluders(rng, canvas, cast)
    boxes = [_tight_box(mask & ~np.any([cover, *layers[i + 1 :]], axis=0)) for i, mask in enumerate(layers)]
    return Scene(_develop(rng, canvas), np.array(boxes), tuple(person.identity for person in cast))


def _cast(rng: np.random.Generator, identities: range, views: int) -> list[_Person]:
    """Draw the people from far to near; spread so that nobody is likely to be hidden."""
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.20]))
    chosen = rng.choice(np.asarray(identities), size=count, replace=False)
    placed: list[tuple[float, float]] = []
    cast = []
    for identity in chosen:
        height = float(np.exp(rng.uniform(np.log(SHORTEST), np.log(TALLEST)))) * (0.85 if count == 3 else 1)
        half = height * NOMINAL_WIDTH / 2
        for _ in range(20):
            centre = float(rng.uniform(half * 0.8, WIDTH - half * 0.8))
            if all(abs(centre - other) > 0.75 * max(half, wide) for other, wide in placed):
                break
        placed.append((centre, half))
        nearness = (height - SHORTEST * 0.8) / (TALLEST - SHORTEST * 0.8)
        feet = min(HEIGHT - 1.0, max(height + 2.0, HEIGHT * (0.62 + 0.36 * nearness) + rng.uniform(-6, 6)))
        hues = rng.uniform(0, 1, 3)
        skin = _SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.92, 1.08)
        hair = _HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.85, 1.1)
        clothes = [_cloth(rng, hue) * shade for hue, shade in zip(hues, (1, 0.85, 0.5), strict=True)]
        view, mirrored = int(rng.integers(views)), bool(rng.random() < 0.5)
        colours = np.stack([skin, hair, *clothes])
        cast.append(_Person(int(identity), view, mirrored, height, centre, feet, colours))
    return sorted(cast, key=lambda person: person.feet)


def _cloth(rng: np.random.Generator, hue: float) -> np.ndarray:
    saturation, value = rng.beta(1.5, 1.8), rng.uniform(0.25, 1.0)
    channels = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return np.asarray(255 * value * (1 - saturation + saturation * np.clip(channels, 0, 1)))


def _draw(canvas: Image.Image, people: People, person: _Person, group: str) -> np.ndarray:
    """Draw a person, and the shadow at their feet; return the (H, W) mask of what they cover."""
    w, h = person.height * 0.16, person.height * 0.03
    shade = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(shade).ellipse((person.centre - w, person.feet - h, person.centre + w, person.feet + h), fill=90)
    canvas.paste((20, 20, 20), (0, 0), shade)
    sprite = people.sprite(person.identity, person.view, group)
    rgba = Image.fromarray(colour(sprite[:, ::-1] if person.mirrored else sprite, person.colours)).convert("RGBa")
    scale = person.height / people.height
    size = width, height = max(1, round(rgba.width * scale)), max(1, round(person.height))
    # Each pass rounds, and which comes first has changed in Pillow: the order here is that of its version 13.
    upright = rgba.height - height > max(0, 2 * (rgba.width - width))
    small = rgba
    for step in ((rgba.width, height) if upright else (width, rgba.height), size):
        small = small.resize(step, Image.Resampling.BOX if scale < 0.6 else Image.Resampling.BILINEAR)
    small = small.convert("RGBA")
    corner = (round(person.centre - size[0] / 2), round(person.feet) - size[1])
    canvas.paste(small, corner, small)
    cover = Image.new("L", (WIDTH, HEIGHT))
    cover.paste(small.getchannel("A"), corner)
    return np.asarray(np.asarray(cover) > 127)


def _tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    x, y = float(columns[0]), float(rows[0])
    return x, y, max(MINIMUM_SIDE, columns[-1] + 1 - x), max(MINIMUM_SIDE, rows[-1] + 1 - y)


def _tone(rng: np.random.Generator, low: float = 40, high: float = 220, spread: float = 14) -> tuple[int, int, int]:
    base = rng.uniform(low, high)
    r, g, b = np.clip(base + rng.normal(0, spread, 3), 0, 255).astype(int)
    return int(r), int(g), int(b)


def _leaf(rng: np.random.Generator) -> tuple[int, int, int]:
    light = rng.uniform(0.5, 1.4)
    return int(70 * light), int(95 * light), int(rng.uniform(40, 65) * light)


def _background(rng: np.random.Generator, horizon: float) -> Image.Image:
    """Wall or sky above the horizon, ground below, with windows, bushes, posts and stripes."""
    top, bottom = np.array(_tone(rng, 90, 230)), np.array(_tone(rng, 90, 230))
    rows = np.linspace(0, 1, HEIGHT)[:, None, None]
    picture = np.broadcast_to(top + (bottom - top) * rows, (HEIGHT, WIDTH, 3)).copy()
    ground = np.array(_tone(rng, 60, 200))
    below = np.arange(HEIGHT) > horizon
    picture[below] = ground * np.linspace(0.75, 1.1, int(below.sum()))[:, None, None]
    coarse = Image.fromarray(rng.integers(0, 255, (24, 30), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float)
    picture += (smooth[..., None] - 127) * rng.uniform(0.05, 0.25)
    canvas = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    style = rng.choice(["street", "park", "hall"])
    if style == "street":
        step = int(rng.integers(14, 30))
        glass = _tone(rng, 30, 140)
        for left in range(int(rng.integers(0, step)), WIDTH, step):
            for upper in range(int(rng.integers(2, 6)), int(horizon) - 8, int(rng.integers(14, 26))):
                draw.rectangle((left, upper, left + step // 2, upper + 9), fill=glass)
    elif style == "park":
        for _ in range(int(rng.integers(2, 7))):
            x, r = rng.uniform(0, WIDTH), rng.uniform(8, 26)
            y = horizon - rng.uniform(0, 12)
            draw.ellipse((x - r, y - r, x + r, y + r * 0.8), fill=_leaf(rng))
    else:
        for x in np.arange(rng.uniform(0, 20), WIDTH, rng.uniform(20, 45)).tolist():
            draw.rectangle((x, 0, x + rng.uniform(3, 8), horizon), fill=_tone(rng, 60, 230))
    for _ in range(int(rng.integers(0, 4))):
        y = rng.uniform(horizon, HEIGHT)
        draw.line((0, y, WIDTH, y + rng.uniform(-25, 25)), fill=_tone(rng), width=int(rng.integers(1, 4)))
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.uniform(0, WIDTH), rng.uniform(horizon - 20, HEIGHT - 8)
        w, h = rng.uniform(4, 26), rng.uniform(4, 24)
        shape = draw.rectangle if rng.random() < 0.6 else draw.ellipse
        shape((x, y - h, x + w, y), fill=_tone(rng, 30, 225, 35))
    return canvas


def _decoys(rng: np.random.Generator, canvas: Image.Image, horizon: float) -> None:
    """Now and then something upright that is not a person: a sign, a bollard, a parasol, a coat on a stand."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.choice([0, 1, 2], p=[0.65, 0.25, 0.10]))):
        height, x = rng.uniform(25, 85), rng.uniform(4, WIDTH - 4)
        feet = min(HEIGHT - 1.0, max(height + 2, horizon + rng.uniform(5, 60)))
        body, head = _tone(rng, 30, 220, 40), _tone(rng, 30, 220, 40)
        kind = rng.choice(list(_DECOYS))
        y, w = feet - height, height * _DECOYS[kind]
        if kind == "bollard":
            draw.rectangle((x - w, y + w, x + w, feet), fill=body)
        else:
            draw.line((x, y, x, feet), fill=body, width=2)
        if kind in ("sign", "bollard"):
            draw.ellipse((x - w, y, x + w, y + 2 * w), fill=head)
        elif kind == "parasol":
            draw.polygon(((x, y), (x - w, y + w), (x + w, y + w)), fill=head)
        else:
            top, bottom = y + 4, y + height * 0.6
            draw.polygon(((x - w * 0.6, top), (x + w * 0.6, top), (x + w, bottom), (x - w, bottom)), fill=head)


def _statues(rng: np.random.Generator, canvas: Image.Image, people: People, split: str) -> None:
    """In every other scene one or two statues or shop-window figures: people's shapes in nearly one colour, unlabelled.

    They are what a detector takes for people when it is wrong, and they are the same in both twins.
    """
    for _ in range(int(rng.choice([0, 1, 2], p=[0.5, 0.3, 0.2]))):
        height = float(np.exp(rng.uniform(np.log(SHORTEST), np.log(TALLEST))))
        centre = float(rng.uniform(0, WIDTH))
        feet = min(HEIGHT - 1.0, max(height + 2.0, rng.uniform(0.6, 1.0) * HEIGHT))
        tone = np.array(_tone(rng, 50, 215, 18), float)
        colours = np.clip(tone * rng.uniform(0.85, 1.15, (5, 1)), 0, 255)
        identity = int(rng.choice(np.asarray(people.splits[split])))
        view, mirrored = int(rng.integers(people.views)), bool(rng.random() < 0.5)
        statue = _Person(identity, view, mirrored, height, centre, feet, colours)
        _draw(canvas, people, statue, GROUPS[int(rng.integers(2))])


def _occluders(rng: np.random.Generator, canvas: Image.Image, cast: list[_Person]) -> np.ndarray:
    """Sometimes a bench, a box or a bush before somebody's legs; returns the (H, W) mask of what it covers."""
    cover = Image.new("L", (WIDTH, HEIGHT))
    if rng.random() < 0.3:
        person = cast[int(rng.integers(len(cast)))]
        w, h = person.height * rng.uniform(0.15, 0.45), person.height * rng.uniform(0.12, 0.38)
        x, y = person.centre + rng.uniform(-0.12, 0.12) * person.height, person.feet + 1
        box = (x - w, y - h, x + w, y + rng.uniform(0, 6))
        tone = _tone(rng, 30, 210, 40)
        for surface, fill in ((canvas, tone), (cover, 255)):
            draw = ImageDraw.Draw(surface)
            (draw.rectangle if w > 1.2 * h else draw.ellipse)(box, fill=fill)
    return np.asarray(cover) > 0


def _develop(rng: np.random.Generator, canvas: Image.Image) -> np.ndarray:
    """Light, a little blur and sensor noise."""
    blur = float(rng.choice([0.0, rng.uniform(0.3, 0.9)]))
    if blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(blur))
    picture = np.array(canvas, np.float32)
    picture *= np.float32(rng.uniform(0.6, 1.15)) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    slope = np.linspace(1 - rng.uniform(0, 0.3), 1, WIDTH, dtype=np.float32)
    if rng.random() < 0.5:
        slope = slope[::-1]
    noise = rng.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32) * np.float32(rng.uniform(1, 6))
    picture *= slope[None, :, None]
    picture += noise
    return picture.clip(0, 255, out=picture).astype(np.uint8)
