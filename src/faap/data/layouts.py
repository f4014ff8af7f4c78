"""Finding a data set's splits on disk, whatever its layout."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import compress
from pathlib import Path

from PIL import Image

from faap.data.coco import Reading, noting, read_coco
from faap.data.facet import FACET_ATTRIBUTE, FACET_LICENCE, is_facet, read_facet
from faap.data.images import read_image
from faap.data.problems import Problem, refuse
from faap.data.records import Record, Split
from faap.data.tables import read_table
from faap.errors import FaapError, nearest

# The split-folder layout names its folders and files by these words.
FOLDER_WORDS = {"female": "women", "male": "men"}
SPLITS = ("train", "val", "test")
# Where a folder's COCO JSON files are looked for, one a split.
PATTERNS = (
    "{split}.json",
    "annotations/{split}.json",
    "annotations/instances_{split}.json",
    "annotations/instances_{split}2017.json",
)
# What others call the splits.
SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}
# Shares of an undivided data set that become val and test.
VAL_SHARE, TEST_SHARE = 0.15, 0.15
WHOLE = "all"

LAYOUTS = (
    "'promenade'; a folder with women_split/gender_women_{train,val,test}.json, men_split/gender_men_{train,val,test}"
    ".json and the images in {women,men}_split/{train,val,test}/; a COCO JSON, or a folder with one, or with one a "
    "split ({train,val,test}.json), whose images or annotations carry a group; or FACET's folder or annotations.csv"
)


@dataclass(frozen=True)
class _Layout:
    """How a data set lies on disk: its splits, each with what reads it."""

    name: str
    sources: Mapping[str, Callable[[], Reading]]
    groups: tuple[str, str] = ("female", "male")
    note: str = ""


class Dataset:
    """A data set on disk; its splits are read when they are asked for.

    Args:
        root: the folder or file that it was opened by.
        layout: what was found there.
        anchor: the disadvantaged group; None: the layout's.
        reference: the group it is measured against; None: the layout's.
        skip_bad: leave broken records out instead of refusing them.

    Attributes:
        root: as given.
        layout: name of the layout.
        note: what its users must know; empty for most.
        anchor: the disadvantaged group.
        reference: the group it is measured against.
        splits: the names of the splits that are there.
        skip_bad: as given.

    Raises:
        FaapError: the groups are the same.
    """

    def __init__(
        self, root: Path, layout: _Layout, *, anchor: str | None, reference: str | None, skip_bad: bool = False
    ) -> None:
        self.root = root
        self.layout = layout.name
        self.note = layout.note
        self.anchor, self.reference = anchor or layout.groups[0], reference or layout.groups[1]
        if self.anchor == self.reference:
            raise FaapError(f"anchor and reference group are both {self.anchor!r}; they must differ")
        self.splits = tuple(layout.sources)
        self.skip_bad = skip_bad
        self._sources = layout.sources
        self._splits: dict[str, Split] = {}
        self._readings: dict[str, Reading] = {}
        self._broken: dict[Path, Problem | None] = {}

    def read(self, name: str) -> Reading:
        """Read a split's files, once, with what is wrong in them.

        Args:
            name: one of `splits`.

        Raises:
            FaapError: there is no such split.
        """
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise FaapError(
                f"data set {self.root} has no split {name!r}; it has {known}.{nearest(name, self.splits)}"
                + (f" {self.note}" if self.note else "")
            )
        if name not in self._readings:
            reading = self._sources[name]()
            self._readings[name] = self._decodable(reading) if self.skip_bad else reading
        return self._readings[name]

    def _decodable(self, reading: Reading) -> Reading:
        """Leave out the images that are broken behind their headers, which only decoding shows."""
        new = list(dict.fromkeys(record.path for record in reading.records if record.path not in self._broken))
        with ThreadPoolExecutor() as pool:
            self._broken.update(zip(new, pool.map(_undecodable, new), strict=True))
        kept = [self._broken[record.path] is None for record in reading.records]
        broken = dict.fromkeys(self._broken[record.path] for record in reading.records)
        return replace(
            reading,
            records=list(compress(reading.records, kept)),
            splits=list(compress(reading.splits, kept)),
            problems=[*reading.problems, *(problem for problem in broken if problem is not None)],
        )

    def split(self, name: str) -> Split:
        """Read a split, once.

        Image ids stay those of the files unless one is used by both groups: then they count from 1.

        Args:
            name: one of `splits`.

        Returns:
            The images of all groups.

        Raises:
            FaapError: there is no such split, the anchor or the reference group has nothing in it, or, unless
                `skip_bad`, something is wrong with a file or record.
        """
        if name not in self._splits:
            reading = self.read(name)
            if not self.skip_bad:
                refuse(reading.problems)
            split = Split(name, tuple(reading.records), reading.categories, self.anchor, self.reference)
            counts = split.counts()
            for group in (self.anchor, self.reference):
                if not any((~record.crowd).any() for record in split.of(group)):
                    known = ", ".join(f"{key} ({count} images)" for key, count in counts.items()) or "nothing"
                    raise FaapError(
                        f"data set {self.root}: the split {name!r} has nobody of group {group!r} to find; it has "
                        f"{known}. --anchor_group and --reference_group choose."
                        + ("" if group in counts else nearest(group, counts))
                    )
            self._splits[name] = split
        return self._splits[name]

    def check(self) -> list[Problem]:
        """Read all splits and return what is wrong in them, and with images that are in two places.

        An image that two splits or groups list, or one twice, stays in the first place only.
        """
        seen: dict[Path, tuple[str, Record]] = {}
        doubles: dict[Record, Problem] = {}
        for name in self.splits:
            for record in self.read(name).records:
                first, earlier = seen.setdefault(record.path, (name, record))
                if earlier is record:  # also where the whole of a divided file comes after its parts
                    continue
                kind, where = "duplicate_image", f"split {name}"
                if first != name:
                    kind, where = "two_splits", f"the splits {first} and {name}"
                elif earlier.groups != record.groups:
                    kind, where = "two_groups", f"the groups {', '.join(earlier.groups + record.groups)}"
                reason = f"is in {where}, as image {earlier.image_id} and image {record.image_id}; it should be in one"
                doubles.setdefault(record, Problem(kind, record.path, "", reason))
        for name in self.splits:
            reading = self.read(name)
            if new := [doubles[record] for record in reading.records if record in doubles]:
                kept = [record not in doubles for record in reading.records]
                self._readings[name] = replace(
                    reading,
                    records=list(compress(reading.records, kept)),
                    splits=list(compress(reading.splits, kept)),
                    problems=[*reading.problems, *new],
                )
        return list(dict.fromkeys(problem for name in self.splits for problem in self.read(name).problems))


def decode(path: Path) -> Image.Image:
    """Read an image; a Problem says what is wrong with it."""
    try:
        return read_image(path)
    except FaapError as error:
        raise Problem("unreadable_image", path, "", str(error).removeprefix(f"{path}: ")) from error


def _undecodable(path: Path) -> Problem | None:
    try:
        decode(path)
    except Problem as problem:
        return problem
    return None


def load_dataset(
    root: str | Path,
    *,
    anchor: str | None = None,
    reference: str | None = None,
    annotations: str = "",
    images_dir: str = "",
    group_field: str = "",
    group_csv: str = "",
    skip_bad: bool = False,
) -> Dataset:
    """Open a data set; see docs/data.md for the layouts.

    Args:
        root: "promenade" for the embedded benchmark, which is built at first use; a folder, or a COCO JSON or FACET's
            annotations.csv.
        anchor: the disadvantaged group; by default "female", in FACET "fem".
        reference: the group it is measured against; by default "male", in FACET "masc".
        annotations: COCO JSON, relative to `root`; `{split}` in it stands for train, val and test.
        images_dir: folder of the images, relative to `root`; `{split}` as above. By default it is looked for.
        group_field: field of images or annotations, or column of `group_csv`, that holds the group; by default gender.
            In FACET the attribute, by default gender_presentation.
        group_csv: table from image ids or file names to groups, relative to `root`.
        skip_bad: leave broken records out instead of refusing them.

    Returns:
        The data set; annotations are read when a split is asked for.

    Raises:
        FaapError: there is no data set of a known layout.
    """
    if root == "promenade":
        from faap.promenade import build_promenade

        root = build_promenade()
    place = Path(root)
    if not place.exists():
        raise FaapError(f"data set {place}: no such folder or file; give {LAYOUTS}")
    folder = place if place.is_dir() else place.parent
    if place.is_file() and annotations:
        raise FaapError(f"data set {place} is a file, and annotations names another ({annotations}); give the folder")
    coco = bool(annotations or group_csv)
    if place.is_dir() and not coco and any((place / f"{word}_split").is_dir() for word in FOLDER_WORDS.values()):
        layout = _split_folders(place, (anchor, reference))
    elif not coco and (table := _facet_file(place)):
        layout = _facet(table, folder, images_dir, group_field or FACET_ATTRIBUTE)
    else:
        layout = _coco(place, folder, annotations, images_dir, group_field or "gender", group_csv)
    return Dataset(place, layout, anchor=anchor, reference=reference, skip_bad=skip_bad)


def _facet_file(place: Path) -> Path | None:
    candidates = [place] if place.is_file() else [place / "annotations" / "annotations.csv", place / "annotations.csv"]
    return next((path for path in candidates if path.suffix == ".csv" and path.is_file() and is_facet(path)), None)


def _facet(table: Path, folder: Path, images_dir: str, attribute: str) -> _Layout:
    images = (folder.parent if folder.name == "annotations" else folder) / images_dir

    def read() -> Reading:
        result = Reading()
        with noting(result.problems):
            result = read_facet(table, images, attribute)
        return result

    groups = ("fem", "masc") if attribute == FACET_ATTRIBUTE else ("female", "male")
    return _Layout("FACET", {"test": read}, groups, FACET_LICENCE)


def _split_folders(root: Path, groups: tuple[str | None, str | None]) -> _Layout:
    for group in groups:
        if group and group not in FOLDER_WORDS:
            raise FaapError(
                f"group {group!r} is not in the data set {root}, whose groups are female and male."
                + nearest(group, FOLDER_WORDS)
            )
    for word in FOLDER_WORDS.values():
        if not (root / f"{word}_split").is_dir():
            raise FaapError(f"data set {root}: the folder {word}_split is missing; give {LAYOUTS}")

    def file(word: str, split: str) -> Path:
        return root / f"{word}_split" / f"gender_{word}_{split}.json"

    def read(split: str) -> Reading:
        result = Reading()
        for group, word in FOLDER_WORDS.items():
            with noting(result.problems):
                path = file(word, split)
                found = read_coco(path, root / f"{word}_split" / split, group=group)
                result.records += found.records
                result.problems += found.problems
                for key, label in found.categories.items():
                    if (other := result.categories.setdefault(key, label)) != label:
                        reason = f"category {key} is {label!r}, but {other!r} in the other group's file"
                        raise Problem("unknown_category", path, "", reason)
        if len({record.image_id for record in result.records}) < len(result.records):
            result.records = [replace(record, image_id=n) for n, record in enumerate(result.records, start=1)]
        return result

    present = [name for name in SPLITS if any(file(word, name).is_file() for word in FOLDER_WORDS.values())]
    if not present:
        raise FaapError(f"data set {root}: no annotation file found; give {LAYOUTS}")
    return _Layout("split folders", {name: partial(read, name) for name in present})


def _coco(place: Path, root: Path, annotations: str, images_dir: str, group_field: str, group_csv: str) -> _Layout:
    if place.is_file():
        pattern = place.name
    elif annotations:
        pattern = annotations
    else:
        pattern = next(
            (p for p in PATTERNS if any((root / p.format(split=name)).is_file() for name in SPLITS)), ""
        ) or _only_json(place)
    files = {name: root / pattern.replace("{split}", name) for name in (SPLITS if "{split}" in pattern else [WHOLE])}
    present = {name: path for name, path in files.items() if path.is_file()}
    if not present:
        raise FaapError(f"data set {place}: {root / pattern} does not exist; --annotations names the COCO JSON")
    if place.is_file() and place.suffix.lower() == ".csv":
        raise FaapError(f"data set {place}: is not FACET's annotations.csv, and a CSV alone has no images; {LAYOUTS}")

    @cache
    def table() -> tuple[dict[str, dict[str, str]] | None, list[Problem]]:
        return read_table(root / group_csv, group_field) if group_csv else (None, [])

    def read(path: Path, name: str) -> Reading:
        folders = [root / images_dir.replace("{split}", name)] if images_dir else _image_folders(root, path, name)
        result = Reading()
        with noting(result.problems):
            groups, problems = table()
            result.problems += problems
            found = read_coco(path, folders, group_field=group_field, table=groups)
            result = replace(found, problems=[*result.problems, *found.problems])
        return result if name != WHOLE else _with_known_splits(result, path)

    if WHOLE not in present:
        return _Layout("COCO JSON", {name: partial(read, path, name) for name, path in present.items()})
    whole = cache(partial(read, present[WHOLE], WHOLE))
    return _Layout("COCO JSON, divided", {name: partial(_part, whole, name) for name in (*SPLITS, WHOLE)})


def _only_json(place: Path) -> str:
    found = sorted(path.name for path in place.glob("*.json"))
    if len(found) != 1:
        known = f"it has {', '.join(found[:5])}; --annotations names the one" if found else f"give {LAYOUTS}"
        raise FaapError(f"data set {place}: no layout that faap knows; {known}")
    return found[0]


def _image_folders(root: Path, annotations: Path, split: str) -> list[Path]:
    """Return where the images of a COCO JSON may be, the likeliest first."""
    home = root.parent if root.name == "annotations" else root
    own = annotations.stem.removeprefix("instances_")  # COCO's val2017 lies beside annotations/instances_val2017.json
    names = [name for name in (own, split) if name != WHOLE]
    return [
        *(home / folder / name for folder in (".", "images") for name in names),
        home / "images",
        home,
        root,
        annotations.parent,
    ]


def _part(whole: Callable[[], Reading], name: str) -> Reading:
    """Return one split of a data set in one file: as its images say, or else drawn by a hash of their names."""
    reading = whole()
    if name == WHOLE:
        return reading
    homes = reading.splits if any(reading.splits) else [_drawn(record) for record in reading.records]
    chosen = [record for record, home in zip(reading.records, homes, strict=True) if home == name]
    return replace(reading, records=chosen, splits=[name] * len(chosen), left_out=0)


def _with_known_splits(reading: Reading, path: Path) -> Reading:
    """Leave out images without a split where others have one, or with one of another name than train, val and test."""
    if not any(reading.splits):
        return reading
    names = [SPLIT_NAMES.get(split.casefold(), split.casefold()) for split in reading.splits]
    kept = [name in SPLITS for name in names]
    problems = [
        Problem(
            "bad_field", path, f"image {record.image_id}", f"split should be train, val or test, found {split!r:.80}"
        )
        for record, split, good in zip(reading.records, reading.splits, kept, strict=True)
        if not good
    ]
    return replace(
        reading,
        records=list(compress(reading.records, kept)),
        splits=list(compress(names, kept)),
        problems=[*reading.problems, *problems],
    )


def _drawn(record: Record) -> str:
    """Draw a split from an image's name, or from that of its scene, so that twins stay together."""
    key = record.path.name if record.pair is None else record.pair
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return "test" if share < TEST_SHARE else "val" if share < TEST_SHARE + VAL_SHARE else "train"
