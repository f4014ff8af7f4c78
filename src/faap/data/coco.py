"""Reading COCO JSON: whatever is wrong is named with its file and record, and the rest is read on."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faap.data.orientation import read_header, turn_box, upright
from faap.data.problems import Problem
from faap.data.records import Record

BOX_TOLERANCE = 1.0

Row = tuple[list[float], int, float, bool, str]
MakeProblem = Callable[[str, str], Problem]


@dataclass
class Reading:
    """What a file of annotations holds.

    Attributes:
        records: its images; those of which nothing is known about any group are left out.
        categories: category id -> name.
        problems: what is wrong; broken images and annotations are left out, an annotation without its group is kept as
            nobody's.
        splits: for each record the split that the file gives it; empty if it does not say.
        left_out: images in which nobody has a group.
    """

    records: list[Record] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    left_out: int = 0

    def add(self, record: Record | None, split: str = "") -> None:
        """Add a record, or count an image that has none."""
        if record is None:
            self.left_out += 1
        else:
            self.records.append(record)
            self.splits.append(split)


def record_of(
    image_id: int, path: Path, size: tuple[int, int], rows: Sequence[Row], group: str = "", pair: str | None = None
) -> Record | None:
    """Make the record of an image, or None if nobody in it has a group.

    Args:
        image_id: unique within its split.
        path: the image file.
        size: width and height in pixels.
        rows: box xywh in pixels, category id, area, crowd and group of each annotation.
        group: of an image without annotations.
        pair: see `Record.pair`.
    """
    boxes, labels, areas, crowd, owners = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    names = set(owners) or {group}
    groups = names - {""}
    if not groups:
        return None
    return Record(
        image_id=image_id,
        path=path,
        width=size[0],
        height=size[1],
        group=next(iter(groups)) if len(groups) == 1 else "",
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        areas=np.array(areas, dtype=np.float64),
        crowd=np.array(crowd, dtype=bool),
        pair=pair,
        owners=None if len(names) == 1 else owners,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a file something is."""

    file: Path
    record: str = ""

    def problem(self, kind: str, reason: str) -> Problem:
        return Problem(kind, self.file, self.record, reason)


@dataclass(frozen=True, slots=True)
class _Image:
    """An image's entry, checked."""

    path: Path
    size: tuple[int, int]
    stored: tuple[int, int]
    turn: int  # EXIF orientation that its boxes have still to follow
    pair: str | None
    group: str
    split: str


def read_coco(
    path: Path,
    folder: Path | Sequence[Path],
    *,
    group: str = "",
    group_field: str = "",
    table: Mapping[str, Mapping[str, str]] | None = None,
) -> Reading:
    """Read the images and annotations of one COCO JSON file.

    Boxes that leave their image by at most 1 pixel are cut at its border. An annotation without `area` gets that of
    its box. An image's optional `scene` becomes the record's `pair`. Where width and height are those of the file
    before its EXIF orientation is applied, the boxes are turned with the image.

    If annotations carry the group, each box has its own, or else its image's; categories in which none does are left
    out.

    Args:
        path: the JSON file.
        folder: what its file names are relative to; of several the one in which the most of its first images are.
        group: the group of all its images; empty: `group_field` says it.
        group_field: the field of images or annotations that holds the group.
        table: further fields of images, by image id or file name; see `read_table`.

    Returns:
        The records in the order of the file, and what is wrong with the others.

    Raises:
        Problem: the file is missing, is not COCO JSON, holds no image, or has no such field.
    """
    content, here, result = _read_json(path), _Place(path), Reading()
    if not isinstance(folder, Path):
        folder = _first_with(folder, _list(content, "images", here))
    categories = _categories(content, here, result.problems)
    entries = _list(content, "annotations", here)
    personal = not group and _mentioned(group_field, entries)
    # if annotations say a group, not every image has to
    asked = not group and (table is not None or _mentioned(group_field, _list(content, "images", here)))
    images, known = _images(
        content, here, folder, result.problems, group, group_field, table or {}, asked and not personal
    )
    if not (group or personal or asked):
        fields = sorted({str(name) for entry in content["images"] if isinstance(entry, dict) for name in entry})
        raise here.problem(
            "missing_group",
            f"no image and no annotation has a field {group_field!r} that says its group; --group_field names the "
            f"right one (fields of images: {', '.join(fields[:20])}), or --group_csv a table",
        )
    rows = _annotations(entries, here, images, known, categories, result.problems, group_field if personal else "")
    if personal:
        grouped = {row[1] for found in rows.values() for row in found if row[4]}
        categories = {key: name for key, name in categories.items() if key in grouped}
    result.categories = categories
    for key, image in images.items():
        chosen = [(*row[:4], row[4] or image.group) for row in rows[key] if row[1] in categories]
        result.add(record_of(key, image.path, image.size, chosen, image.group, image.pair), image.split)
    return result


def _mentioned(field: str, entries: list[Any]) -> bool:
    return any(isinstance(entry, dict) and field in entry for entry in entries)


def _first_with(folders: Sequence[Path], entries: list[Any]) -> Path:
    names = [entry.get("file_name") for entry in entries[:50] if isinstance(entry, dict)]

    def count(folder: Path) -> int:
        found = 0
        for name in names:
            # what no file system takes as a name is said later, with its record
            with suppress(OSError, ValueError):
                found += isinstance(name, str) and bool(name) and (folder / name).is_file()
        return found

    return max(folders, key=count)  # the first of equals


@contextmanager
def noting(problems: list[Problem]) -> Iterator[None]:
    """Keep a problem of the block in a list instead of raising it."""
    try:
        yield
    except Problem as problem:
        problems.append(problem)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise Problem("unreadable_file", path, "", f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Problem("unreadable_file", path, "", f"not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise Problem("not_coco", path, "", "should hold a JSON object with images, annotations and categories")
    return content


def _list(content: dict[str, Any], key: str, here: _Place) -> list[Any]:
    if not isinstance(content.get(key), list):
        state = "should be a list" if key in content else "is missing"
        raise here.problem("not_coco", f"'{key}' {state}; COCO JSON has images, annotations and categories")
    entries: list[Any] = content[key]
    return entries


def _object(entry: Any, at: _Place) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise at.problem("bad_field", f"should be a JSON object, found {entry!r:.80}")
    return entry


def _categories(content: dict[str, Any], here: _Place, problems: list[Problem]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for position, raw in enumerate(_list(content, "categories", here)):
        with noting(problems):
            at = _Place(here.file, f"categories[{position}]")
            entry = _object(raw, at)
            key, name = _integer(entry, "id", at), entry.get("name")
            if not isinstance(name, str) or not name:
                raise at.problem("bad_field", f"name should be a word, found {name!r:.80}")
            if key in categories:
                raise at.problem("duplicate_id", f"id {key} is used by an earlier category; ids must differ")
            if name.strip().casefold() in {other.strip().casefold() for other in categories.values()}:
                # detectors know classes by name, so one of the two would never be found
                raise at.problem("duplicate_id", f"name {name!r} is used by an earlier category; merge the two")
            categories[key] = name
    return categories


def _images(
    content: dict[str, Any],
    here: _Place,
    folder: Path,
    problems: list[Problem],
    group: str,
    group_field: str,
    table: Mapping[str, Mapping[str, str]],
    asked: bool,
) -> tuple[dict[int, _Image], set[int]]:
    """Check the images; return the good ones and the ids of all."""
    entries = _list(content, "images", here)
    if not entries:
        raise here.problem("empty_split", "holds no image; an empty split cannot be used")
    named = [_names(entry) for entry in entries if isinstance(entry, dict)]
    if table and not any(name in table for names in named for name in names):
        raise here.problem(
            "missing_group",
            f"the table names none of its images, which are {', '.join((named or [()])[0])} and so on, while the "
            f"table's are {next(iter(table))!r} and so on",
        )
    images: dict[int, _Image] = {}
    known: set[int] = set()
    for position, raw in enumerate(entries):
        with noting(problems):
            at = _Place(here.file, f"images[{position}]")
            entry = _object(raw, at)
            key = _integer(entry, "id", at)
            if not 0 <= key < 2**53:
                raise at.problem("bad_field", f"id is {key}; it must be from 0 to 2^53 − 1")
            if key in known:
                raise at.problem("duplicate_id", f"id {key} is used by an earlier image; ids must differ")
            known.add(key)
            at = _Place(here.file, f"image {key}")
            name = entry.get("file_name")
            entry = {**entry, **next((table[each] for each in _names(entry) if each in table), {})}
            image = _image(entry, folder, at, group or (_word(entry, group_field, at) if group_field else ""))
            if asked and not image.group:
                where = "the table" if table else "the image"
                raise at.problem("missing_group", f"{where} says no group for it (field {group_field!r}, {name})")
            images[key] = image
    return images, known


def _names(entry: dict[str, Any]) -> tuple[str, ...]:
    """What a table may call an image."""
    name = entry.get("file_name")
    return (str(entry.get("id")), name, os.path.basename(name)) if isinstance(name, str) else (str(entry.get("id")),)


def _image(entry: dict[str, Any], folder: Path, at: _Place, group: str) -> _Image:
    name, scene = entry.get("file_name"), entry.get("scene")
    if not isinstance(name, str) or not name:
        raise at.problem("bad_field", f"file_name should be the name of a file in {folder}, found {name!r:.80}")
    # By its name alone: a link inside the folder may well point to a store elsewhere.
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise at.problem("leaves_folder", f"file_name {name!r:.80} leaves the folder {folder}")
    width, height = (_integer(entry, key, at) for key in ("width", "height"))
    if width < 1 or height < 1:
        raise at.problem("bad_field", f"width and height should be at least 1, found {width} and {height}")
    if scene is not None and (isinstance(scene, bool) or not isinstance(scene, int | str)):
        raise at.problem("bad_field", f"scene should be a number or a word, found {scene!r:.80}")
    stored, turn = check_header(folder / name, (width, height), at.problem)
    return _Image(
        path=folder / os.path.normpath(name),
        size=upright(stored, turn) if turn > 1 else (width, height),
        stored=stored,
        turn=turn,
        pair=None if scene is None else str(scene),
        group=group,
        split=_word(entry, "split", at),
    )


def check_header(file: Path, size: tuple[int, int] | None, problem: MakeProblem) -> tuple[tuple[int, int], int]:
    """Open an image without decoding it and hold its size against the annotated one.

    Args:
        file: the image.
        size: annotated width and height in pixels; None if nothing is annotated.
        problem: makes a Problem of a kind and a reason.

    Returns:
        Its stored size, and the EXIF orientation that boxes annotated on the stored image have to follow: 1 where they
        are of the upright image.

    Raises:
        Problem: the file is missing, is no image, or has another size.
    """
    try:
        found = file.is_file()
    # What no file system takes as a name.
    except (OSError, ValueError):
        found = False
    if not found:
        raise problem("missing_image", f"file_name {file.name!r:.80} does not exist in {file.parent}")
    try:
        stored, orientation = read_header(file)
    # Pillow's readers raise many kinds of errors on broken files.
    except Exception as error:
        raise problem("unreadable_image", f"{file} cannot be read as an image: {error}") from error
    seen = upright(stored, orientation)
    if size is None or size == seen:
        return stored, 1
    if size == stored:
        return stored, orientation
    raise problem(
        "wrong_size",
        f"{file} has {seen[0]}x{seen[1]} pixels (as EXIF turns it), but width and height are {size[0]}x{size[1]}",
    )


def _annotations(
    entries: list[Any],
    here: _Place,
    images: Mapping[int, _Image],
    known: set[int],
    categories: Mapping[int, str],
    problems: list[Problem],
    group_field: str,
) -> dict[int, list[Row]]:
    rows: dict[int, list[Row]] = {key: [] for key in images}
    seen: set[int] = set()
    # categories that say a group somewhere are asked for it everywhere
    asked = {str(e.get("category_id")) for e in entries if isinstance(e, dict) and group_field and group_field in e}
    for position, raw in enumerate(entries):
        with noting(problems):
            at = _Place(here.file, f"annotations[{position}]")
            entry = _object(raw, at)
            key = _integer(entry, "id", at)
            at = _Place(here.file, f"annotation {key}")
            if key in seen:
                raise at.problem("duplicate_id", "the id is used by an earlier annotation; ids must differ")
            seen.add(key)
            image_id = _integer(entry, "image_id", at)
            if image_id not in known:
                raise at.problem("unknown_image", f"image_id {image_id} is not the id of any image in this file")
            if image_id not in images:
                continue  # the image itself is broken, and said to be
            image = images[image_id]
            row = _annotation(entry, image, categories, at)
            owner = ""
            with noting(problems):
                owner = _word(entry, group_field, at) if group_field else ""
                if str(entry["category_id"]) in asked and not (owner or image.group or row[3]):
                    reason = f"has no group (field {group_field!r}), and neither has its image; it counts for nobody"
                    raise at.problem("missing_group", reason)
            rows[image_id].append((*row, owner))
    return rows


def _annotation(
    entry: dict[str, Any], image: _Image, categories: Mapping[int, str], at: _Place
) -> tuple[list[float], int, float, bool]:
    category = _integer(entry, "category_id", at)
    if category not in categories:
        raise at.problem(
            "unknown_category", f"category_id {category} is unknown; the categories are {_listed(categories)}"
        )
    crowd = entry.get("iscrowd", 0)
    box = check_box(entry.get("bbox"), image.stored if image.turn > 1 else image.size, at.problem)
    area = _finite(entry["area"]) if "area" in entry else box[2] * box[3]
    if area is None or area < 0:
        raise at.problem("bad_field", f"area should be a number of at least 0, found {entry['area']!r:.80}")
    if isinstance(crowd, list | dict) or crowd not in (0, 1):
        raise at.problem("bad_field", f"iscrowd should be 0 or 1, found {crowd!r:.80}")
    return turn_box(box, image.stored, image.turn), category, area, bool(crowd)


def check_box(box: Any, size: tuple[int, int], problem: MakeProblem) -> list[float]:
    """Return a box xywh in pixels, cut at the border of its image.

    Args:
        box: what the file says.
        size: width and height of the image in pixels.
        problem: makes a Problem of a kind and a reason.

    Raises:
        Problem: it is no box, has no area, or leaves its image by more than `BOX_TOLERANCE` pixels.
    """
    values = [_finite(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
    if None in values:
        raise problem("bad_box", f"bbox should be four finite numbers [x, y, width, height], found {box!r:.80}")
    left, top, across, down = (value for value in values if value is not None)
    width, height = size
    if across <= 0 or down <= 0:
        raise problem("bad_box", f"bbox {box} has no area; width and height should be positive")
    right, bottom = left + across, top + down
    if min(left, top) < -BOX_TOLERANCE or max(right - width, bottom - height) > BOX_TOLERANCE:
        raise problem("bad_box", f"bbox {box} leaves its image, which is {width}x{height} pixels")
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        raise problem("bad_box", f"bbox {box} lies outside its image, which is {width}x{height} pixels")
    return [left, top, right - left, bottom - top]


def _word(entry: dict[str, Any], key: str, at: _Place) -> str:
    """Read a group or a split: a word or a whole number; empty where there is none."""
    value = entry.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if not isinstance(value, str | int):
        raise at.problem("bad_field", f"{key} should be a word, found {value!r:.80}")
    return str(value).strip()


def _integer(entry: dict[str, Any], key: str, at: _Place) -> int:
    value = _finite(entry.get(key))
    if value is None or not value.is_integer() or abs(value) >= 2**53:
        state = f"should be a whole number, found {entry[key]!r:.80}" if key in entry else "is missing"
        raise at.problem("bad_field", f"'{key}' {state}")
    return int(value)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _listed(categories: Mapping[int, str]) -> str:
    return ", ".join(f"{key} ({name})" for key, name in sorted(categories.items())) or "none"
