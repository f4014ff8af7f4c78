"""Reading COCO JSON: whatever is wrong is named with its file and record, and the rest is read on."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faap.data.finding import Finder
from faap.data.orientation import read_header, turn_box, upright
from faap.data.problems import MakeProblem, Problem, noting, place, read_bytes, unreadable
from faap.data.records import Record

BOX_TOLERANCE = 1.0
# How tables and annotations say that they do not know, whatever the case.
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>", "#n/a", "#na", "-nan"}
# Categories that say a group, which the split folders call otherwise.
SYNONYMS = {"woman": "female", "women": "female", "man": "male", "men": "male"}
PERSON = "person"
_ABSENT = object()

Row = tuple[list[float], int, float, bool, str]


@dataclass
class Reading:
    """What a file of annotations holds.

    Attributes:
        records: its images; those of which nothing is known about any group are left out.
        categories: category id -> name.
        problems: what is wrong; broken images and annotations are left out, an annotation without its group is kept as
            nobody's.
        notes: what is not wrong, but should be known.
        left_out: images in which nobody has a group.
    """

    records: list[Record] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: int = 0

    def add(self, record: Record | None) -> None:
        """Add a record, or count an image that has none."""
        if record is None:
            self.left_out += 1
        else:
            self.records.append(record)


def record_of(
    image_id: int, path: Path, size: tuple[int, int], rows: Sequence[Row], group: str = "", **further: Any
) -> Record | None:
    """Make the record of an image, or None if nobody in it has a group.

    Args:
        image_id: unique within its split.
        path: the image file.
        size: width and height in pixels.
        rows: box xywh in pixels, category id, area, crowd and group of each annotation.
        group: of an image without annotations.
        further: fields of the record.
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
        owners=None if len(names) == 1 else owners,
        **further,
    )


@dataclass(frozen=True, slots=True)
class _Image:
    """An image's entry, checked."""

    path: Path
    size: tuple[int, int]
    stored: tuple[int, int]
    turn: int  # EXIF orientation that its boxes have still to follow
    unsure: bool  # turned by EXIF, and its size does not say whether its boxes are
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
    groups: Sequence[str] = (),
) -> Reading:
    """Read the images and annotations of one COCO JSON file.

    Boxes that leave their image by at most 1 pixel are cut at its border. An annotation without `area`, or with one
    of 0, gets that of its box. An image's optional `scene` becomes the record's `pair`. Where width and height are
    those of the file before its EXIF orientation is applied, the boxes are turned with the image.

    If annotations carry the group, each box has its own, or else its image's; categories in which none does are left
    out. Where nothing says a group but categories are named as both `groups` (woman and man as female and male), they
    become one category, person.

    Args:
        path: the JSON file.
        folder: what its file names are relative to; of several the first in which a file is.
        group: the group of all its images; empty: `group_field` says it.
        group_field: the field that holds the group, of images or annotations or of an object in them, such as CVAT's
            `attributes`.
        table: further fields of images, by image id or file name; see `read_table`.
        groups: how the anchor and the reference group are written.

    Returns:
        The records in the order of the file, and what is wrong with the others.

    Raises:
        Problem: the file is missing, is not COCO JSON, holds no image, has no such field, or misreads as a whole.
    """
    content, here, result = _read_json(path), place(path), Reading()
    pictures, entries = (_list(content, key, here) for key in ("images", "annotations"))
    numbers = (_finite(each.get("category_id")) for each in entries if isinstance(each, dict))
    used = {number for number in numbers if number is not None}
    categories, same = _categories(content, path, used, result)
    personal = not group and _mentioned(group_field, entries)
    # if annotations say a group, not every image has to
    asked = not group and (table is not None or _mentioned(group_field, pictures))
    named: dict[int, str] = {}
    if not (group or personal or asked):
        named = _named_groups(categories, groups)
        if not named:
            raise here("missing_group", _no_group(group_field, pictures, entries))
        result.notes.append(f"{path}: categories say the group: {', '.join(categories[key] for key in named)}")
        first = next(iter(named))
        same |= {key: first for key, name in categories.items() if key in named or name.casefold() == PERSON}
        categories[first] = PERSON
    spelt = {each.casefold(): each for each in groups}

    def group_of(entry: dict[str, Any], at: MakeProblem) -> str:
        """Return an entry's group, spelt as the first that differs from it in case alone."""
        said = _word(entry, group_field, at)
        return spelt.setdefault(said.casefold(), said)

    def image_group(entry: dict[str, Any], at: MakeProblem) -> str:
        said = group or ("" if named else group_of(entry, at))
        if asked and not personal and not said:
            where = "the table" if table else "the image"
            name = entry.get("file_name")
            raise at("missing_group", f"{where} says no group for it (field {group_field!r}, {name})")
        return said

    def owner(entry: dict[str, Any], at: MakeProblem) -> str:
        return named.get(int(entry["category_id"]), "") or (group_of(entry, at) if personal else "")

    finder = Finder([folder] if isinstance(folder, Path) else folder)
    images, known = _images(pictures, path, finder, result, image_group, table or {})
    # categories that say a group somewhere are asked for it everywhere
    of_groups = {_finite(e.get("category_id")) for e in entries if personal and _mentioned(group_field, [e])}
    rows = _annotations(
        entries, path, images, known, (categories, same), result.problems, owner, of_groups, group_field
    )
    if personal or named:
        grouped = {row[1] for found in rows.values() for row in found if row[4]}
        categories = {key: name for key, name in categories.items() if key in grouped}
    result.categories = categories
    for key, image in images.items():
        chosen = [(*row[:4], row[4] or image.group) for row in rows[key] if row[1] in categories]
        result.add(record_of(key, image.path, image.size, chosen, image.group, pair=image.pair, split=image.split))
    result.notes += [f"{path}: {note}" for note in _notes(images.values(), result.records, finder)]
    return result


def _named_groups(categories: Mapping[int, str], groups: Sequence[str]) -> dict[int, str]:
    """Return the categories that are named as a group, with it, if each group has one."""
    names = {key: name.strip().casefold() for key, name in categories.items()}
    found = {
        key: group for key, name in names.items() for group in groups if group.casefold() in (name, SYNONYMS.get(name))
    }
    return found if groups and set(found.values()) == set(groups) else {}


def _no_group(group_field: str, images: list[Any], annotations: list[Any]) -> str:
    fields = {}
    for key, entries in (("images", images), ("annotations", annotations)):
        names = {
            str(name) if inner is None else f"{name}.{inner}"
            for entry in entries
            if isinstance(entry, dict)
            for name, value in entry.items()
            for inner in (value if isinstance(value, dict) else (None,))
        }
        fields[key] = ", ".join(sorted(names)[:20])
    return (
        f"no image and no annotation has a field {group_field!r} that says its group; --group_field names the right "
        f"one (fields of images: {fields['images']}; of annotations: {fields['annotations']}), or --group_csv a table"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, Problem):
            raise
        raise Problem("unreadable_file", path, "", f"not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise Problem("not_coco", path, "", "should hold a JSON object with images, annotations and categories")
    return content


def _list(content: dict[str, Any], key: str, here: MakeProblem) -> list[Any]:
    if not isinstance(content.get(key), list):
        state = "should be a list" if key in content else "is missing"
        raise here("not_coco", f"'{key}' {state}; COCO JSON has images, annotations and categories")
    entries: list[Any] = content[key]
    return entries


def _object(entry: Any, at: MakeProblem) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise at("bad_field", f"should be a JSON object, found {entry!r:.80}")
    return entry


def _categories(
    content: dict[str, Any], path: Path, used: set[float], result: Reading
) -> tuple[dict[int, str], dict[int, int]]:
    """Return the categories, and of those that share a name which id stands for which."""
    categories: dict[int, str] = {}
    same: dict[int, int] = {}
    by_name: dict[str, int] = {}
    for position, raw in enumerate(_list(content, "categories", place(path))):
        with noting(result.problems):
            at = place(path, f"categories[{position}]")
            entry = _object(raw, at)
            key, name = _integer(entry, "id", at), entry.get("name")
            if not isinstance(name, str) or not name.strip():
                raise at("bad_field", f"name should be a word, found {name!r:.80}")
            if key in categories or key in same:
                raise at("duplicate_id", f"id {key} is used by an earlier category; ids must differ")
            earlier = by_name.setdefault(name.strip().casefold(), key)
            if earlier == key:
                categories[key] = name
            elif {earlier, key} <= used:
                same[key] = earlier
                # detectors know classes by name, so one of the two would never be found
                raise at("duplicate_id", f"name {name!r} is used by an earlier category; merge the two")
            else:  # some tools write a root of the same name above the real category
                idle, kept = (earlier, key) if key in used else (key, earlier)
                same[idle] = by_name[name.strip().casefold()] = kept
                categories = {each: other for each, other in categories.items() if each != idle} | {kept: name}
                result.notes.append(f"{path}: category {idle} is unused, and named {name!r} as {kept} is")
    return categories, same


def _images(
    entries: list[Any],
    path: Path,
    finder: Finder,
    result: Reading,
    group_of: Callable[[dict[str, Any], MakeProblem], str],
    table: Mapping[str, Mapping[str, str]],
) -> tuple[dict[int, _Image], set[int]]:
    """Check the images; return the good ones and the ids of all."""
    here = place(path)
    if not entries:
        raise here("empty_split", "holds no image; an empty split cannot be used")
    named = [_names(entry) for entry in entries if isinstance(entry, dict)]
    if table and not any(name in table for names in named for name in names):
        raise here(
            "missing_group",
            f"the table names none of its images, which are {', '.join((named or [()])[0])} and so on, while the "
            f"table's are {next(iter(table))!r} and so on",
        )
    images: dict[int, _Image] = {}
    known: set[int] = set()
    for position, raw in enumerate(entries):
        with noting(result.problems):
            at = place(path, f"images[{position}]")
            entry = _object(raw, at)
            key = _integer(entry, "id", at)
            if key < 0:
                raise at("bad_field", f"id is {key}; it must be at least 0")
            if key in known:
                raise at("duplicate_id", f"id {key} is used by an earlier image; ids must differ")
            known.add(key)
            at = place(path, f"image {key}")
            row = next((table[each] for each in _names(entry) if each in table), {})
            images[key] = _image(entry | dict(row), finder, at, group_of)
    return images, known


def _names(entry: dict[str, Any]) -> tuple[str, ...]:
    """What a table may call an image."""
    name = entry.get("file_name")
    return (str(entry.get("id")), name, os.path.basename(name)) if isinstance(name, str) else (str(entry.get("id")),)


def _image(
    entry: dict[str, Any], finder: Finder, at: MakeProblem, group_of: Callable[[dict[str, Any], MakeProblem], str]
) -> _Image:
    name, scene = entry.get("file_name"), entry.get("scene")
    if not isinstance(name, str) or not name:
        raise at("bad_field", f"file_name should be the name of a file in {finder.folders[0]}, found {name!r:.80}")
    size = _integer(entry, "width", at), _integer(entry, "height", at)
    if min(size) < 1:
        raise at("bad_field", f"width and height should be at least 1, found {size[0]} and {size[1]}")
    if scene is not None and (isinstance(scene, bool) or not isinstance(scene, int | str)):
        raise at("bad_field", f"scene should be a number or a word, found {scene!r:.80}")
    file = finder.find(name, at)
    stored, orientation = check_header(file, at)
    seen = upright(stored, orientation)
    if size not in (stored, seen):
        raise at(
            "wrong_size",
            f"{file} has {seen[0]}x{seen[1]} pixels (as EXIF turns it), but width and height are {size[0]}x{size[1]}",
        )
    return _Image(
        path=file,
        size=seen,
        stored=stored,
        turn=1 if size == seen else orientation,
        unsure=orientation > 1 and stored == seen,
        pair=None if scene is None else str(scene),
        group=group_of(entry, at),
        split=_word(entry, "split", at),
    )


def check_header(file: Path, problem: MakeProblem) -> tuple[tuple[int, int], int]:
    """Read an image's stored size and EXIF orientation without decoding it, or raise a problem."""
    try:
        return read_header(file)
    # Pillow's readers raise many kinds of errors on broken files.
    except Exception as error:
        raise problem("unreadable_image", f"{file} {unreadable(file, error, ' as an image')}") from error


def _annotations(
    entries: list[Any],
    path: Path,
    images: Mapping[int, _Image],
    known: set[int],
    categories: tuple[Mapping[int, str], Mapping[int, int]],
    problems: list[Problem],
    owner_of: Callable[[dict[str, Any], MakeProblem], str],
    of_groups: set[Any],
    group_field: str,
) -> dict[int, list[Row]]:
    rows: dict[int, list[Row]] = {key: [] for key in images}
    seen: set[tuple[int, int]] = set()
    keys: set[int] = set()
    misread: list[str] = []
    for position, raw in enumerate(entries):
        with noting(problems):
            at = place(path, f"annotations[{position}]")
            entry = _object(raw, at)
            key = _integer(entry, "id", at)
            at = place(path, f"annotation {key}")
            image_id = _integer(entry, "image_id", at)
            if (image_id, key) in seen:
                raise at("duplicate_id", "the id is used by an earlier annotation of its image; ids must differ")
            if key in keys:  # some tools count them anew in each image
                at = place(path, f"annotation {key} of image {image_id}")
            seen.add((image_id, key))
            keys.add(key)
            if image_id not in known:
                raise at("unknown_image", f"image_id {image_id} is not the id of any image in this file")
            if image_id not in images:
                continue  # the image itself is broken, and said to be
            image = images[image_id]
            row = _annotation(entry, image, *categories, at, misread)
            owner = ""
            with noting(problems):
                owner = owner_of(entry, at)
                if entry["category_id"] in of_groups and not (owner or image.group or row[3]):
                    reason = f"has no group (field {group_field!r}), and neither has its image; it counts for nobody"
                    raise at("missing_group", reason)
            rows[image_id].append((*row, owner))
    # of masks, some areas say it by chance
    wrong = Counter(reason for reason in misread if reason)
    if 2 * wrong.total() > len(misread):
        (reason, count), *_ = wrong.most_common(1)
        raise place(path)("bad_box", f"of {len(misread)} annotations with an area {count} say that {reason}")
    return rows


def _annotation(
    entry: dict[str, Any],
    image: _Image,
    categories: Mapping[int, str],
    same: Mapping[int, int],
    at: MakeProblem,
    misread: list[str],
) -> tuple[list[float], int, float, bool]:
    category = _integer(entry, "category_id", at)
    category = same.get(category, category)
    if category not in categories:
        known = ", ".join(f"{key} ({name})" for key, name in sorted(categories.items())) or "none"
        raise at("unknown_category", f"category_id {category} is unknown; the categories are {known}")
    raw, crowd, area = (entry.get(key) for key in ("bbox", "iscrowd", "area"))
    box = check_box(raw, image.stored if image.turn > 1 else image.size, at)
    area = 0.0 if area is None else _finite(area)
    if area is None or area < 0:
        raise at("bad_field", f"area should be a number of at least 0, found {entry['area']!r:.80}")
    if isinstance(crowd, list | dict) or crowd not in (0, 1, None):
        raise at("bad_field", f"iscrowd should be 0 or 1, found {crowd!r:.80}")
    if area and raw:
        reason = _against_area(raw, area, 1e-6)
        if reason and not entry.get("segmentation"):
            raise at("bad_box", reason)
        misread.append(_against_area(raw, area, 0.02))
    return turn_box(box, image.stored, image.turn), category, area or box[2] * box[3], bool(crowd)


def _against_area(box: Sequence[float], area: float, slack: float) -> str:
    """Say how a box xywh contradicts its area, which may be that of a smaller mask; empty if it does not."""
    left, top, across, down = box
    if abs(area - across * down) <= slack * area:
        return ""
    if across > left and down > top and abs(area - (across - left) * (down - top)) <= slack * area:
        return f"bbox {box} is [left, top, right, bottom], by its area {area}; it should be [x, y, width, height]"
    # a box may be rounded
    if area > (1 + slack) * (across + 1) * (down + 1):
        return f"bbox {box} is smaller than its area {area}; both should be in pixels of the image"
    return ""


def check_box(box: Any, size: tuple[int, int], problem: MakeProblem) -> list[float]:
    """Return a box xywh in pixels, cut at the border of its image.

    Args:
        box: what the file says.
        size: width and height of the image in pixels.
        problem: makes a Problem of a kind and a reason.

    Raises:
        Problem: it is no box, has no area, is in fractions of the image, or leaves its image by more than
            `BOX_TOLERANCE` pixels.
    """
    values = [_finite(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
    if None in values:
        raise problem("bad_box", f"bbox should be four finite numbers [x, y, width, height], found {box!r:.80}")
    left, top, across, down = (value for value in values if value is not None)
    width, height = size
    if across <= 0 or down <= 0:
        raise problem("bad_box", f"bbox {box} has no area; width and height should be positive")
    if max(size) > 2 and max(map(abs, (left, top, across, down))) <= 1:
        raise problem("bad_box", f"bbox {box} lies in [0, 1], as fractions of the image do; it should be in pixels")
    if not _fits(left, top, across, down, size):
        others = {
            "[left, top, right, bottom]": _fits(left, top, across - left, down - top, size),
            "[centre x, centre y, width, height]": _fits(left - across / 2, top - down / 2, across, down, size),
            f"a box of the image turned by 90°, {height}x{width}": _fits(left, top, across, down, size[::-1]),
        }
        hints = " or ".join(way for way, fits in others.items() if fits)
        raise problem(
            "bad_box",
            f"bbox {box} leaves its image, which is {width}x{height} pixels"
            + (f"; it would fit as {hints}, but should be [x, y, width, height]" if hints else ""),
        )
    left, top, right, bottom = max(left, 0), max(top, 0), min(left + across, width), min(top + down, height)
    if right <= left or bottom <= top:
        raise problem("bad_box", f"bbox {box} lies outside its image, which is {width}x{height} pixels")
    return [left, top, right - left, bottom - top]


def _fits(left: float, top: float, across: float, down: float, size: tuple[int, int]) -> bool:
    rim = max(left + across - size[0], top + down - size[1], -left, -top)
    return across > 0 and down > 0 and rim <= BOX_TOLERANCE


def _notes(images: Collection[_Image], records: Sequence[Record], finder: Finder) -> Iterator[str]:
    """Say what is not wrong, but may be misread."""
    if turned := [image for image in images if image.turn > 1]:
        yield (
            f"{len(turned)} images, such as {turned[0].path.name}, are turned by their EXIF orientation, and their "
            "boxes with them: width and height are those of the file as stored"
        )
    if unsure := [image for image in images if image.unsure]:
        yield (
            f"{len(unsure)} images, such as {unsure[0].path.name}, are turned by their EXIF orientation, which their "
            "size does not show; their boxes are taken to be of the upright image"
        )
    if finder.respelt:
        name, found = next(iter(finder.respelt.items()))
        yield f"file names that were found in another spelling: {len(finder.respelt)}, such as {name!r:.80} as {found}"
    ends = [(record.boxes[:, :2] + record.boxes[:, 2:]).max() for record in records if len(record.boxes)]
    if len(ends) > 3 and max(ends) <= 100 and min(min(record.width, record.height) for record in records) >= 200:
        yield "every bbox ends within 100 pixels of its larger image: are they percentages? They should be in pixels"


def _lookup(entry: dict[str, Any], field: str) -> Any:
    """Return a field of an entry, or of an object in it; `_ABSENT` where there is none."""
    if field in entry:
        return entry[field]
    first, _, rest = field.partition(".")
    if rest and isinstance(inner := entry.get(first), dict):
        return _lookup(inner, rest)
    return next((each[field] for each in entry.values() if isinstance(each, dict) and field in each), _ABSENT)


def _mentioned(field: str, entries: Iterable[Any]) -> bool:
    return any(isinstance(entry, dict) and _lookup(entry, field) is not _ABSENT for entry in entries)


def _word(entry: dict[str, Any], field: str, at: MakeProblem) -> str:
    """Read a group or a split: a word or a whole number; empty where there is none."""
    value = _lookup(entry, field)
    if value is _ABSENT or value is None or str(value).strip().casefold() in MISSING:
        return ""
    if not isinstance(value, str) and _finite(value) != round(_finite(value) or 0):
        raise at("bad_field", f"{field} should be a word, found {value!r:.80}")
    return value.strip() if isinstance(value, str) else str(int(value))


def _integer(entry: dict[str, Any], key: str, at: MakeProblem) -> int:
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        bits = ", which has more than 64 bits" if type(value) is int else ""
        state = f"should be a whole number, found {value!r:.80}{bits}" if key in entry else "is missing"
        raise at("bad_field", f"'{key}' {state}")
    return value


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
