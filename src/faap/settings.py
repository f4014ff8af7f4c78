"""Settings: fields that say what they are and which values they can have. Nothing here needs torch."""

import math
import os
import re
import reprlib
from dataclasses import Field, field
from operator import ge, gt, le, lt
from typing import Any

from faap.errors import FaapError, nearest

# what a recipe's fields are about, in the order in which they are written and shown
SECTIONS = ("run", "data", "groups", "generator", "training", "schedule", "objective")
Numbers = tuple[int, ...]
# the types that a field can have, by the names they have where annotations are text
KINDS: dict[Any, Any] = {"str": str, "bool": bool, "int": int, "float": float, "tuple[int, ...]": Numbers}
_TEXT = "text in valid Unicode, without control characters"
_WORDS = {str: _TEXT, bool: "true or false", int: "a whole number", float: "a number"}
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}
BOUNDS = {"low": ("at least", ge), "high": ("at most", le), "above": ("above", gt), "below": ("below", lt)}
# a whole number's upper bound where its field has none: more is a slip, and would be memory or time without end
LARGEST = 1_000_000
# of what a person reads: control characters, which move a terminal's cursor, and halves of characters
_UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FLAT = reprlib.Repr()
_FLAT.maxlevel = 2


def visible(text: str) -> str:
    """Return a text in which what would move a terminal's cursor, or could not be written, is spelt out."""
    return _UNREADABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def setting(
    default: Any, help: str, *, section: str = "objective", choices: tuple[str, ...] = (), **bounds: float
) -> Any:
    """Declare a field: what it is, and which values it can have.

    Args:
        default: its value where nothing is said.
        help: what it is, in a line.
        section: one of `SECTIONS`.
        choices: the texts that it can be; all if there are none.
        bounds: of a number: low and high, which belong to what is allowed, above and below, which do not.
    """
    return field(default=default, metadata={"help": help, "section": section, "choices": choices, "bounds": bounds})


def kind_of(setting: "Field[Any]") -> Any:
    """Return the type of a field's values; None if it is none that a field can have."""
    kind = KINDS.get(setting.type, setting.type)
    return kind if kind in KINDS.values() else None


def checked(setting: "Field[Any]", value: Any) -> Any:
    """Return the value in the field's type, or say what is wrong with it."""
    kind = kind_of(setting)
    if kind != Numbers:
        return _checked(setting, kind, value)
    words = value.split(",") if isinstance(value, str) and value else value or ()
    if not isinstance(words, list | tuple):
        raise _refusal(setting, value, "whole numbers with commas between them, as in 480,640,800")
    return tuple(_checked(setting, int, word) for word in words)


def _checked(setting: "Field[Any]", kind: type, value: Any) -> Any:
    found, choices, bounds = _read(kind, value), setting.metadata["choices"], setting.metadata["bounds"]
    if found is None:
        raise _refusal(setting, value, _WORDS[kind])
    if choices and found not in choices:
        raise _refusal(setting, found, f"one of {', '.join(choices)}", nearest(found, choices))
    if kind is int and not bounds.keys() & {"high", "below"}:
        bounds = {**bounds, "high": LARGEST}
    if not all(BOUNDS[name][1](found, bound) for name, bound in bounds.items()):
        raise _refusal(setting, value, " and ".join(f"{BOUNDS[name][0]} {bound}" for name, bound in bounds.items()))
    return found


def _read(kind: type, value: Any) -> Any:
    """Return a value, or what a text says, in a type: a number is finite; None if it does not say one."""
    if kind is str:
        text = os.fsdecode(value) if isinstance(value, str | os.PathLike) else "\0"
        return None if _UNREADABLE.search(text) else text
    if kind is bool:
        return _TRUTHS.get(str(value).lower()) if isinstance(value, str | bool) else None
    try:
        number = kind(value)
        exact = isinstance(value, str) or number == value
        return number if math.isfinite(number) and exact and not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _refusal(setting: "Field[Any]", value: Any, right: str, hint: str = "") -> FaapError:
    return FaapError(f"{setting.name} is {shown(value)}; it must be {right}.{hint}")


def shown(value: Any, most: int = 80) -> str:
    """Return a value as an error names it: in a line of so many characters, however large or nested it is."""
    try:
        words = repr(value) if isinstance(value, str) else _FLAT.repr(value)
    except ValueError:  # Python does not write out a number of thousands of digits
        words = "a number too long to be shown"
    return words if len(words) <= most else f"{words[: most - 3]}…"
