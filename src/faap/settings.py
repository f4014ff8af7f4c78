"""Settings: fields that say what they are and which values they can have. Nothing here needs torch."""

import math
import os
import re
import reprlib
from dataclasses import Field, field
from typing import Any

from faap.errors import FaapError, nearest

# what a recipe's fields are about, in the order in which they are written and shown
SECTIONS = ("run", "data", "groups", "generator", "training", "schedule", "objective")
Numbers = tuple[int, ...]
# the types that a field can have, by the names they have where annotations are text
KINDS: dict[Any, Any] = {"str": str, "bool": bool, "int": int, "float": float, "tuple[int, ...]": Numbers}
# a whole number's upper bound where its field has none: more is a slip, and would be memory or time without end
LARGEST = 1_000_000
# of what a person reads: control characters, which move a terminal's cursor, and halves of characters
_UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FLAT = reprlib.Repr()
_FLAT.maxlevel = 2


def setting(
    default: Any,
    help: str,
    *,
    section: str = "objective",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a field: what it is, and the values it can have (low and high belong to them, above and below do not)."""
    bounds = {"low": low, "high": high, "above": above, "below": below}
    return field(default=default, metadata={"help": help, "bounds": bounds, "choices": choices, "section": section})


def kind_of(setting: "Field[Any]") -> Any:
    """Return the type of a field's values; None if it is none that a field can have."""
    kind = KINDS.get(setting.type, setting.type)
    return kind if kind in KINDS.values() else None


def checked(setting: "Field[Any]", value: Any) -> Any:
    """Return the value in the field's type, or say what is wrong with it."""
    kind, choices = kind_of(setting), setting.metadata["choices"]
    if kind is str:
        if not isinstance(value, str | os.PathLike):
            raise _refusal(setting, value, "text")
        text = os.fsdecode(value)
        if _UNREADABLE.search(text):
            raise _refusal(setting, text, "text in valid Unicode, without control characters")
        if choices and text not in choices:
            raise FaapError(f"{_refusal(setting, text, 'one of ' + ', '.join(choices))}{nearest(text, choices)}")
        return text
    if kind is bool:
        known = {"true": True, "yes": True, "false": False, "no": False}
        if not isinstance(value, str | bool) or str(value).lower() not in known:
            raise _refusal(setting, value, "true or false")
        return known[str(value).lower()]
    if kind == Numbers:
        words = value.split(",") if isinstance(value, str) and value else value or ()
        if not isinstance(words, list | tuple):
            raise _refusal(setting, value, "whole numbers with commas between them, as in 480,640,800")
        return tuple(_checked_number(setting, int, word) for word in words)
    return _checked_number(setting, kind, value)


def _checked_number(setting: "Field[Any]", kind: type[int] | type[float], value: Any) -> float:
    number = _number(kind, value)
    if number is None:
        raise _refusal(setting, value, f"a {'whole ' if kind is int else ''}number")
    bounds = setting.metadata["bounds"]
    if kind is int and bounds["high"] is bounds["below"] is None:
        bounds = bounds | {"high": LARGEST}
    kept = {
        "at least": bounds["low"] is None or number >= bounds["low"],
        "at most": bounds["high"] is None or number <= bounds["high"],
        "above": bounds["above"] is None or number > bounds["above"],
        "below": bounds["below"] is None or number < bounds["below"],
    }
    if not all(kept.values()):
        allowed = zip(kept, bounds.values(), strict=True)
        words = " and ".join(f"{word} {bound}" for word, bound in allowed if bound is not None)
        raise _refusal(setting, value, words)
    return number


def _refusal(setting: "Field[Any]", value: Any, right: str) -> FaapError:
    return FaapError(f"{setting.name} is {shown(value)}; it must be {right}.")


def shown(value: Any) -> str:
    """Return a value as an error names it: in a line of at most 80 characters, however large or nested it is."""
    try:
        words = repr(value) if isinstance(value, str) else _FLAT.repr(value)
    except ValueError:  # Python does not write out a number of thousands of digits
        words = "a number too long to be shown"
    return words if len(words) <= 80 else f"{words[:77]}…"


def _number(kind: type[int] | type[float], value: Any) -> float | None:
    """Return the value, or what a text says, as a finite number of the kind; None if it is not one."""
    try:
        number = kind(value)
        exact = isinstance(value, str) or number == value
        return number if math.isfinite(number) and exact and not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None
