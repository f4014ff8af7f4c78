"""Holding what was read from a file against one description of it, so that nothing after it meets a wrong type."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from faap.errors import FaapError
from faap.settings import shown

Shape = Any
OPTIONAL = "?"


@dataclass(frozen=True)
class Between:
    """A description of numbers from `low` to `high`: of any finite ones, or of multiples of a whole `step`."""

    low: float
    high: float
    step: int | None = None


def conform(value: Any, shape: Shape, place: str) -> None:
    """Raise unless a value is what a description says.

    Args:
        value: what was read: JSON, YAML, or what a checkpoint holds.
        shape: a type, or a tuple of types of which one is enough (`None` for null; a whole number is a float too, a
            truth value is no number, and floats are finite) or a `Between`; `[shape]`, a list of such, or of as many as
            there are shapes in it; `{str: shape}`, a mapping from such keys to such values; `{"name": shape, "other?":
            shape}`, a mapping that has the first and may have the second and any more; `(shape, None)`, such a list or
            mapping, or null.
        place: the file, and what of it, for the message.

    Raises:
        FaapError: naming the place, what was found and what would have been right.
    """
    if isinstance(shape, tuple) and isinstance(shape[0], list | dict):
        shape = None if value is None else shape[0]
    if isinstance(shape, list):
        right = isinstance(value, list | tuple) and len(shape) in (1, len(value))
        _require(right, value, "a list" if len(shape) == 1 else f"a list of {len(shape)}", place)
        for number, each in enumerate(value):
            conform(each, shape[number % len(shape)], f"{place}[{number}]")
    elif isinstance(shape, dict):
        _require(isinstance(value, Mapping), value, "a mapping of names to values", place)
        [(first, inner), *_] = shape.items()
        if isinstance(first, type):
            for key, each in value.items():
                _require(isinstance(key, first), key, f"{_name(first)} as a key", place)
                conform(each, inner, f"{place}: {key}")
            return
        for name, inner in shape.items():
            key = name.removesuffix(OPTIONAL)
            if key in value:
                conform(value[key], inner, f"{place}: {key}")
            elif key == name:
                raise FaapError(f"{place}: has no entry {key!r}.")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        _require(any(fits(value, kind) for kind in kinds), value, " or ".join(map(_name, kinds)), place)


def fits(value: Any, kind: Any) -> bool:
    """Say whether a value is of one type, null or in a range, as `conform` takes them."""
    if isinstance(kind, Between):
        right = fits(value, float if kind.step is None else int) and kind.low <= value <= kind.high
        return right and (kind.step is None or value % kind.step == 0)
    if kind is None or isinstance(value, bool):
        return value is None if kind is None else kind in (bool, object)
    if kind is float:  # a number of too many digits is none
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _name(kind: Any) -> str:
    if isinstance(kind, Between):
        number = _name(float if kind.step is None else int) if kind.step in (None, 1) else f"a multiple of {kind.step}"
        return f"{number} from {kind.low} to {kind.high}"
    words = {None: "null", str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
    return words.get(kind, f"a {kind.__name__}" if isinstance(kind, type) else str(kind))


def _require(right: bool, value: Any, wanted: str, place: str) -> None:
    if not right:
        raise FaapError(f"{place}: is {shown(value)}; it should be {wanted}.")
