"""Reading the fields of JSON entries: a group, a number, an id."""

import math
from collections.abc import Iterable
from typing import Any

from faap.data.problems import MakeProblem

# How tables and annotations say that they do not know, whatever the case.
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>", "#n/a", "#na", "-nan"}
_ABSENT = object()


def lookup(entry: dict[str, Any], field: str) -> Any:
    """Return a field of an entry, or of an object in it; `_ABSENT` where there is none."""
    if field in entry:
        return entry[field]
    first, _, rest = field.partition(".")
    if rest and isinstance(inner := entry.get(first), dict):
        return lookup(inner, rest)
    return next((each[field] for each in entry.values() if isinstance(each, dict) and field in each), _ABSENT)


def mentioned(field: str, entries: Iterable[Any]) -> bool:
    return any(isinstance(entry, dict) and lookup(entry, field) is not _ABSENT for entry in entries)


def word(entry: dict[str, Any], field: str, at: MakeProblem) -> str:
    """Read a group or a split: a word or a whole number; empty where there is none."""
    value = lookup(entry, field)
    if value is _ABSENT or value is None or str(value).strip().casefold() in MISSING:
        return ""
    if not isinstance(value, str) and finite(value) != round(finite(value) or 0):
        raise at("bad_field", f"{field} should be a word, found {value!r:.80}")
    return value.strip() if isinstance(value, str) else str(int(value))


def integer(entry: dict[str, Any], key: str, at: MakeProblem) -> int:
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        bits = ", which has more than 64 bits" if type(value) is int else ""
        state = f"should be a whole number, found {value!r:.80}{bits}" if key in entry else "is missing"
        raise at("bad_field", f"'{key}' {state}")
    return value


def finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
