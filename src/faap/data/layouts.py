"""Finding a data set's splits on disk."""

from dataclasses import replace
from pathlib import Path

from faap.data.coco import read_coco
from faap.data.records import Record, Split
from faap.errors import FaapError, nearest

# The split-folder layout names its folders and files by these words.
FOLDER_WORDS = {"female": "women", "male": "men"}
SPLITS = ("train", "val", "test")


class Dataset:
    """A data set in the split-folder layout.

    `women_split/{train,val,test}/*.jpg` with `women_split/gender_women_{split}.json`, and the same for `men`.

    Args:
        root: the folder that holds `women_split` and `men_split`.
        anchor: the disadvantaged group, "female" or "male".
        reference: the other one.

    Attributes:
        root: as given.
        anchor: as given.
        reference: as given.
        splits: the names of the splits that are there.

    Raises:
        FaapError: a folder or every annotation file is missing, or the groups are not those of this layout.
    """

    def __init__(self, root: Path, *, anchor: str = "female", reference: str = "male") -> None:
        for group in (anchor, reference):
            if group not in FOLDER_WORDS:
                raise FaapError(
                    f"group {group!r} is not in the data set {root}, whose groups are female and male."
                    + nearest(group, FOLDER_WORDS)
                )
        if anchor == reference:
            raise FaapError(f"anchor and reference group are both {anchor!r}; they must differ")
        if not root.is_dir():
            raise FaapError(f"data set {root}: no such folder; give 'promenade' or a folder with {_layout()}")
        for word in FOLDER_WORDS.values():
            if not (root / f"{word}_split").is_dir():
                raise FaapError(f"data set {root}: the folder {word}_split is missing; it should hold {_layout()}")
        self.root = root
        self.anchor = anchor
        self.reference = reference
        self.splits = tuple(
            name for name in SPLITS if any(self._annotations(word, name).is_file() for word in FOLDER_WORDS.values())
        )
        if not self.splits:
            raise FaapError(f"data set {root}: no annotation file found; it should hold {_layout()}")
        self._read: dict[str, Split] = {}

    def split(self, name: str) -> Split:
        """Read a split, once.

        Image ids stay those of the files unless one is used by both groups: then they count from 1.

        Args:
            name: one of `splits`.

        Returns:
            The images of both groups, women first.

        Raises:
            FaapError: there is no such split, or its annotations are broken.
        """
        if name not in self.splits:
            raise FaapError(
                f"data set {self.root} has no split {name!r}; it has {', '.join(self.splits)}."
                + nearest(name, self.splits)
            )
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def _load(self, name: str) -> Split:
        records: list[Record] = []
        categories: dict[int, str] = {}
        for group, word in FOLDER_WORDS.items():
            path = self._annotations(word, name)
            found, named = read_coco(path, self.root / f"{word}_split" / name, group)
            for key, label in named.items():
                if categories.setdefault(key, label) != label:
                    raise FaapError(
                        f"{path}: category {key} is {label!r}, but {categories[key]!r} in the other group's file"
                    )
            if not any(len(record.boxes) for record in found):
                raise FaapError(f"{path}: has no annotation at all, so nothing can be learnt or measured of {group}")
            records += found
        if len({record.image_id for record in records}) < len(records):
            records = [replace(record, image_id=number) for number, record in enumerate(records, start=1)]
        return Split(name, tuple(records), categories, self.anchor, self.reference)

    def _annotations(self, word: str, split: str) -> Path:
        return self.root / f"{word}_split" / f"gender_{word}_{split}.json"


def load_dataset(root: str | Path, *, anchor: str = "female", reference: str = "male") -> Dataset:
    """Open a data set.

    Args:
        root: "promenade" for the embedded benchmark, which is built at first use; or a folder in the split-folder
            layout.
        anchor: the disadvantaged group.
        reference: the group it is measured against.

    Returns:
        The data set; annotations are read when a split is asked for.

    Raises:
        FaapError: the folder is not a data set.
    """
    if root == "promenade":
        from faap.promenade import build_promenade

        root = build_promenade()
    return Dataset(Path(root), anchor=anchor, reference=reference)


def _layout() -> str:
    files = ", ".join(f"{word}_split/gender_{word}_{{train,val,test}}.json" for word in FOLDER_WORDS.values())
    return f"{files} and the images in {{women,men}}_split/{{train,val,test}}/"
