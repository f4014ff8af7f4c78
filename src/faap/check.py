"""What a data set holds, and everything that is wrong with it."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import imagehash
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from faap.data import Dataset, Problem, Record, Split, read_image
from faap.data.fields import called
from faap.data.layouts import WHOLE, clash
from faap.data.problems import noting, place
from faap.evaluation.metrics import comparable_categories
from faap.files import file_sha256

# Perceptual hashes of 256 bits: pictures of other scenes differ in about 128, a smaller or re-encoded copy in a few.
HASH_SIDE, NEAR = 16, 16
SMALL, LARGE = 32**2, 96**2  # COCO's bounds of area, in square pixels
_SHOWN = 5
_WORDS = ("kind", "file", "record", "reason")
_CAPTION = "s/m/l: objects below 32², up to 96² and above 96² square pixels; aspect: width over height of the images"


def check(dataset: Dataset, *, images: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Look through a whole data set.

    Args:
        dataset: opened; whether it leaves broken records out makes no difference here.
        images: decode every image too, and look for copies in other splits and groups; otherwise only annotations and
            the headers of images are read.
        console: where progress is shown; None: nowhere.

    Returns:
        Ready for JSON: root, layout, notes, groups [anchor, reference], splits {name: {images, categories, left_out,
        mixed, groups {group: what there is}}}, problems [{kind, file, record, reason}] and counts {kind: number}.
    """
    splits = {name: dataset.as_split(name, dataset.unchecked(name)) for name in dataset.splits}
    # the whole of a data set that faap divides is no split beside the others
    parts = [name for name in splits if name != WHOLE]
    problems = dataset.problems()
    if images:
        problems += _decode_and_find_copies(dataset, parts, console)
    notes = [note for name in splits for note in (dataset.note, *dataset.unchecked(name).notes) if note]
    for split in map(splits.__getitem__, parts):
        problems += _empty(dataset, split)
        notes += _unequal(split)
    result: dict[str, Any] = {"root": str(dataset.root), "layout": dataset.layout, "notes": list(dict.fromkeys(notes))}
    result |= {"groups": [dataset.anchor, dataset.reference], "splits": {}}
    for name, split in splits.items():
        result["splits"][name] = {
            "images": len(split.records),
            "categories": {str(key): category for key, category in split.categories.items()},
            "groups": {group: _group(split, group) for group in split.counts()},
            "mixed": sum(len(record.groups) > 1 for record in split.records),
            "left_out": dataset.unchecked(name).left_out,
        }
    result["problems"] = [{name: str(getattr(each, name)) for name in _WORDS} for each in problems]
    return result | {"counts": dict(Counter(each.kind for each in problems))}


def _empty(dataset: Dataset, split: Split) -> Iterator[Problem]:
    """Say what a split has none of."""
    at = place(dataset.root, f"split {split.name}")
    if not split.records and all(problem.record for problem in dataset.unchecked(split.name).problems):
        yield at("empty_split", "holds no image")
    for group in (split.anchor, split.reference) if split.records else ():
        if not split.objects(group):
            yield at("empty_group", f"has no object of group {group!r} to find")


def _unequal(split: Split) -> Iterator[str]:
    """Say what is there for some groups only, or too little of."""
    where = f"split {split.name}"
    found = {group: split.objects(group) for group in (split.anchor, split.reference)}
    for group, other in (tuple(found), tuple(found)[::-1]):
        if found[other] and (alone := ", ".join(sorted(set(found[group]) - set(found[other])))):
            yield f"{where}: only {called(group)} has {alone}; gaps are of the categories that both groups have"
    for name, lacking in comparable_categories(split)[1].items() if all(found.values()) else ():
        if not {*found} & {*lacking}:
            yield f"{where}: {', '.join(map(called, lacking))} has no {name}; gaps are of the categories that all have"
    for group in found:
        if len(split.positions(group)) == 1:
            yield f"{where}: {called(group)} has one image; of how far its numbers can be off, one says nothing"


def print_check(result: dict[str, Any], console: Console) -> None:
    """Print what `check` found: what is there, then what is wrong, a few examples of each kind."""
    table = Table("split", caption=_CAPTION)
    for heading in ("group", "images", "objects", "s/m/l", "crowds", "image size", "aspect"):
        table.add_column(heading, overflow="fold", justify="left" if heading == "group" else "right")
    for name, split in result["splits"].items():
        for group, values in split["groups"].items():
            sizes = "–".join(f"{width}x{height}" for width, height in values["image_sizes"])
            shapes = "–".join(dict.fromkeys(f"{values['image_aspect'][i]:.2f}" for i in (0, 2)))
            areas = "/".join(str(values[size]) for size in ("small", "medium", "large"))
            objects = "\n".join(f"{category}: {count}" for category, count in values["objects"].items()) or 0
            cells = (name, group, values["images"], objects, areas, values["crowds"], sizes, shapes)
            table.add_row(*(Text(str(cell)) for cell in cells))

    say = partial(console.print, markup=False, highlight=False)
    say(f"{result['root']}: {result['layout']}")
    console.print(table)
    for note in result["notes"]:
        say(note, style="yellow")
    for name, split in result["splits"].items():
        if split["left_out"]:
            say(f"{name}: {split['left_out']} images in which nothing has a group are left out")
        if split["mixed"]:
            say(f"{name}: {split['mixed']} images show several groups; the boxes of others are regions to ignore there")
    if not result["problems"]:
        say("Nothing is wrong with it.", style="green")
    for kind, count in result["counts"].items():
        say(f"{kind}: {count}", style="bold red")
        chosen = [problem for problem in result["problems"] if problem["kind"] == kind]
        for problem in chosen[:_SHOWN]:
            say("  " + ": ".join(problem[key] for key in _WORDS[1:] if problem[key]))
        if count > _SHOWN:
            say(f"  … and {count - _SHOWN} more (--json lists all)")


def _group(split: Split, group: str) -> dict[str, Any]:
    """Describe the images that count for a group, and the group's own objects in them."""
    records = [record.with_boxes(record.boxes_of(group)) for record in split.records if group in record.groups]
    crowd = np.concatenate([record.crowd for record in records])
    areas, boxes = (np.concatenate([getattr(r, name) for r in records])[~crowd] for name in ("areas", "boxes"))
    sizes = sorted({(record.width, record.height) for record in records}, key=lambda size: (size[0] * size[1], size))
    small, large = areas < SMALL, areas > LARGE
    return {
        "images": len(records),
        "objects": split.objects(group),
        "small": int(small.sum()),
        "medium": int((~small & ~large).sum()),
        "large": int(large.sum()),
        "crowds": int(crowd.sum()),
        "image_sizes": [list(size) for size in dict.fromkeys((sizes[0], sizes[-1]))],
        "image_aspect": _range([record.width / record.height for record in records]),
        "box_height": _range(boxes[:, 3].tolist()),
    }


def _range(values: list[float]) -> list[float] | None:
    """Least, median and greatest value."""
    return [round(float(value), 4) for value in np.percentile(values, [0, 50, 100])] if values else None


def _decode_and_find_copies(dataset: Dataset, splits: list[str], console: Console | None) -> list[Problem]:
    """Decode every image once; name the broken ones, and copies in other splits or other groups."""
    problems: list[Problem] = []
    exact: dict[str, tuple[str, Record]] = {}
    seen: list[tuple[str, Record, str]] = []
    # one file in two places is found without opening it
    everything = [(name, record) for name in splits for record in dataset.read(name).records]
    hashes = np.empty((len(everything), HASH_SIDE**2 // 64), np.uint64)
    for name, record in track(everything, "Looking at images", console=console, transient=True, disable=not console):
        at = place(record.path)
        with noting(problems):
            bits = imagehash.phash(read_image(record.path), HASH_SIDE).hash.ravel()
            digest = file_sha256(record.path)
            here = hashes[len(seen)] = np.packbits(bits).view(np.uint64)
            distances = np.bitwise_count(hashes[: len(seen)] ^ here).sum(1)
            alike = [i for i in np.flatnonzero(distances <= NEAR) if seen[i][0] != name and seen[i][2] != digest]
            if alike:  # of a still camera's, each looks like all
                split, first, _ = seen[nearest := min(alike, key=distances.__getitem__)]
                more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
                where = f"({distances[nearest]} of 256 bits differ){more}: one picture in {split} and {name}"
                problems.append(at("near_duplicate", f"looks like {first.path} {where}"))
            seen.append((name, record, digest))
            split, first = exact.setdefault(digest, (name, record))
            if first is not record:
                kind, where = clash((split, first), (name, record))
                raise at(kind, f"is the same file as {first.path}: one image in {where}")
    return problems
