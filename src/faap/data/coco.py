"""Reading COCO JSON: whatever is wrong is named with its file and record, and the rest is read on."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faap.data.boxes import against_area, check_box
from faap.data.fields import finite, integer, mentioned, word
from faap.data.finding import Finder
from faap.data.orientation import read_header, turn_box, upright
from faap.data.problems import MakeProblem, Problem, noting, place, read_bytes, unreadable
from faap.data.records import Record

# Categories that say a group, which the split folders call otherwise.
SYNONYMS = {"woman": "female", "women": "female", "man": "male", "men": "male"}
PERSON = "person"

Table = Mapping[str, Mapping[str, str]]
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
    table: Table | None = None,
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
    return _File(path, group, group_field, table, groups).read(Finder([folder] if isinstance(folder, Path) else folder))


class _File:
    """One COCO JSON file, while it is read."""

    def __init__(self, path: Path, group: str, field: str, table: Table | None, groups: Sequence[str]) -> None:
        content, here = _read_json(path), place(path)
        self.path, self.group, self.field, self.table = path, group, field, table or {}
        self.result = Reading()
        self.images, self.annotations, categories = (
            _list(content, key, here) for key in ("images", "annotations", "categories")
        )
        self.categories: dict[int, str] = {}
        self.same: dict[int, int] = {}  # of categories that share a name, which id stands for which
        self._read_categories(categories)
        self.personal = not group and mentioned(field, self.annotations)
        # if annotations say a group, not every image has to
        asked = not group and (table is not None or mentioned(field, self.images))
        self.asked = asked and not self.personal
        self.named: dict[int, str] = {}
        self.spelt = {each.casefold(): each for each in groups}
        if not (group or self.personal or asked):
            self._name_groups(groups)

    def _name_groups(self, groups: Sequence[str]) -> None:
        """Take the group from categories that are named as both groups are, and make them one."""
        names = {key: name.strip().casefold() for key, name in self.categories.items()}
        said = {key: (name, SYNONYMS.get(name)) for key, name in names.items()}
        named = {key: group for key, either in said.items() for group in groups if group.casefold() in either}
        if not groups or set(named.values()) != set(groups):
            raise place(self.path)("missing_group", self._no_group())
        self.named = named
        self._note(f"categories say the group: {', '.join(self.categories[key] for key in named)}")
        first = next(iter(named))
        self.same |= {key: first for key, name in names.items() if key in named or name == PERSON}
        self.categories[first] = PERSON

    def _no_group(self) -> str:
        names = {
            str(name) if inner is None else f"{name}.{inner}"
            for entry in (*self.images, *self.annotations)
            for name, value in (entry.items() if isinstance(entry, dict) else ())
            for inner in (value if isinstance(value, dict) else (None,))
        }
        return (
            f"no image and no annotation has a field {self.field!r} that says its group; --group_field names the right "
            f"one (fields: {', '.join(sorted(names)[:30])}), or --group_csv a table"
        )

    def _note(self, text: str) -> None:
        self.result.notes.append(f"{self.path}: {text}")

    def _group_of(self, entry: dict[str, Any], at: MakeProblem) -> str:
        """Return an entry's group, spelt as the first that differs from it in case alone."""
        said = word(entry, self.field, at)
        return self.spelt.setdefault(said.casefold(), said)

    def read(self, finder: Finder) -> Reading:
        images, known = self._read_images(finder)
        rows = self._read_annotations(images, known)
        categories = self.categories
        if self.personal or self.named:
            grouped = {row[1] for found in rows.values() for row in found if row[4]}
            categories = {key: name for key, name in categories.items() if key in grouped}
        self.result.categories = categories
        for key, image in images.items():
            chosen = [(*row[:4], row[4] or image.group) for row in rows[key] if row[1] in categories]
            record = record_of(key, image.path, image.size, chosen, image.group, pair=image.pair, split=image.split)
            self.result.add(record)
        for note in _notes(images.values(), self.result.records, finder):
            self._note(note)
        return self.result

    def _read_categories(self, entries: list[Any]) -> None:
        numbers = (finite(each.get("category_id")) for each in self.annotations if isinstance(each, dict))
        used = {number for number in numbers if number is not None}
        by_name: dict[str, int] = {}
        for position, raw in enumerate(entries):
            with noting(self.result.problems):
                at = place(self.path, f"categories[{position}]")
                entry = _object(raw, at)
                key, name = integer(entry, "id", at), entry.get("name")
                if not isinstance(name, str) or not name.strip():
                    raise at("bad_field", f"name should be a word, found {name!r:.80}")
                if key in self.categories or key in self.same:
                    raise at("duplicate_id", f"id {key} is used by an earlier category; ids must differ")
                earlier = by_name.setdefault(name.strip().casefold(), key)
                self.categories[key] = name
                if earlier == key:
                    continue
                # some tools write a root of the same name above the real category
                idle, kept = (earlier, key) if key in used and earlier not in used else (key, earlier)
                self.same[idle] = by_name[name.strip().casefold()] = kept
                del self.categories[idle]
                if {idle, kept} <= used:
                    # detectors know classes by name, so one of the two would never be found
                    raise at("duplicate_id", f"name {name!r} is used by an earlier category; merge the two")
                self._note(f"category {idle} is unused, and named {name!r} as {kept} is")

    def _read_images(self, finder: Finder) -> tuple[dict[int, _Image], set[int]]:
        """Check the images; return the good ones and the ids of all."""
        if not self.images:
            raise place(self.path)("empty_split", "holds no image; an empty split cannot be used")
        called = [_names(entry) for entry in self.images if isinstance(entry, dict)]
        if self.table and not any(name in self.table for names in called for name in names):
            raise place(self.path)(
                "missing_group",
                f"the table names none of its images, which are {', '.join((called or [()])[0])} and so on, while the "
                f"table's are {next(iter(self.table))!r} and so on",
            )
        images: dict[int, _Image] = {}
        known: set[int] = set()
        for position, raw in enumerate(self.images):
            with noting(self.result.problems):
                at = place(self.path, f"images[{position}]")
                entry = _object(raw, at)
                key = integer(entry, "id", at)
                if key < 0:
                    raise at("bad_field", f"id is {key}; it must be at least 0")
                if key in known:
                    raise at("duplicate_id", f"id {key} is used by an earlier image; ids must differ")
                known.add(key)
                row = next((self.table[each] for each in _names(entry) if each in self.table), {})
                images[key] = self._image(entry | dict(row), finder, place(self.path, f"image {key}"))
        return images, known

    def _image(self, entry: dict[str, Any], finder: Finder, at: MakeProblem) -> _Image:
        name, scene = entry.get("file_name"), entry.get("scene")
        if not isinstance(name, str) or not name:
            raise at("bad_field", f"file_name should be the name of a file in {finder.folders[0]}, found {name!r:.80}")
        size = integer(entry, "width", at), integer(entry, "height", at)
        if min(size) < 1:
            raise at("bad_field", f"width and height should be at least 1, found {size[0]} and {size[1]}")
        if scene is not None and (isinstance(scene, bool) or not isinstance(scene, int | str)):
            raise at("bad_field", f"scene should be a number or a word, found {scene!r:.80}")
        file = finder.find(name, at)
        stored, orientation = check_header(file, at)
        seen = upright(stored, orientation)
        if size not in (stored, seen):
            found = f"{seen[0]}x{seen[1]} pixels (as EXIF turns it)"
            raise at("wrong_size", f"{file} has {found}, but width and height are {size[0]}x{size[1]}")
        group = self.group or ("" if self.named else self._group_of(entry, at))
        if self.asked and not group:
            where = "the table" if self.table else "the image"
            raise at("missing_group", f"{where} says no group for it (field {self.field!r}, {name})")
        return _Image(
            path=file,
            size=seen,
            stored=stored,
            turn=1 if size == seen else orientation,
            unsure=orientation > 1 and stored == seen,
            pair=None if scene is None else str(scene),
            group=group,
            split=word(entry, "split", at),
        )

    def _read_annotations(self, images: Mapping[int, _Image], known: set[int]) -> dict[int, list[Row]]:
        rows: dict[int, list[Row]] = {key: [] for key in images}
        seen: set[tuple[int, int]] = set()
        keys: set[int] = set()
        misread: list[str] = []
        # categories that say a group somewhere are asked for it everywhere
        saying = [entry for entry in self.annotations if self.personal and mentioned(self.field, [entry])]
        of_groups = {finite(entry.get("category_id")) for entry in saying}
        for position, raw in enumerate(self.annotations):
            with noting(self.result.problems):
                at = place(self.path, f"annotations[{position}]")
                entry = _object(raw, at)
                key = integer(entry, "id", at)
                at = place(self.path, f"annotation {key}")
                image_id = integer(entry, "image_id", at)
                if (image_id, key) in seen:
                    raise at("duplicate_id", "the id is used by an earlier annotation of its image; ids must differ")
                if key in keys:  # some tools count them anew in each image
                    at = place(self.path, f"annotation {key} of image {image_id}")
                seen.add((image_id, key))
                keys.add(key)
                if image_id not in known:
                    raise at("unknown_image", f"image_id {image_id} is not the id of any image in this file")
                if image_id not in images:
                    continue  # the image itself is broken, and said to be
                image = images[image_id]
                row = self._annotation(entry, image, at, misread)
                owner = self.named.get(entry["category_id"], "")
                with noting(self.result.problems):
                    owner = self._group_of(entry, at) if self.personal else owner
                    if entry["category_id"] in of_groups and not (owner or image.group or row[3]):
                        reason = f"has no group (field {self.field!r}), and neither has its image; it counts for nobody"
                        raise at("missing_group", reason)
                rows[image_id].append((*row, owner))
        # of masks, some areas say it by chance
        wrong = Counter(reason for reason in misread if reason)
        if 2 * wrong.total() > len(misread):
            reason = f"of {len(misread)} annotations with an area, {wrong.total()} contradict it: {next(iter(wrong))}"
            raise place(self.path)("bad_box", reason)
        return rows

    def _annotation(
        self, entry: dict[str, Any], image: _Image, at: MakeProblem, misread: list[str]
    ) -> tuple[list[float], int, float, bool]:
        category = integer(entry, "category_id", at)
        category = self.same.get(category, category)
        if category not in self.categories:
            known = ", ".join(f"{key} ({name})" for key, name in sorted(self.categories.items())) or "none"
            raise at("unknown_category", f"category_id {category} is unknown; the categories are {known}")
        raw, crowd, area = (entry.get(key) for key in ("bbox", "iscrowd", "area"))
        box = check_box(raw, image.stored if image.turn > 1 else image.size, at)
        area = 0.0 if area is None else finite(area)
        if area is None or area < 0:
            raise at("bad_field", f"area should be a number of at least 0, found {entry['area']!r:.80}")
        if isinstance(crowd, list | dict) or crowd not in (0, 1, None):
            raise at("bad_field", f"iscrowd should be 0 or 1, found {crowd!r:.80}")
        if area and raw:
            reason = against_area(raw, area, 1e-6)
            if reason and not entry.get("segmentation"):
                raise at("bad_box", reason)
            misread.append(against_area(raw, area, 0.02))
        return turn_box(box, image.stored, image.turn), category, area or box[2] * box[3], bool(crowd)


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


def _names(entry: dict[str, Any]) -> tuple[str, ...]:
    """What a table may call an image."""
    name = entry.get("file_name")
    return (str(entry.get("id")), name, os.path.basename(name)) if isinstance(name, str) else (str(entry.get("id")),)


def check_header(file: Path, problem: MakeProblem) -> tuple[tuple[int, int], int]:
    """Read an image's stored size and EXIF orientation without decoding it, or raise a problem."""
    try:
        return read_header(file)
    # Pillow's readers raise many kinds of errors on broken files.
    except Exception as error:
        raise problem("unreadable_image", f"{file} {unreadable(file, error, ' as an image')}") from error


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
