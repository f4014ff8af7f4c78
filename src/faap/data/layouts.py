"""Finding a data set's splits on disk, whatever its layout."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from PIL import Image

from faap.data.coco import Reading, read_coco
from faap.data.facet import FACET_ATTRIBUTE, FACET_LICENCE, is_facet, read_facet
from faap.data.images import read_image
from faap.data.problems import Problem, lfs_pointer, noting, refuse
from faap.data.records import Record, Split
from faap.data.tables import read_table
from faap.errors import FaapError, nearest

# The split-folder layout names its folders and files by these words.
FOLDER_WORDS = {"female": "women", "male": "men"}
SPLITS = ("train", "val", "test")
# What others call the splits.
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_NAMES = {name: split for split, names in NAMES.items() for name in names}
# Where a folder's COCO JSON files are looked for, one a split.
PATTERNS = (
    "{split}.json",
    "annotations/{split}.json",
    "annotations/instances_{split}.json",
    "annotations/instances_{split}2017.json",
    "{split}/_annotations.coco.json",
)
# Shares of an undivided data set that become val and test.
VAL_SHARE, TEST_SHARE = 0.15, 0.15
WHOLE = "all"
DIVIDED = "COCO JSON, divided"
DRAWN = (
    " The file does not say its splits, which are drawn by a hash of its images' names: give images a field split "
    "(train, val or test), or evaluate the whole file with --split all."
)

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
        self._sources = {name: cache(source) for name, source in layout.sources.items()}
        self._readings: dict[str, Reading] = {}
        self._splits: dict[str, Split] = {}
        self._broken: dict[Path, Problem | None] = {}

    def split(self, name: str) -> Split:
        """Return a split of a data set in which nothing is wrong: the annotations of all splits are checked for it.

        Image ids stay those of the files unless one is used by both groups: then they count from 1.

        Args:
            name: one of `splits`; "valid" and "validation" are "val", too.

        Raises:
            FaapError: there is no such split, the anchor or the reference group has nothing in it, or something is
                wrong with a file or record of any split, such as an image in two splits. With `skip_bad` the broken
                records are left out instead.
        """
        name = self._known(name)
        if not self.skip_bad:
            refuse(self.problems())
        if name not in self._splits:
            reading = self.read(name)
            split = Split(name, tuple(reading.records), reading.categories, self.anchor, self.reference)
            for group in (self.anchor, self.reference):
                if not split.objects(group):
                    raise FaapError(self._without(group, split))
            self._splits[name] = split
        return self._splits[name]

    def usable(self, *names: str) -> list[str]:
        """Refuse splits that `split` would refuse, and those that are not there first.

        Returns:
            What the user should know of a data set that can be used, a sentence each.
        """
        names = tuple(self._known(name) for name in names)
        for name in names:
            self.split(name)
        readings = [self.read(name) for name in names]
        count = len({problem for reading in readings for problem in reading.problems})
        left_out = [f"{count} broken records are left out; `faap check` lists them."] if count else []
        return [
            *([self.note] if self.note else []),
            *left_out,
            *dict.fromkeys(note for reading in readings for note in reading.notes),
        ]

    def problems(self) -> list[Problem]:
        """Return what is wrong in all splits, and with images that are in two places."""
        return list(dict.fromkeys(problem for name in self.splits for problem in self.read(name).problems))

    def read(self, name: str) -> Reading:
        """Return what is left of a split without its broken records, and all that is wrong in it.

        An image that two splits or groups list, or one twice, stays in the first place only. With `skip_bad` those go,
        too, that are broken behind their headers, which only decoding shows.

        Raises:
            FaapError: there is no such split.
        """
        name = self._known(name)
        if name not in self._readings:
            reading = self.unchecked(name)
            bad = {record: self._repeats[record] for record in reading.records if record in self._repeats}
            if self.skip_bad:
                new = list(dict.fromkeys(r.path for r in reading.records if r.path not in self._broken))
                with ThreadPoolExecutor() as pool:
                    self._broken.update(zip(new, pool.map(_undecodable, new), strict=True))
                bad |= {record: broken for record in reading.records if (broken := self._broken[record.path])}
            self._readings[name] = replace(
                reading,
                records=[record for record in reading.records if record not in bad],
                problems=[*reading.problems, *dict.fromkeys(bad.values())],
            )
        return self._readings[name]

    def unchecked(self, name: str) -> Reading:
        """Return what a split's files hold, with what is wrong in each of them by itself."""
        return self._sources[self._known(name)]()

    def _known(self, name: str) -> str:
        known = name if name in self.splits else SPLIT_NAMES.get(name, name)
        if known not in self.splits:
            raise FaapError(
                f"data set {self.root} has no split {name!r}; it has {', '.join(self.splits)}."
                + nearest(name, self.splits)
                + (f" {self.note}" if self.note else "")
            )
        return known

    @cached_property
    def _repeats(self) -> dict[Record, Problem]:
        """Say of each image that is listed again after its first place, where else it is."""
        seen: dict[object, tuple[str, Record]] = {}
        repeats: dict[Record, Problem] = {}
        for name in self.splits:
            for record in self.unchecked(name).records:
                first, earlier = seen.setdefault(file_identity(record.path), (name, record))
                if earlier is record:  # also where the whole of a divided file comes after its parts
                    continue
                kind, where = "duplicate_image", f"split {name}"
                if first != name:
                    kind, where = "two_splits", f"the splits {first} and {name}"
                elif earlier.groups != record.groups:
                    kind, where = "two_groups", f"the groups {', '.join(earlier.groups + record.groups)}"
                reason = f"is in {where}, as image {earlier.image_id} and image {record.image_id}; it should be in one"
                repeats.setdefault(record, Problem(kind, record.path, "", reason))
        return repeats

    def _without(self, group: str, split: Split) -> str:
        """Say that a group has nothing in a split; of other groups only the likely spelling is proposed."""
        counts = split.counts()
        known = ", ".join(f"{key} ({count} images)" for key, count in counts.items()) or "nothing"
        return (
            f"data set {self.root}: the split {split.name!r} has no object of group {group!r} to find; it has {known}. "
            "--anchor_group and --reference_group choose."
            + _likely(group, set(counts) - {self.anchor, self.reference})
            + (
                DRAWN
                if self.layout == DIVIDED
                and split.name != WHOLE
                and not any(r.split for r in self.unchecked(WHOLE).records)
                else ""
            )
        )


def file_identity(path: Path) -> object:
    """Tell files apart, however they are linked."""
    with suppress(OSError):
        found = os.stat(path)
        return (found.st_dev, found.st_ino) if found.st_ino else path
    return path


def _likely(group: str, known: Iterable[str]) -> str:
    """Propose a spelling, but never another group: male is no slip of female, nor 1 of 10."""
    slips = [name for name in known if name[:1].casefold() == group[:1].casefold() and (name + group).isalpha()]
    return nearest(group, slips)


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
        groups = anchor or "female", reference or "male"
        layout = _coco(place, annotations, images_dir, group_field or "gender", group_csv, groups)
    return Dataset(place, layout, anchor=anchor, reference=reference, skip_bad=skip_bad)


def _facet_file(place: Path) -> Path | None:
    candidates = [place] if place.is_file() else [place / "annotations" / "annotations.csv", place / "annotations.csv"]
    found = [path for path in candidates if path.suffix == ".csv" and path.is_file()]
    return next((path for path in found if lfs_pointer(path) or is_facet(path)), None)


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
                + _likely(group, FOLDER_WORDS)
            )
    for word in FOLDER_WORDS.values():
        if not (root / f"{word}_split").is_dir():
            raise FaapError(f"data set {root}: the folder {word}_split is missing; give {LAYOUTS}")

    files = {word: _files(root / f"{word}_split", f"gender_{word}_{{split}}.json") for word in FOLDER_WORDS.values()}

    def read(split: str) -> Reading:
        result = Reading()
        for group, word in FOLDER_WORDS.items():
            with noting(result.problems):
                home = root / f"{word}_split"
                path = files[word].get(split, home / f"gender_{word}_{split}.json")
                found = read_coco(path, [home / name for name in NAMES[split]], group=group)
                result.records += found.records
                result.problems += found.problems
                result.notes += found.notes
                for key, label in found.categories.items():
                    for other, name in result.categories.items():
                        if (key == other) != (label.casefold() == name.casefold()):
                            reason = f"category {key} is {label!r}, but {other} is {name!r} in the other group's file"
                            raise Problem("unknown_category", path, "", reason)
                result.categories |= found.categories
        if len({record.image_id for record in result.records}) < len(result.records):
            result.records = [replace(record, image_id=n) for n, record in enumerate(result.records, start=1)]
        return result

    present = [name for name in SPLITS if any(name in found for found in files.values())]
    if not present:
        raise FaapError(f"data set {root}: no annotation file found; give {LAYOUTS}")
    return _Layout("split folders", {name: partial(read, name) for name in present})


def _files(root: Path, pattern: str) -> dict[str, Path]:
    """Return the files of a pattern that are there, by split, each by the first of its names."""
    names = NAMES if "{split}" in pattern else {WHOLE: (WHOLE,)}
    paths = {split: [root / pattern.replace("{split}", name) for name in each] for split, each in names.items()}
    found = {split: next((path for path in each if path.is_file()), None) for split, each in paths.items()}
    return {split: path for split, path in found.items() if path}


def _coco(
    place: Path, annotations: str, images_dir: str, group_field: str, group_csv: str, wanted: tuple[str, str]
) -> _Layout:
    root = place if place.is_dir() else place.parent
    pattern = place.name if place.is_file() else annotations
    pattern = pattern or next((each for each in PATTERNS if _files(root, each)), "") or _only_json(place)
    present = _files(root, pattern)
    if not present:
        raise FaapError(f"data set {place}: {root / pattern} does not exist; --annotations names the COCO JSON")
    if place.is_file() and place.suffix.lower() == ".csv":
        raise FaapError(f"data set {place}: is not FACET's annotations.csv, and a CSV alone has no images; {LAYOUTS}")

    @cache
    def table() -> tuple[dict[str, dict[str, str]] | None, list[Problem]]:
        return read_table(root / group_csv, group_field) if group_csv else (None, [])

    def read(path: Path, name: str) -> Reading:
        told = [root / images_dir.replace("{split}", each) for each in NAMES.get(name, (name,))]
        folders = told if images_dir else _image_folders(root, path, name)
        result = Reading()
        with noting(result.problems):
            groups, problems = table()
            result.problems += problems
            found = read_coco(path, folders, group_field=group_field, table=groups, groups=wanted)
            result = replace(found, problems=[*result.problems, *found.problems])
        return result if name != WHOLE else _with_known_splits(result, path)

    if WHOLE not in present:
        return _Layout("COCO JSON", {name: partial(read, path, name) for name, path in present.items()})
    whole = cache(partial(read, present[WHOLE], WHOLE))
    return _Layout(DIVIDED, {name: partial(_part, whole, name) for name in (*SPLITS, WHOLE)})


def _only_json(place: Path) -> str:
    found = sorted(place.glob("*.json")) or sorted(place.glob("annotations/*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5])
        known = f"it has {names}; --annotations names the one" if found else f"give {LAYOUTS}"
        raise FaapError(f"data set {place}: no layout that faap knows; {known}")
    return str(found[0].relative_to(place))


def _image_folders(root: Path, annotations: Path, split: str) -> list[Path]:
    """Return where the images of a COCO JSON may be, the likeliest first."""
    home = root.parent if root.name == "annotations" else root
    own = annotations.stem.removeprefix("instances_")  # COCO's val2017 lies beside annotations/instances_val2017.json
    names = [own, *NAMES.get(split, ())]
    parts = [home / folder / name for folder in (".", "images") for name in SPLIT_NAMES] if split == WHOLE else []
    return [
        *(home / folder / name for folder in (".", "images") for name in names if name != WHOLE),
        *(home / "images", home / "data", home, root, annotations.parent),
        *(folder for folder in parts if folder.is_dir()),
    ]


def _part(whole: Callable[[], Reading], name: str) -> Reading:
    """Return one split of a data set in one file: as its images say, or else drawn by a hash of their names."""
    reading = whole()
    if name == WHOLE:
        return reading
    said = any(record.split for record in reading.records)
    chosen = [record for record in reading.records if (record.split if said else _drawn(record)) == name]
    return replace(reading, records=chosen, left_out=0)


def _with_known_splits(reading: Reading, path: Path) -> Reading:
    """Leave out images without a split where others have one, or with one of another name than train, val and test."""
    if not any(record.split for record in reading.records):
        return reading
    kept, problems = [], list(reading.problems)
    for record in reading.records:
        if split := SPLIT_NAMES.get(record.split.casefold()):
            kept.append(replace(record, split=split))
        else:
            reason = f"split should be train, val or test, found {record.split!r:.80}"
            problems.append(Problem("bad_field", path, f"image {record.image_id}", reason))
    return replace(reading, records=kept, problems=problems)


def _drawn(record: Record) -> str:
    """Draw a split from an image's name, or from that of its scene, so that twins stay together."""
    key = record.path.name if record.pair is None else record.pair
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return "test" if share < TEST_SHARE else "val" if share < TEST_SHARE + VAL_SHARE else "train"
