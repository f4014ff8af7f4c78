"""From the entries of annotations to records: whatever is wrong is named with its place, and the rest is read on."""

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from faap.data.boxes import against_area, as_corners, check_box
from faap.data.fields import WORD, conditions, file_key, folded, plain, says, take, whole
from faap.data.finding import Finder, Parts
from faap.data.orientation import read_header, turn_box, upright
from faap.data.problems import MakeProblem, Problem, noting, opening, place
from faap.data.records import Record

# Categories that say a group, which the split folders call otherwise.
SYNONYMS = dict.fromkeys(("woman", "women", "girl", "girls"), "female")
SYNONYMS |= dict.fromkeys(("man", "men", "boy", "boys"), "male")
PERSON = "person"

TURNED = "turned by their EXIF orientation, and their boxes with them: width and height are those of the stored file"
UNSURE = "turned by EXIF, which their size does not show; their boxes are taken to be of the upright image"
RESPELT = "found in another spelling than their file_name's"

Table = Callable[[], tuple[Mapping[str | int, Mapping[str, str]], list[Problem]]]


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
        renumbered: whether image ids are faap's own, and not the file's.
    """

    records: list[Record] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: int = 0
    renumbered: bool = False


Entry = tuple[str, Any]  # the words for its place in the file, and what is there: an object, if nothing is wrong


@dataclass
class _Image:
    """An image's entry, checked, with what is found in it."""

    fields: dict[str, Any]  # of its record
    group: str
    frame: tuple[int, int]  # the size that its boxes are drawn in
    turn: int  # EXIF orientation that its boxes have still to follow
    rows: list[tuple[list[float], int, float, bool, str, dict[str, float]]] = field(default_factory=list)


@dataclass(eq=False)
class Reader:
    """Reads the entries of one file.

    Attributes:
        path: the file.
        lists: its images, annotations and categories, each as in COCO's JSON, such as ("image 7", {"id": 7, …}).
        folders: what its file names are relative to, the first in which a file is.
        roots: folders that no name and no link may leave; by default those.
        parts: name of each split -> folders of its images alone, where images say theirs.
        group: the group of all its images; empty: `group_field` says it.
        group_field: the field that holds the group, of images or annotations or of an object in them, such as CVAT's
            `attributes`.
        table: reads further fields of images, by id or file name, and what is wrong with them; see `read_table`.
        groups: how the anchor and the reference group are written.
        complete: whether images without a size, and people without a group where others have one, are mistakes.

    Raises:
        Problem: there is no image, or nothing says a group.
    """

    path: Path
    lists: Mapping[str, Sequence[Entry]]
    folders: Sequence[Path]
    _: KW_ONLY
    roots: Sequence[Path] = ()
    parts: Parts | None = None
    group: str = ""
    group_field: str = ""
    table: Table | None = None
    groups: Sequence[str] = ()
    complete: bool = True

    def __post_init__(self) -> None:
        if not self.lists["images"]:
            raise place(self.path)("empty_split", "holds no image; an empty split cannot be used")
        self.finder = Finder(self.folders, self.roots, self.parts)
        self.rows, problems = self.table() if self.table else ({}, [])
        self.result = Reading(problems=[*problems])
        self.spelt = {plain(each): each for each in self.groups}
        self.taken: dict[str, str] = {}  # names in the table -> the images that they are taken for
        self.images: dict[int, _Image | None] = {}  # None: a broken one, which is said to be
        self.noted: defaultdict[str, list[str]] = defaultdict(list)
        self.misread: list[str] = []
        self.corners: list[str] = []
        found = [entry for _, entry in self.lists["annotations"] if isinstance(entry, dict)]
        self.used = {whole(entry.get("category_id")) for entry in found}
        self.categories: dict[int, str] = {}
        self.called: dict[str, int] = {}  # their folded names -> their ids
        self.same: dict[int, int] = {}  # of categories that share a name, which id stands for which
        self._each("categories", self._category)
        # categories that say a group somewhere are asked for it everywhere, but then not every image is
        saying = [] if self.group else [entry for entry in found if says(entry, self.group_field)]
        self.personal = {whole(entry.get("category_id")) for entry in saying}
        said = self.table is not None or any(says(entry, self.group_field) for _, entry in self.lists["images"])
        self.asked = said and self.complete and not self.group and not self.personal
        if self.rows and self.personal:
            self._note("annotations say the group themselves; the table counts for those that do not")
        elif self.rows:
            how = "ids" if any(isinstance(key, int) for key in self.rows) else "names"
            self._note(f"the table names images by their {how}")
        self.named: dict[int, str] = {}
        if self.complete and not (self.group or self.personal or self.asked):
            self._name_groups()

    def read(self) -> Reading:
        """Return the records in the order of the file, and what is wrong with the others.

        Raises:
            Problem: the boxes misread as a whole.
        """
        self._each("images", self._image)
        self._each("annotations", self._annotation)
        # of masks, some areas say it by chance
        areas = self.misread, 0, "annotations with an area, {} contradict it"
        corners = self.corners, 1, "boxes that can tell, {} are not [x, y, width, height]"
        for said, least, words in (areas, corners):
            wrong = [*filter(None, said)]
            if 2 * len(wrong) > len(said) > least:
                raise place(self.path)("bad_box", f"of {len(said)} {words.format(len(wrong))}: {wrong[0]}")
        categories, images = self.categories, [image for image in self.images.values() if image]
        if self.personal or self.named:
            found = Counter(row[1] for image in images for row in image.rows)
            grouped = {row[1] for image in images for row in image.rows if row[4]}
            if nobody := [f"{categories[key]} ({n})" for key, n in found.items() if key not in grouped]:
                self._note(f"categories that say no group are left out: {', '.join(nobody[:10])}")
            categories = {key: name for key, name in categories.items() if key in grouped}
        self.result.categories = categories
        for image in images:
            self._add(image, [(*row[:4], row[4] or image.group, row[5]) for row in image.rows if row[1] in categories])
        for what, names in self.noted.items():
            self._note(f"{len(names)} images, such as {names[0]}, are {what}")
        return self.result

    def _each(self, name: str, read: Callable[[dict[str, Any], int, MakeProblem], None]) -> None:
        """Read the entries of a list one by one, and keep what is wrong with them."""
        seen: set[str] = set()
        for label, entry in self.lists[name]:
            with noting(self.result.problems):
                at = place(self.path, label)
                if not isinstance(entry, dict):
                    raise at("bad_field", f"should be a JSON object, found {entry!r:.80}")
                key = take(entry, "id", at)
                if label in seen:
                    raise at("duplicate_id", "the id is used by an earlier one; ids must differ")
                seen.add(label)
                read(entry, key, at)

    def _note(self, text: str) -> None:
        self.result.notes.append(f"{self.path}: {text}")

    def _category(self, entry: dict[str, Any], key: int, at: MakeProblem) -> None:
        name = take(entry, "name", at)
        earlier = self.called.setdefault(folded(name), key)
        self.categories[key] = name
        if earlier == key:
            return
        # some tools write a root of the same name above the real category
        idle, kept = (earlier, key) if key in self.used and earlier not in self.used else (key, earlier)
        del self.categories[idle]
        self.same[idle] = self.called[folded(name)] = kept
        if {idle, kept} <= self.used:
            # detectors know classes by name, so one of the two would never be found
            raise at("duplicate_id", f"name {name!r} is used by an earlier category; merge the two")
        self._note(f"category {idle} is unused, and named {name!r} as {kept} is")

    def _name_groups(self) -> None:
        """Take the group from categories that are named as both groups are, and make them one."""
        names = {key: folded(name) for key, name in self.categories.items()}
        said = {folded(group): group for group in self.groups}
        found = {key: said.get(name) or said.get(SYNONYMS.get(name, "")) for key, name in names.items()}
        self.named = {key: group for key, group in found.items() if group}
        if not self.groups or set(self.named.values()) != set(self.groups):
            raise place(self.path)("missing_group", self._no_group())
        self._note(f"categories say the group: {', '.join(self.categories[key] for key in self.named)}")
        first = next(iter(self.named))
        self.same |= {key: first for key, name in names.items() if key in self.named or name == PERSON}
        self.categories[first] = PERSON

    def _no_group(self) -> str:
        names = {
            f"{name}.{inner}" if inner else name
            for _, entry in (*self.lists["images"], *self.lists["annotations"])
            for name, value in (entry.items() if isinstance(entry, dict) else ())
            for inner in ((isinstance(value, dict) and value) or ("",))
        }
        lacking = f"no image and no annotation has a field {self.group_field!r} that says its group"
        there = f"(fields: {', '.join(sorted(names)[:30])})"
        return f"{lacking}; --group_field names the right one {there}, or --group_csv a table"

    def _group_of(self, entry: dict[str, Any], at: MakeProblem) -> str:
        """Return an entry's group, spelt as the first that differs from it in case or Unicode form alone."""
        said: str = take(entry, self.group_field, at, WORD)
        return self.spelt.setdefault(plain(said), said)

    def _image(self, entry: dict[str, Any], key: int, at: MakeProblem) -> None:
        self.images[key] = None
        if key < 0:
            raise at("bad_field", f"id is {key}; it should be at least 0")
        name = take(entry, "file_name", at)
        entry = entry | dict(self._told(key, name, at))
        split = take(entry, "split", at, WORD) if self.parts is not None else ""
        path = self.finder.find(name, at, split)
        with opening(path, lambda kind, reason: at(kind, f"{path} {reason}"), "image"):
            stored, orientation = read_header(path)
        size = upright(stored, orientation)
        frame = (take(entry, "width", at), take(entry, "height", at)) if self.complete else size
        if frame not in (stored, size):
            found = f"{size[0]}x{size[1]} pixels (as EXIF turns it)"
            raise at("wrong_size", f"{path} has {found}, but width and height are {frame[0]}x{frame[1]}")
        group = self.group or ("" if self.named else self._group_of(entry, at))
        if self.asked and not group:
            where = "the table" if self.rows else "the image"
            first = f"; its first image is {str(next(iter(self.rows)))!r}" if self.rows else ""
            raise at("missing_group", f"{where} says no group for it (field {self.group_field!r}, {name}{first})")
        fields = {"image_id": key, "path": path, "width": size[0], "height": size[1]}
        fields |= {"pair": take(entry, "scene", at) or None, "split": split}
        self.images[key] = _Image(fields, group, frame, 1 if frame == size else orientation)
        if not str(path).endswith(os.path.normpath(name)):
            self.noted[RESPELT].append(f"{name!r:.80} ({path})")
        if frame != size:
            self.noted[TURNED].append(path.name)
        elif orientation > 1 and stored == size:
            self.noted[UNSURE].append(path.name)

    def _told(self, key: int, name: str, at: MakeProblem) -> Mapping[str, str]:
        """Return what the table says of an image, by its id, or by its name with its folders or without."""
        whole = file_key(name)
        called = next((each for each in (key, whole, posixpath.basename(whole)) if each in self.rows), None)
        if called is None:
            return {}
        other = self.taken.setdefault(called, whole) if isinstance(called, str) else whole
        if other != whole:
            reason = f"the table's {called!r} may be it or {other}; a table should name folders, too, or ids"
            raise at("missing_group", reason)
        return self.rows[called]

    def _annotation(self, entry: dict[str, Any], key: int, at: MakeProblem) -> None:
        image_id = take(entry, "image_id", at)
        if image_id not in self.images:
            raise at("unknown_image", f"image_id {image_id} is not the id of any image in this file")
        image = self.images[image_id]
        if image is None:
            return
        said = take(entry, "category_id", at)
        category = self.same.get(said, said)
        if category not in self.categories:
            known = ", ".join(f"{key} ({name})" for key, name in sorted(self.categories.items())) or "none"
            raise at("unknown_category", f"category_id {said} is unknown; the categories are {known}")
        bbox, area, crowd = (take(entry, name, at) for name in ("bbox", "area", "iscrowd"))
        if not area and (reason := as_corners(bbox, image.frame)) is not None:
            self.corners.append(reason)
        box = turn_box(check_box(bbox, image.frame, at), image.frame, image.turn)
        if area:
            reason = against_area(bbox, area, 1e-6)
            if reason and not entry.get("segmentation"):
                raise at("bad_box", reason)
            self.misread.append(against_area(bbox, area, 0.02))
        owner = self.named.get(said, "")
        with noting(self.result.problems):
            owner = self._group_of(entry, at) if self.personal else owner
            if self.complete and said in self.personal and not (owner or image.group or crowd):
                reason = f"has no group (field {self.group_field!r}), and neither has its image; it counts for nobody"
                raise at("missing_group", reason)
        image.rows.append((box, category, area or box[2] * box[3], crowd, owner, conditions(entry)))

    def _add(self, image: _Image, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add the record of an image, unless nobody in it has a group."""
        boxes, labels, areas, crowd, owners, seen = zip(*rows, strict=True) if rows else [()] * 6
        names, said = set(owners) or {image.group}, dict.fromkeys(chain.from_iterable(seen))
        groups = names - {""}
        if not groups:
            self.result.left_out += 1
            return
        record = Record(
            group=groups.pop() if len(groups) == 1 else "",
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.array(labels, dtype=np.int64),
            areas=np.array(areas, dtype=np.float64),
            crowd=np.array(crowd, dtype=bool),
            owners=None if len(names) == 1 else owners,
            conditions={name: np.array([each.get(name, np.nan) for each in seen]) for name in said},
            **image.fields,
        )
        self.result.records.append(record)
