"""Finding a data set's splits on disk, whatever its layout."""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from faap.data.coco import read_coco
from faap.data.facet import FACET_ATTRIBUTE, FACET_LICENCE, is_facet, read_facet
from faap.data.fields import NAMES, SPLIT_NAMES, folded, plain
from faap.data.images import read_image
from faap.data.problems import Problem, noting, place, refuse
from faap.data.reading import Reading
from faap.data.records import Record, Split
from faap.data.tables import read_table
from faap.errors import FaapError, nearest

# The split-folder layout names its folders and files by these words.
FOLDER_WORDS = {"female": "women", "male": "men"}
# Where a folder's COCO JSON files are looked for, one a split.
NAMED = ("{split}", "annotations/{split}", "annotations/instances_{split}", "annotations/instances_{split}2017")
PATTERNS = (*(f"{name}.json" for name in NAMED), "{split}/_annotations.coco.json")
# Shares of an undivided data set that become val and test.
VAL_SHARE, TEST_SHARE = 0.15, 0.15
WHOLE = "all"
DRAWN = (
    "says no splits, which are drawn by a hash of its images' names: give images a field split (train, val or test), "
    "or evaluate the whole file with --split all"
)

LAYOUTS = (
    "'promenade'; a folder with women_split/gender_women_{train,val,test}.json, men_split/gender_men_{train,val,test}"
    ".json and the images in {women,men}_split/{train,val,test}/; a COCO JSON, or a folder with one, or with one a "
    "split ({train,val,test}.json), whose images or annotations carry a group; or FACET's folder or annotations.csv"
)

Sources = Mapping[str, Callable[[], Reading]]


class Dataset:
    """A data set on disk; its splits are read when they are asked for.

    Args:
        root: the folder or file that it was opened by.
        layout: what was found there.
        sources: name of each split -> what reads it.
        groups: the disadvantaged group, and the one it is measured against.
        note: what its users must know; empty for most.
        skip_bad: leave broken records out instead of refusing them.

    Attributes:
        anchor: the disadvantaged group.
        reference: the group it is measured against.
        splits: the names of the splits that are there.

    Raises:
        FaapError: the groups are the same.
    """

    def __init__(
        self, root: Path, layout: str, sources: Sources, *, groups: tuple[str, str], note: str, skip_bad: bool
    ) -> None:
        self.root, self.layout, self.note, self.skip_bad = root, layout, note, skip_bad
        self.anchor, self.reference = groups
        if self.anchor == self.reference:
            raise FaapError(f"anchor and reference group are both {self.anchor!r}; they must differ")
        self.splits = tuple(sources)
        self._sources = {name: cache(source) for name, source in sources.items()}
        self._readings: dict[str, Reading] = {}
        self._splits: dict[str, Split] = {}
        self._undecodable = cache(_undecodable)

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
            # whoever takes the whole need not know what is in which part
            refuse(self.read(WHOLE).problems if name == WHOLE else self.problems())
        if name not in self._splits:
            split = self.as_split(name, self.read(name))
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
        for name in [self._known(name) for name in names]:
            self.split(name)
        readings = [self.read(name) for name in names]
        count = len({problem for reading in readings for problem in reading.problems})
        left_out = f"{count} broken records are left out; `faap check` lists them." if count else ""
        said = (self.note, left_out, *(note for reading in readings for note in reading.notes))
        return [text for text in dict.fromkeys(said) if text]

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
                with ThreadPoolExecutor() as pool:
                    found = pool.map(self._undecodable, [record.path for record in reading.records])
                    bad |= {record: broken for record, broken in zip(reading.records, found, strict=True) if broken}
            kept = [record for record in reading.records if record not in bad]
            problems = [*reading.problems, *dict.fromkeys(bad.values())]
            self._readings[name] = replace(reading, records=kept, problems=problems)
        return self._readings[name]

    def as_split(self, name: str, reading: Reading) -> Split:
        """Return what was read as a split of this data set."""
        return Split(name, tuple(reading.records), reading.categories, self.anchor, self.reference)

    def unchecked(self, name: str) -> Reading:
        """Return what a split's files hold, with what is wrong in each of them by itself."""
        return self._sources[self._known(name)]()

    def _known(self, name: str) -> str:
        known = name if name in self.splits else SPLIT_NAMES.get(name, name)
        if known not in self.splits:
            has = f"it has {', '.join(self.splits)}.{nearest(name, self.splits)} {self.note}".strip()
            raise FaapError(f"data set {self.root} has no split {name!r}; {has}")
        return known

    @cached_property
    def _repeats(self) -> dict[Record, Problem]:
        """Say of each image that is listed again after its first place, where else it is."""
        seen: dict[object, tuple[str, Record]] = {}
        repeats: dict[Record, Problem] = {}
        for name in self.splits:
            for record in self.unchecked(name).records:
                first = seen.setdefault(file_identity(record.path), (name, record))
                if first[1] is not record:  # it is where the whole of a divided file comes after its parts
                    kind, where = clash(first, (name, record))
                    reason = f"is in {where}, as image {first[1].image_id} and image {record.image_id}"
                    repeats.setdefault(record, place(record.path)(kind, f"{reason}; it should be in one"))
        return repeats

    def _without(self, group: str, split: Split) -> str:
        """Say that a group has nothing in a split; of other groups only the likely spelling is proposed."""
        counts = split.counts()
        known = ", ".join(f"{key} ({count} images)" for key, count in counts.items()) or "nothing"
        # male is no slip of female, nor 1 of 10
        alike = {key for key in counts if key[:1].casefold() == group[:1].casefold() and (key + group).isalpha()}
        slips = alike - {self.anchor, self.reference}
        reason = f"the split {split.name!r} has no object of group {group!r} to find; it has {known}"
        advice = f"--anchor_group and --reference_group choose.{nearest(group, slips)}"
        found = self.read(split.name)
        return "\n".join([f"data set {self.root}: {reason}. {advice}", *map(str, found.problems[:1]), *found.notes])


def clash(first: tuple[str, Record], second: tuple[str, Record]) -> tuple[str, str]:
    """Say, as the kind of a problem and in words, how one image is in two places, of a split and a record each."""
    if first[0] != second[0]:
        return "two_splits", f"the splits {first[0]} and {second[0]}"
    if first[1].groups != second[1].groups:
        return "two_groups", f"the groups {', '.join(first[1].groups)} and {', '.join(second[1].groups)}"
    return "duplicate_image", f"split {first[0]} twice"


def file_identity(path: Path) -> object:
    """Tell files apart, however they are linked."""
    with suppress(OSError):  # gone since it was found
        found = os.stat(path)
        return (found.st_dev, found.st_ino) if found.st_ino else path
    return path


def _undecodable(path: Path) -> Problem | None:
    problems: list[Problem] = []
    with noting(problems):
        read_image(path)
    return problems[0] if problems else None


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
    scenes: int = 0,
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
            Several, joined by +, make groups of people who are in the same of all, such as "female dark".
            In FACET the attribute, by default gender_presentation.
        group_csv: table from image ids or file names to groups, relative to `root`.
        skip_bad: leave broken records out instead of refusing them.
        scenes: training scenes of each group of "promenade"; 0: 12,000.

    Returns:
        The data set; annotations are read when a split is asked for.

    Raises:
        FaapError: there is no data set of a known layout.
    """
    if root == "promenade":
        from faap.promenade import build_promenade

        root = build_promenade(scenes={"train": scenes} if scenes else None)
    elif scenes:
        raise FaapError(f"scenes is {scenes}; it is a size of promenade, and the data set {root} has its own.")
    home = Path(root)
    if not home.exists():
        raise FaapError(f"data set {home}: no such folder or file; give {LAYOUTS}")
    folder = home if home.is_dir() else home.parent
    if home.is_file() and annotations:
        raise FaapError(f"data set {home} is a file, and annotations names another ({annotations}); give the folder")
    coco = bool(annotations or group_csv)
    note, field, attribute = "", group_field or "gender", group_field or FACET_ATTRIBUTE
    sources: Sources
    split_folders = not coco and any((home / f"{word}_split").is_dir() for word in FOLDER_WORDS.values())
    table = None if split_folders or coco else _facet_file(home)
    default = ("fem", "masc") if table and attribute == FACET_ATTRIBUTE else ("female", "male")
    groups = (anchor or default[0], reference or default[1])
    if table:
        layout, note = "FACET", FACET_LICENCE
        sources = {"test": partial(_attempt, read_facet, table, _home(folder) / images_dir, attribute)}
    elif split_folders:
        places: dict[str, tuple[str, str]] = {}
        for group, word in FOLDER_WORDS.items():
            places[group] = f"{word}_split/gender_{word}_{{split}}.json", images_dir or f"{word}_split/{{split}}"
        layout, sources = "split folders", _coco_sources(folder, places)
        note = f"The folders say the group, and not the field {field!r}." if field != "gender" else ""
    elif home.is_file() and home.suffix.lower() == ".csv":
        raise FaapError(f"data set {home}: is not FACET's annotations.csv, and a CSV alone has no images; {LAYOUTS}")
    else:
        pattern = home.name if home.is_file() else annotations or _pattern(folder)
        rows = cache(partial(read_table, folder / group_csv, field)) if group_csv else None
        sources = _coco_sources(folder, {"": (pattern, images_dir)}, group_field=field, table=rows, groups=groups)
        layout = "COCO JSON, divided" if WHOLE in sources else "COCO JSON"
        sources = _divided(folder / pattern, sources[WHOLE]) if WHOLE in sources else sources
    return Dataset(home, layout, sources, groups=groups, note=note, skip_bad=skip_bad)


def _attempt(read: Callable[..., Reading], *place: Any, **options: Any) -> Reading:
    """Read a file of annotations; one that cannot be used at all holds nothing but that problem."""
    failed = Reading()
    with noting(failed.problems):
        return read(*place, **options)
    return failed


def _coco_sources(root: Path, places: Mapping[str, tuple[str, str]], **options: Any) -> Sources:
    """Return what reads the COCO JSON files that are there.

    Args:
        root: the data set's folder.
        places: group of all images of a file, or empty -> patterns of the files and of the folders of images; without
            `{split}`, one file is for all.
        options: where the group is; see `Reader`.
    """
    files = {group: _files(root, pattern) for group, (pattern, _) in places.items()}

    def read(split: str) -> Reading:
        result = Reading()
        for group, (pattern, images) in places.items():
            path = files[group].get(split, root / pattern.replace("{split}", split))
            folders, where = _image_folders(root, path, split, images)
            found = _attempt(read_coco, path, folders, group=group, **where, **options)
            result.left_out += found.left_out
            result.records += found.records
            result.problems += found.problems
            result.notes += found.notes
            ids = {folded(name): key for key, name in result.categories.items()}
            for key, label in found.categories.items():
                other = ids.get(folded(label), key)
                name = result.categories.get(other, label)
                if (other, folded(name)) != (key, folded(label)):
                    reason = f"category {key} is {label!r}, but {other} is {name!r} in the other group's file"
                    result.problems.append(place(path)("unknown_category", reason))
                    break
            result.categories = found.categories | result.categories
        if len({record.image_id for record in result.records}) < len(result.records):
            result.renumbered = True
            result.records = [replace(record, image_id=n) for n, record in enumerate(result.records, start=1)]
        return result

    present = [split for split in (*NAMES, WHOLE) if any(split in found for found in files.values())]
    if not present:
        names = " and ".join(str(root / pattern) for pattern, _ in places.values())
        advice = "--annotations names the COCO JSON, or " if "" in places else ""
        raise FaapError(f"data set {root}: there is no {names}; {advice}give {LAYOUTS}")
    return {split: partial(read, split) for split in present}


def _home(folder: Path) -> Path:
    """Return where a data set begins whose annotations may lie in a folder of that name, perhaps the current one."""
    return Path(os.path.normpath(folder / os.pardir)) if folder.absolute().name == "annotations" else folder


def _facet_file(home: Path) -> Path | None:
    candidates = [home] if home.is_file() else [home / "annotations" / "annotations.csv", home / "annotations.csv"]
    return next((path for path in candidates if path.suffix == ".csv" and path.is_file() and is_facet(path)), None)


def _files(root: Path, pattern: str) -> dict[str, Path]:
    """Return the files of a pattern that are there, by split, each by the first of its names."""
    names = NAMES if "{split}" in pattern else {WHOLE: (WHOLE,)}
    paths = ((split, root / pattern.replace("{split}", name)) for split in names for name in reversed(names[split]))
    return {split: path for split, path in paths if path.is_file()}


def _pattern(root: Path) -> str:
    """Return where a folder's COCO JSON files are, one a split or one for all."""
    if told := next((each for each in PATTERNS if _files(root, each)), ""):
        return told
    # not what macOS leaves beside files
    found = next(filter(None, (sorted(root.glob(each)) for each in ("[!.]*.json", "annotations/[!.]*.json"))), [])
    if len(found) == 1:
        return str(found[0].relative_to(root))
    names = ", ".join(path.name for path in found[:5])
    known = (
        f"it has {names}; --annotations names the one, or with {{split}} one a split" if found else f"give {LAYOUTS}"
    )
    raise FaapError(f"data set {root}: no layout that faap knows; {known}")


def _image_folders(root: Path, annotations: Path, split: str, told: str) -> tuple[list[Path], dict[str, Any]]:
    """Return where the images of a COCO JSON may be, the likeliest first; and the folders that they must not leave.

    Of one file for all, the images of each split may lie in folders of their own: `parts`, split -> folders.
    """

    home = _home(root)
    own = annotations.stem.removeprefix("instances_")  # COCO's val2017 lies beside annotations/instances_val2017.json
    places = [root / told] if told else [home / "{split}", home / "images" / "{split}"]

    def folders(*names: str) -> list[Path]:
        return [Path(str(place).replace("{split}", name)) for place in places for name in names]

    apart = {part: [*filter(Path.is_dir, folders(*names))] for part, names in NAMES.items()}
    parts = apart if split == WHOLE else None
    if told:
        return folders(*NAMES.get(split, (split,))), {"parts": parts}
    other = [home / "images", home / "data", home, root, annotations.parent]
    return [*folders(own, *NAMES.get(split, ())), *other], {"roots": [home, root], "parts": parts}


def _divided(path: Path, read: Callable[[], Reading]) -> Sources:
    """Divide a data set in one file: as its images say, or else drawn by a hash of their names."""

    @cache
    def whole() -> Reading:
        reading = read()
        said = [replace(each, split=SPLIT_NAMES.get(each.split.casefold(), each.split)) for each in reading.records]
        return replace(reading, records=said)

    @cache
    def known() -> Reading:
        reading = whole()
        if not any(record.split for record in reading.records):
            return reading
        # where some images say their split, all have to
        kept, lost = ([each for each in reading.records if (each.split in NAMES) is right] for right in (True, False))
        said = {f"image {each.image_id}": f"train, val or test, found {each.split!r:.80}" for each in lost}
        wrong = [place(path, image)("bad_field", f"split should be {reason}") for image, reason in said.items()]
        return replace(reading, records=kept, problems=[*reading.problems, *wrong])

    def part(name: str) -> Reading:
        reading = known()
        chosen = [record for record in reading.records if (record.split or _drawn(record)) == name]
        drawn = [f"{path}: {DRAWN}"] if any(not record.split for record in reading.records) else []
        return replace(reading, records=chosen, notes=[*reading.notes, *drawn], left_out=0)

    return {**{name: partial(part, name) for name in NAMES}, WHOLE: whole}


def _drawn(record: Record) -> str:
    """Draw a split from an image's name, or from that of its scene, so that twins stay together."""
    key = plain(record.path.name) if record.pair is None else record.pair
    share = int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8]) / 2**64
    return "test" if share < TEST_SHARE else "val" if share < TEST_SHARE + VAL_SHARE else "train"
