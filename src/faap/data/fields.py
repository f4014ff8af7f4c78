"""Reading the fields of annotations: each is held against one table of what it may be."""

import posixpath
import reprlib
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from faap.conform import fits
from faap.data.problems import MakeProblem

# What others call the splits.
_CALLED = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
NAMES = {split: (*names, *map(str.title, names)) for split, names in _CALLED.items()}
SPLIT_NAMES = {name: split for split, names in NAMES.items() for name in names}
# How tables and annotations say that they do not know, whatever the case.
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>", "#n/a", "#na", "-nan"}
_ABSENT = object()


def folded(name: str) -> str:
    """Return a category's name without what two writers of it may do differently: case, blanks, Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def plain(name: str) -> str:
    """Return a word or a file's name without what two writers of it may do differently: case, Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def called(group: str) -> str:
    """Call a group that is a number so, as words need it: "6 people are found worse" would count them."""
    return f"group {group}" if group.isdecimal() else group


def file_key(name: str) -> str:
    """Return a file's name as tables and annotations may both write it: slashes, no `./`, one Unicode form."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def whole(value: object, least: int = -(2**63)) -> int | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return value if type(value) is int and least <= value < 2**63 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _word(value: Any) -> str | None:
    """Read a group, a split or a scene; empty where there is none."""
    if isinstance(value, str | None):
        said = (value or "").strip()
        return "" if said.casefold() in MISSING else said
    if isinstance(value, bool):
        return str(value).lower()
    if value != value:  # NaN
        return ""
    return str(int(value)) if fits(value, float) and value == int(value) else None


def _area(value: Any) -> float | None:
    return float(value or 0) if value is None or (fits(value, float) and value >= 0) else None


def _box(value: object) -> list[float] | None:
    return value if isinstance(value, list) and len(value) == 4 and all(fits(each, float) for each in value) else None


_Kind = tuple[Callable[[Any], Any], str]
WORD = (_word, "a word or a whole number")
# What annotations may say of how well something can be seen: yes or no, or a number.
CONDITIONS = ("occluded", "occlusion", "truncated", "truncation", "visibility")
# What reads a field, None where it is none such, and the words for what it should be.
_FIELDS: dict[str, _Kind] = {
    **dict.fromkeys(("id", "image_id", "category_id"), (whole, "a whole number of at most 64 bits")),
    **dict.fromkeys(("width", "height"), (partial(whole, least=1), "a whole number of at least 1")),
    "name": (_text, "a word"),
    "file_name": (_text, "the name of an image's file"),
    "bbox": (_box, "four finite numbers [x, y, width, height]"),
    "area": (_area, "a number of at least 0"),
    "iscrowd": (lambda value: bool(value) if value in (0, 1, None) else None, "0 or 1"),
    "scene": WORD,
}


def take(entry: dict[str, Any], name: str, at: MakeProblem, kind: _Kind | None = None) -> Any:
    """Return a field of an entry, or raise a problem; one with a kind of its own may lie in an object of the entry."""
    value = lookup(entry, name) if kind else entry.get(name, _ABSENT)
    read, words = kind or _FIELDS[name]
    found = read(None if value is _ABSENT else value)
    if found is None:
        state = "but is missing" if value is _ABSENT else f"found {reprlib.repr(value)}"
        raise at("bad_box" if name == "bbox" else "bad_field", f"{name} should be {words}, {state}")
    return found


def lookup(entry: dict[str, Any], field: str) -> Any:
    """Return a field of an entry, or of an object in it; `_ABSENT` where there is none.

    Of a + b it is both words, with a blank between them, and nothing where one of them says nothing.
    """
    if field in entry:
        return entry[field]
    if "+" in field:
        found = [lookup(entry, part.strip()) for part in field.split("+")]
        return _ABSENT if _ABSENT in found else joined(found)
    first, _, rest = field.partition(".")
    if rest and isinstance(inner := entry.get(first), dict):
        return lookup(inner, rest)
    return next((each[field] for each in entry.values() if isinstance(each, dict) and field in each), _ABSENT)


def joined(values: Sequence[Any]) -> str:
    """Return groups as one, that of the people who are in all of them; empty where one says nothing."""
    words = [_word(value) or "" for value in values]
    return " ".join(words) if all(words) else ""


def conditions(entry: dict[str, Any]) -> dict[str, float]:
    """Return what an annotation says of how well its object can be seen."""
    found = {name: lookup(entry, name) for name in CONDITIONS}
    return {name: float(value) for name, value in found.items() if isinstance(value, bool) or fits(value, float)}


def says(entry: Any, field: str) -> bool:
    """Say whether a field of an entry is there and not empty; editors write out what nobody has filled in."""
    return isinstance(entry, dict) and (value := lookup(entry, field)) is not _ABSENT and _word(value) != ""
