"""What a data set holds, and everything that is wrong with it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from faap.data import Dataset, Problem, Record, Split
from faap.data.layouts import WHOLE, decode
from faap.evaluation import Detections, coco_metrics

# Perceptual hashes of 256 bits: pictures of other scenes differ in about 128, a smaller or re-encoded copy in a few.
HASH_SIDE, NEAR = 16, 16
SMALL, LARGE = 32**2, 96**2  # COCO's bounds of area, in square pixels
_SHOWN = 5
_CAPTION = "s/m/l: people below 32², up to 96² and above 96² square pixels; aspect: width over height of the images"


def check(dataset: Dataset, *, images: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Look through a whole data set.

    Args:
        dataset: opened; whether it leaves broken records out makes no difference here.
        images: decode every image too, and look for copies in other splits and groups; otherwise only annotations and
            the headers of images are read.
        console: where progress is shown; None: nowhere.

    Returns:
        Ready for JSON: root, layout, note, groups [anchor, reference], splits {name: {images, people, left_out, groups
        {group: what there is}, mixed}}, problems [{kind, file, record, reason}] and counts {kind: number}.
    """
    splits = {name: _split(dataset, name) for name in dataset.splits}
    problems = dataset.check()
    # the whole of a data set that faap divides is no split beside the others
    parts = {name: split for name, split in splits.items() if name != WHOLE}
    if images:
        problems += _look(parts, console)
    for name, split in parts.items():
        if not split.records and not any(not each.record for each in dataset.read(name).problems):
            problems.append(Problem("empty_split", dataset.root, f"split {name}", "holds no image"))
        problems += [
            Problem("empty_group", dataset.root, f"split {name}", f"has nobody of group {group!r} to find")
            for group in (dataset.anchor, dataset.reference)
            if split.records and not any((~record.crowd).any() for record in split.of(group))
        ]
    return {
        "root": str(dataset.root),
        "layout": dataset.layout,
        "note": dataset.note,
        "groups": [dataset.anchor, dataset.reference],
        "splits": {
            name: _contents(split) | {"left_out": dataset.read(name).left_out} for name, split in splits.items()
        },
        "problems": [
            {"kind": each.kind, "file": str(each.file), "record": each.record, "reason": each.reason}
            for each in problems
        ],
        "counts": dict(Counter(each.kind for each in problems)),
    }


def print_check(result: dict[str, Any], console: Console) -> None:
    """Print what `check` found: what is there, then what is wrong, a few examples of each kind."""
    table = Table("split", caption=_CAPTION)
    table.add_column("group", overflow="fold")
    for heading in ("images", "people", "s/m/l", "crowds", "image size", "aspect"):
        table.add_column(heading, overflow="fold", justify="right")
    for name, split in result["splits"].items():
        for group, values in split["groups"].items():
            sizes = "–".join(f"{width}x{height}" for width, height in values["image_sizes"])
            shapes = "–".join(dict.fromkeys(f"{values['image_aspect'][i]:.2f}" for i in (0, 2)))
            areas = "/".join(str(values[size]) for size in ("small", "medium", "large"))
            cells = (values["images"], values["people"], areas, values["crowds"], sizes, shapes)
            table.add_row(name, Text(group), *map(str, cells))
    console.print(f"{result['root']}: {result['layout']}", markup=False, highlight=False)
    console.print(table)
    if result["note"]:
        console.print(result["note"], style="yellow")
    for name, split in result["splits"].items():
        if split["left_out"]:
            console.print(f"{name}: {split['left_out']} images in which nobody has a group are left out")
        if mixed := split["mixed"]:
            console.print(
                f"{name}: images that show people of several groups: {mixed['images']}. The others' boxes are regions "
                "to ignore there. What a detector that finds everybody exactly would score:"
            )
            for group, values in mixed["perfect_detector_ap"].items():
                console.print(
                    f"  {group}: AP {_number(values['ignored'])}; were the others' boxes left out instead, they would "
                    f"be false positives and AP {_number(values['left_out'])}",
                    highlight=False,
                    markup=False,
                )
    if not result["problems"]:
        console.print("Nothing is wrong with it.", style="green")
    for kind, count in result["counts"].items():
        console.print(f"{kind}: {count}", style="bold red", highlight=False)
        chosen = [problem for problem in result["problems"] if problem["kind"] == kind]
        for problem in chosen[:_SHOWN]:
            words = ": ".join(problem[key] for key in ("file", "record", "reason") if problem[key])
            console.print(f"  {words}", markup=False, highlight=False)
        if count > _SHOWN:
            console.print(f"  … and {count - _SHOWN} more (--json lists all)")


def _split(dataset: Dataset, name: str) -> Split:
    reading = dataset.read(name)
    return Split(name, tuple(reading.records), reading.categories, dataset.anchor, dataset.reference)


def _contents(split: Split) -> dict[str, Any]:
    mixed = sum(len(record.groups) > 1 for record in split.records)
    groups = split.counts()
    return {
        "images": len(split.records),
        "categories": {str(key): name for key, name in split.categories.items()},
        "groups": {group: _group(split, group) for group in groups},
        "mixed": {"images": mixed, "perfect_detector_ap": _perfect(split, list(groups))} if mixed else None,
    }


def _group(split: Split, group: str) -> dict[str, Any]:
    """Describe the images that count for a group, and the group's own people in them."""
    records = [split.records[position] for position in split.positions(group)]
    own = [np.array([owner == group for owner in _owners(record)], dtype=bool) for record in records]
    people = [mine & ~record.crowd for mine, record in zip(own, records, strict=True)]
    areas = np.concatenate([record.areas[mine] for mine, record in zip(people, records, strict=True)])
    heights = np.concatenate([record.boxes[mine, 3] for mine, record in zip(people, records, strict=True)])
    sizes = sorted({(record.width, record.height) for record in records}, key=lambda size: (size[0] * size[1], size))
    return {
        "images": len(records),
        "people": len(areas),
        "small": int((areas < SMALL).sum()),
        "medium": int(((areas >= SMALL) & (areas <= LARGE)).sum()),
        "large": int((areas > LARGE).sum()),
        "crowds": int(sum((mine & record.crowd).sum() for mine, record in zip(own, records, strict=True))),
        "image_sizes": [list(size) for size in (sizes[:1] if len(sizes) == 1 else [sizes[0], sizes[-1]])],
        "image_aspect": _range([record.width / record.height for record in records]),
        "box_height": _range(heights.tolist()),
    }


def _owners(record: Record) -> Sequence[str]:
    return [record.group] * len(record.boxes) if record.owners is None else record.owners


def _range(values: list[float]) -> list[float] | None:
    """Least, median and greatest value."""
    return [round(float(value), 4) for value in np.percentile(values, [0, 50, 100])] if values else None


def _perfect(split: Split, groups: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Measure a detector that finds everybody exactly, with others' boxes ignored, and naively, with them left out."""
    result = {}
    for group in groups:
        positions = split.positions(group)
        found = [_exactly(split.records[position]) for position in positions]
        naive = [_only(split.records[position], group) for position in positions]
        values = [coco_metrics(records, found, split.categories)["AP"] for records in (split.of(group), naive)]
        ignored, left_out = (value if np.isfinite(value) else None for value in values)
        result[group] = {"ignored": ignored, "left_out": left_out}
    return result


def _exactly(record: Record) -> Detections:
    real = ~record.crowd
    return Detections(record.image_id, np.ones(int(real.sum())), record.labels[real], record.boxes[real])


def _only(record: Record, group: str) -> Record:
    return replace(record.choose(np.array([owner == group for owner in _owners(record)], dtype=bool)), owners=None)


def _look(splits: dict[str, Split], console: Console | None) -> list[Problem]:
    """Decode every image once; name the broken ones, and copies in other splits or other groups."""
    problems: list[Problem] = []
    exact: dict[str, tuple[str, Record]] = {}
    hashes: dict[str, list[npt.NDArray[np.uint64]]] = {name: [] for name in splits}
    seen: dict[str, list[Record]] = {name: [] for name in splits}
    copies: set[frozenset[str]] = set()
    visited: set[Path] = set()
    everything = [(name, record) for name, split in splits.items() for record in split.records]
    for name, record in track(everything, "Looking at images", console=console, transient=True, disable=not console):
        if record.path in visited:  # one path in two places is found without opening it
            continue
        visited.add(record.path)
        try:
            image = decode(record.path)
        except Problem as problem:
            problems.append(problem)
            continue
        bits = imagehash.phash(image, HASH_SIDE).hash.ravel()
        hashes[name].append(np.packbits(bits).view(np.uint64))
        seen[name].append(record)
        digest = hashlib.sha256(record.path.read_bytes()).hexdigest()
        split, first = exact.setdefault(digest, (name, record))
        if first is record:
            continue
        copies.add(frozenset((str(first.path), str(record.path))))
        kind, where = ("two_splits", f"{split} and {name}")
        if split == name and first.groups == record.groups:
            kind, where = "duplicate_image", f"{name} twice"
        elif split == name:
            kind, where = "two_groups", f"{', '.join(first.groups)} and {', '.join(record.groups)}"
        problems.append(Problem(kind, record.path, "", f"is the same file as {first.path}: one image in {where}"))
    for one, other in combinations(splits, 2):
        for i, j, distance in _near(hashes[one], hashes[other]):
            first, second = seen[one][i], seen[other][j]
            if frozenset((str(first.path), str(second.path))) not in copies:
                reason = f"looks like {first.path} ({distance} of 256 bits differ): one picture in {one} and {other}"
                problems.append(Problem("near_duplicate", second.path, "", reason))
    return problems


def _near(
    ones: Sequence[npt.NDArray[np.uint64]], others: Sequence[npt.NDArray[np.uint64]]
) -> list[tuple[int, int, int]]:
    """Return the pairs of hashes that differ in at most `NEAR` bits, with their distance."""
    if not ones or not others:
        return []
    wanted, found = np.stack(others), []
    for i, bits in enumerate(ones):
        distances = np.bitwise_count(bits ^ wanted).sum(1)
        found += [(i, int(j), int(distances[j])) for j in np.flatnonzero(distances <= NEAR)]
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
