"""Render Promenade's people: every identity once as a woman and once as a man, from the parametric body model anny.

The twins share pose, viewing angle, age, build and pixel height; body shape, hair and the cut of the clothes differ.
A sprite is one byte a pixel, `part << 5 | shade`, so that a scene chooses the colours. All sprites go into one
lossless WebP with an index beside it:

    pip install anny            # needed by this tool only
    .venv/bin/python tools/make_promenade_people.py --out src/faap/promenade/assets --sheet contact_sheet.png
"""

import argparse
import io
import json
import multiprocessing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

SKIN, HAIR, TOP, BOTTOM, SHOES = 1, 2, 3, 4, 5
HEIGHT = 112  # pixels, every sprite
SUPERSAMPLING = 3
WAIST = 0.06  # metres above the lowest spine joint
ATLAS_WIDTH = 4096
SPLITS = (("train", 240), ("val", 80), ("test", 120))
VIEWS_PER_IDENTITY = 3


@dataclass(frozen=True)
class Mesh:
    """Triangles with a part label a face and a unit normal a vertex."""

    vertices: np.ndarray  # (V, 3) metres; x to the body's left, y to its back, z up
    faces: np.ndarray  # (F, 3)
    labels: np.ndarray  # (F,)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    face = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], face)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def join(meshes: list[Mesh]) -> Mesh:
    offsets = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + o for m, o in zip(meshes, offsets, strict=True)]),
        np.concatenate([m.labels for m in meshes]),
    )


def tube(rings: np.ndarray, label: int, closed: bool) -> Mesh:
    """A sheet through (R, K, 3) ring points; `closed` joins the last point of each ring with its first."""
    rows, columns = rings.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    right = np.roll(index, -1, axis=1) if closed else index[:, 1:]
    left = index if closed else index[:, :-1]
    a, b, c, d = left[:-1], right[:-1], left[1:], right[1:]
    faces = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    return Mesh(rings.reshape(-1, 3), faces, np.full(len(faces), label))


class Bodies:
    """The body model with what the wardrobe needs to know of it."""

    def __init__(self) -> None:
        import anny

        self.model: Any = anny.Anny()
        self.bones: list[str] = list(self.model.bone_labels)
        weights = self.model.vertex_bone_weights.numpy()
        indices = self.model.vertex_bone_indices.numpy()
        self.vertex_bone = np.array(self.bones)[indices[np.arange(len(weights)), weights.argmax(1)]]
        self.faces = self.model.faces.numpy()

    def pose(self, shape: dict[str, float], rotations: dict[str, Rotation]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        parameters = torch.eye(4, dtype=torch.float64)[None, None].repeat(1, len(self.bones), 1, 1)
        for bone, rotation in rotations.items():
            parameters[0, self.bones.index(bone), :3, :3] = torch.from_numpy(rotation.as_matrix())
        out = self.model(pose_parameters=parameters, phenotype_kwargs={k: torch.tensor([v]) for k, v in shape.items()})
        heads = {b: out["bone_poses"][0, i, :3, 3].numpy() for i, b in enumerate(self.bones)}
        return out["vertices"][0].numpy(), heads


def axis(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Rotation:
    return Rotation.from_euler("xyz", [x, y, z], degrees=True)


def draw_pose(rng: np.random.Generator) -> dict[str, Rotation]:
    """Bone rotations about the world's axes: standing, walking, waving, on the telephone, hands on the hips."""
    kind = rng.choice(["stand", "walk", "walk", "wave", "phone", "hips", "look"])
    down = {s: rng.uniform(28, 40) for s in "LR"}
    side = {"L": 1.0, "R": -1.0}
    swing = rng.uniform(15, 30) * rng.choice([-1, 1]) if kind == "walk" else rng.uniform(-4, 4)
    pose: dict[str, Rotation] = {}
    for s in "LR":
        forward = swing * side[s]
        bend = rng.uniform(10, 25) if kind != "walk" else rng.uniform(20, 40)
        pose[f"upperleg01.{s}"] = axis(x=-forward, y=side[s] * rng.uniform(0, 4))
        pose[f"lowerleg01.{s}"] = axis(x=max(0.0, -forward) * rng.uniform(0.8, 1.4))
        pose[f"shoulder01.{s}"] = axis(x=forward * 0.6, y=side[s] * down[s])
        pose[f"lowerarm01.{s}"] = axis(x=-bend)
    hand = rng.choice(["L", "R"])
    if kind == "wave":
        pose[f"shoulder01.{hand}"] = axis(y=-side[hand] * rng.uniform(10, 40))
        pose[f"lowerarm01.{hand}"] = axis(y=-side[hand] * rng.uniform(60, 85))
    elif kind == "phone":
        pose[f"shoulder01.{hand}"] = axis(x=-25, y=side[hand] * 32)
        pose[f"lowerarm01.{hand}"] = axis(x=-125, y=-side[hand] * 10)
    elif kind == "hips":
        for s in "LR":
            pose[f"shoulder01.{s}"] = axis(y=side[s] * 8)
            pose[f"lowerarm01.{s}"] = axis(y=side[s] * 75, x=20)
    pose["head"] = axis(x=rng.uniform(-8, 12), z=rng.uniform(-25, 25))
    pose["spine03"] = axis(x=rng.uniform(-2, 5), y=rng.uniform(-3, 3))
    return pose


def dress(bodies: Bodies, vertices: np.ndarray, heads: dict[str, np.ndarray], cut: dict[str, Any]) -> Mesh:
    """The clothed mesh: part labels from the dominant bone, cloth pushed outwards, hair and skirt added."""
    bone, faces = bodies.vertex_bone, bodies.faces
    part = np.full(len(vertices), SKIN)
    starts = lambda *names: np.array([b.startswith(names) for b in bone])  # noqa: E731
    torso = starts("spine", "clavicle", "shoulder")
    part[torso] = TOP
    part[starts("upperarm01")] = TOP if cut["sleeve"] > 0 else SKIN
    part[starts("upperarm02")] = TOP if cut["sleeve"] > 1 else SKIN
    part[starts("lowerarm")] = TOP if cut["sleeve"] > 2 else SKIN
    neckline = torso & (vertices[:, 2] > heads["neck01"][2] - cut["neckline"]) & (abs(vertices[:, 0]) < 0.09)
    part[neckline & (vertices[:, 1] < heads["neck01"][1])] = SKIN
    below = vertices[:, 2] < heads["spine05"][2] + cut["waistline"]
    trunk = starts("spine", "pelvis", "root", "upperleg01")
    part[starts("pelvis", "root", "upperleg01") & ~below] = TOP
    hips = trunk & below
    part[hips] = BOTTOM
    if cut["legs"] >= 1:  # shorts
        part[starts("upperleg02")] = BOTTOM
    if cut["legs"] >= 2:  # trousers
        part[starts("lowerleg")] = BOTTOM
    part[starts("foot", "toe")] = SHOES
    legs = hips | starts("upperleg", "lowerleg")
    if cut["skirt"] > 0:
        part[legs & (vertices[:, 2] > hem(heads, cut) + 0.01)] = cut["skirt_part"]

    normals = vertex_normals(vertices, faces)
    push = np.select([part == TOP, part == BOTTOM, part == SHOES], [cut["ease_top"], cut["ease_legs"], 0.008], 0.0)
    clothed = vertices + normals * push[:, None]

    skull = bone == "head"
    eye = (heads["eye.L"] + heads["eye.R"]) / 2
    centre = (vertices[skull].min(0) + vertices[skull].max(0)) / 2
    top = np.percentile(vertices[skull, 2], 99.5)
    size = top - eye[2]
    forward = eye - centre
    forward[2] = 0
    forward /= np.linalg.norm(forward)
    ahead = (vertices - centre) @ forward
    scalp = skull & (
        (vertices[:, 2] > eye[2] + cut["hairline"] * size)
        | ((ahead < 0.15 * ahead[skull].max()) & (vertices[:, 2] > eye[2] - cut["nape"] * size))
    )
    if cut["beard"]:
        beard = skull & (ahead > 0.3 * ahead[skull].max()) & (vertices[:, 2] < eye[2] - 0.42 * size)
        part[beard] = HAIR
    meshes = [Mesh(clothed, faces, np.median(part[faces], axis=1).astype(int))]
    if cut["hair"] > 0:
        inside = scalp[faces].all(1)
        meshes.append(Mesh(vertices + normals * cut["hair"], faces[inside], np.full(int(inside.sum()), HAIR)))
    if cut["length"] > 0:
        meshes.append(curtain(heads, vertices[skull], centre, forward, eye, size, cut))
    if cut["bun"]:
        meshes.append(ball(centre - forward * 0.13 + np.array([0, 0, 0.6 * size]), 0.055))
    if cut["skirt"] > 0:
        meshes.append(skirt(clothed[trunk | legs], heads, cut))
    return join(meshes)


def ball(centre: np.ndarray, radius: float) -> Mesh:
    polar = np.linspace(0.05, np.pi - 0.05, 10)[:, None]
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)[None]
    unit = np.stack(np.broadcast_arrays(np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)), -1)
    return tube(centre + radius * unit, HAIR, closed=True)


def curtain(
    heads: dict[str, np.ndarray],
    skull: np.ndarray,
    centre: np.ndarray,
    forward: np.ndarray,
    eye: np.ndarray,
    size: float,
    cut: dict[str, Any],
) -> Mesh:
    """Long hair: a sheet round the back and the sides of the head, down to `length` times the way to the shoulders."""
    across = np.array([-forward[1], forward[0], 0.0])
    half_wide = abs((skull - centre) @ across).max()
    half_deep = abs((skull - centre) @ forward).max()
    low = eye[2] - cut["length"] * (eye[2] - heads["clavicle.L"][2])
    angles = np.radians(np.linspace(-100, 100, 36))  # zero points to the back
    rings = []
    for t in np.linspace(0, 1, 24):
        z = (1 - t) * (eye[2] + 0.75 * size) + t * low
        swell = (0.92 + 0.38 * np.sin(np.pi * min(1.0, 0.25 + 0.6 * t))) * (1 - 0.12 * t)
        points = (
            centre
            + np.outer(np.sin(angles) * (half_wide + 0.004) * swell, across)
            - np.outer(np.cos(angles) * (half_deep * 0.82) * swell, forward)
        )
        points[:, 2] = z
        rings.append(points)
    return tube(np.array(rings), HAIR, closed=False)


def hem(heads: dict[str, np.ndarray], cut: dict[str, Any]) -> float:
    """Height of the skirt's lower edge: 1 is the knee, 2 the ankle."""
    waist = heads["spine05"][2] + WAIST
    knee = (heads["lowerleg01.L"][2] + heads["lowerleg01.R"][2]) / 2
    ankle = (heads["foot.L"][2] + heads["foot.R"][2]) / 2
    return float(
        waist - cut["skirt"] * (waist - knee) if cut["skirt"] <= 1 else knee - (cut["skirt"] - 1) * (knee - ankle)
    )


def skirt(legs: np.ndarray, heads: dict[str, np.ndarray], cut: dict[str, Any]) -> Mesh:
    """A frustum that follows the hips and then never narrows, so that no leg pokes through."""
    waist, low_edge = heads["spine05"][2] + WAIST, hem(heads, cut)
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    rings, low, high = [], np.full(2, np.inf), np.full(2, -np.inf)
    for t in np.linspace(0, 1, 30):
        z = (1 - t) * waist + t * low_edge
        near = legs[abs(legs[:, 2] - z) < 0.025][:, :2]
        if len(near):
            low, high = np.minimum(low, near.min(0)), np.maximum(high, near.max(0))
        middle, half = (low + high) / 2, (high - low) / 2 + 0.012 + cut["flare"] * t
        ring = np.stack([middle[0] + half[0] * np.cos(angles), middle[1] + half[1] * np.sin(angles)], -1)
        folds = 1 + 0.03 * t * np.cos(9 * angles)[:, None]
        ring = middle + (ring - middle) * folds
        rings.append(np.concatenate([ring, np.full((len(angles), 1), z)], 1))
    return tube(np.array(rings), cut["skirt_part"], closed=True)


def draw_cut(rng: np.random.Generator, gender: str) -> dict[str, Any]:
    """Hair and the cut of the clothes."""
    if gender == "female":
        skirt_length = rng.choice([0.0, rng.uniform(0.6, 0.95), rng.uniform(1.0, 1.5)], p=[0.25, 0.5, 0.25])
        hair = rng.choice(["long", "bob", "bun"], p=[0.6, 0.25, 0.15])
        return {
            "sleeve": int(rng.integers(0, 4)),
            "neckline": rng.uniform(0.02, 0.09),
            "legs": 2 if skirt_length == 0 else 0,
            "waistline": rng.uniform(0.02, 0.07),
            "ease_top": 0.004,
            "ease_legs": 0.004,
            "hairline": 0.5,
            "nape": 0.7,
            "hair": 0.018,
            "length": {"long": rng.uniform(1.1, 1.9), "bob": rng.uniform(0.55, 0.85), "bun": 0.0}[str(hair)],
            "bun": hair == "bun",
            "beard": False,
            "skirt": float(skirt_length),
            "flare": rng.uniform(0.0, 0.12),
            "skirt_part": TOP if rng.random() < 0.5 else BOTTOM,
        }
    return {
        "sleeve": int(rng.integers(2, 4)),
        "neckline": rng.uniform(0.0, 0.02),
        "legs": 2 if rng.random() < 0.75 else 1,
        "waistline": rng.uniform(-0.05, 0.03),
        "ease_top": rng.uniform(0.015, 0.025),
        "ease_legs": rng.uniform(0.014, 0.022),
        "hairline": rng.uniform(0.5, 0.68),
        "nape": rng.uniform(0.1, 0.4),
        "hair": 0.0 if rng.random() < 0.08 else rng.uniform(0.006, 0.016),
        "length": 0.0,
        "bun": False,
        "beard": bool(rng.random() < 0.3),
        "skirt": 0.0,
        "flare": 0.0,
        "skirt_part": BOTTOM,
    }


def render(mesh: Mesh, yaw: float, pitch: float) -> np.ndarray:
    """Orthographic z-buffer by painting dense surface samples from far to near; (HEIGHT, W) uint8, cropped."""
    turned = mesh.vertices @ (axis(x=pitch) * axis(z=yaw)).as_matrix().T
    normals = vertex_normals(turned, mesh.faces)
    light = np.array([-0.45, -0.65, 0.62])
    lambert = np.abs(normals @ (light / np.linalg.norm(light)))
    facing = np.where((normals @ light) > 0, lambert, lambert * 0.25)
    shade = 0.42 + 0.58 * facing
    low, high = turned.min(0), turned.max(0)
    scale = HEIGHT * SUPERSAMPLING / (high[2] - low[2])
    wide = int(np.ceil((high[0] - low[0]) * scale / SUPERSAMPLING)) * SUPERSAMPLING
    tall = HEIGHT * SUPERSAMPLING
    screen = np.stack([(turned[:, 0] - low[0]) * scale, (high[2] - turned[:, 2]) * scale, turned[:, 1]], -1)
    corners = screen[mesh.faces]
    edges = np.linalg.norm(corners[:, [0, 1, 2], :2] - corners[:, [1, 2, 0], :2], axis=-1).max(1)
    xs, ys, zs, ls, ss = [], [], [], [], []
    for steps in np.unique(np.clip(np.ceil(edges * 1.3), 1, 60)).astype(int):
        chosen = np.clip(np.ceil(edges * 1.3), 1, 60).astype(int) == steps
        grid = np.array([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]) / steps
        points = np.einsum("kc,fcd->fkd", grid, corners[chosen]).reshape(-1, 3)
        xs.append(points[:, 0])
        ys.append(points[:, 1])
        zs.append(points[:, 2])
        ss.append((grid @ shade[mesh.faces[chosen]].T).T.reshape(-1))
        ls.append(np.repeat(mesh.labels[chosen], len(grid)))
    x, y, z, s, label = (np.concatenate(v) for v in (xs, ys, zs, ss, ls))
    order = np.argsort(-z, kind="stable")
    column = np.clip(x[order].astype(int), 0, wide - 1)
    row = np.clip(y[order].astype(int), 0, tall - 1)
    labels, shades = np.zeros((tall, wide), int), np.zeros((tall, wide))
    labels[row, column], shades[row, column] = label[order], s[order]
    return downsample(labels, shades)


def downsample(labels: np.ndarray, shades: np.ndarray) -> np.ndarray:
    """Each pixel takes the label that covers most of its block (background needs more than half), and its shade."""
    k = SUPERSAMPLING
    rows, columns = labels.shape[0] // k, labels.shape[1] // k
    block = labels.reshape(rows, k, columns, k).transpose(0, 2, 1, 3).reshape(rows, columns, k * k)
    shade = shades.reshape(rows, k, columns, k).transpose(0, 2, 1, 3).reshape(rows, columns, k * k)
    count = np.stack([(block == part).sum(-1) for part in range(8)], -1)
    best = count[..., 1:].argmax(-1) + 1
    best = np.where(count[..., 0] > k * k // 2, 0, best)
    member = block == best[..., None]
    mean = (shade * member).sum(-1) / np.maximum(member.sum(-1), 1)
    level = np.clip(np.round(mean * 31), 1, 31).astype(np.uint8)
    sprite = np.where(best > 0, best.astype(np.uint8) << 5 | level, 0).astype(np.uint8)
    columns_used = np.flatnonzero(sprite.any(0))
    return sprite[:, columns_used[0] : columns_used[-1] + 1]


@cache
def the_bodies() -> Bodies:
    torch.set_num_threads(1)
    return Bodies()


def make_sprites(identity: int) -> list[dict[str, Any]]:
    """All views of one identity as a woman and as a man."""
    bodies = the_bodies()
    rng = np.random.default_rng([2024, identity])
    age, build = rng.uniform(0.62, 0.95), rng.uniform(0.3, 0.75)
    muscle, proportions = rng.uniform(0.4, 0.7), rng.uniform(0.35, 0.7)
    cuts = {gender: np.random.default_rng([2025, identity, i]) for i, gender in enumerate(("female", "male"))}
    rows: list[dict[str, Any]] = []
    for view in range(VIEWS_PER_IDENTITY):
        pose = draw_pose(rng)
        yaw, pitch = rng.choice([rng.uniform(-75, 75), rng.uniform(105, 255)], p=[0.7, 0.3]), rng.uniform(-2, 8)
        for value, gender in ((1.0, "female"), (0.0, "male")):
            shape = {"gender": value, "age": age, "muscle": muscle, "weight": build, "height": 0.55}
            vertices, heads = bodies.pose(shape | {"proportions": proportions}, pose)
            mesh = dress(bodies, vertices, heads, draw_cut(cuts[gender], gender))
            rows.append(
                {"identity": identity, "view": view, "gender": gender, "sprite": render(mesh, float(yaw), float(pitch))}
            )
    return rows


def pack(rows: list[dict[str, Any]]) -> tuple[np.ndarray, list[list[int]]]:
    """Shelves of equal height; returns the atlas and (identity, view, female, x, y, width) a sprite."""
    index, x, y = [], 0, 0
    for row in rows:
        width = row["sprite"].shape[1]
        if x + width > ATLAS_WIDTH:
            x, y = 0, y + HEIGHT
        index.append([row["identity"], row["view"], int(row["gender"] == "female"), x, y, width])
        x += width
    atlas = np.zeros((y + HEIGHT, ATLAS_WIDTH), np.uint8)
    for row, (_, _, _, left, top, width) in zip(rows, index, strict=True):
        atlas[top : top + HEIGHT, left : left + width] = row["sprite"]
    return atlas, index


PALETTE = np.array(
    [[235] * 3, [224, 172, 140], [60, 40, 28], [190, 60, 60], [60, 70, 120], [40, 40, 40], [30, 20, 20], [0] * 3], float
)


def contact_sheet(rows: list[dict[str, Any]], columns: int = 20) -> Image.Image:
    """Twins side by side."""
    cell = 80
    sheet = np.full(((len(rows) + columns - 1) // columns * (HEIGHT + 6), columns * cell, 3), 235, np.uint8)
    for i, row in enumerate(rows):
        sprite = row["sprite"][:, :cell]
        colour = PALETTE[sprite >> 5] * np.where(sprite > 0, (sprite & 31) / 31, 1.0)[..., None]
        top, left = i // columns * (HEIGHT + 6), i % columns * cell + (cell - sprite.shape[1]) // 2
        sheet[top : top + HEIGHT, left : left + sprite.shape[1]] = colour
    return Image.fromarray(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for people.webp and people.json")
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of the first identities here")
    parser.add_argument("--identities", type=int, default=sum(n for _, n in SPLITS), help="render only the first N")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        rows = [row for found in pool.imap(make_sprites, range(args.identities), chunksize=4) for row in found]
    atlas, index = pack(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(atlas).save(buffer, "WEBP", lossless=True, quality=100, method=6)
    decoded = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))[..., 1]
    if not np.array_equal(decoded, atlas):
        raise SystemExit("the atlas does not survive its encoding")
    (args.out / "people.webp").write_bytes(buffer.getvalue())
    splits, first = {}, 0
    for name, count in SPLITS:
        splits[name] = [first, first + count]
        first += count
    header = {"height": HEIGHT, "splits": splits, "columns": ["identity", "view", "female", "x", "y", "width"]}
    (args.out / "people.json").write_text(json.dumps(header | {"sprites": index}, separators=(",", ":")))
    print(f"{len(rows)} sprites, {len(buffer.getvalue()) / 1e6:.2f} MB")
    if args.sheet:
        contact_sheet(rows[:160]).save(args.sheet)


if __name__ == "__main__":
    main()
