"""Holding what was read from a file against one description of it, so that nothing after it meets a wrong type."""

import math
from collections.abc import Mapping
from typing import Any

from faap.errors import FaapError

Shape = Any
OPTIONAL = "?"


def conform(value: Any, shape: Shape, place: str) -> None:
    """Raise unless a value is what a description says.

    Args:
        value: what was read: JSON, YAML, or what a checkpoint holds.
        shape: a type, or a tuple of types of which one is enough (`None` for null; a whole number is a float too, a
            truth value is no number, and floats are finite); `[shape]`, a list of such; `{str: shape}`, a mapping from
            such keys to such values; `{"name": shape, "other?": shape}`, a mapping that has the first and may have the
            second and any more.
        place: the file, and what of it, for the message.

    Raises:
        FaapError: naming the place, what was found and what would have been right.
    """
    if isinstance(shape, list):
        _require(isinstance(value, list | tuple), value, "a list", place)
        for number, each in enumerate(value):
            conform(each, shape[0], f"{place}[{number}]")
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
        _require(any(_is(value, kind) for kind in kinds), value, " or ".join(map(_name, kinds)), place)


def _is(value: Any, kind: Any) -> bool:
    if kind is None or kind is bool:
        return value is None if kind is None else isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not isinstance(value, bool)


def _name(kind: Any) -> str:
    words = {None: "null", str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
    return words.get(kind, f"a {kind.__name__}" if isinstance(kind, type) else str(kind))


def _require(right: bool, value: Any, wanted: str, place: str) -> None:
    if not right:
        try:
            found = repr(value)
        except Exception:  # nested too deep, or a number of too many digits
            found = f"a {type(value).__name__}"
        raise FaapError(f"{place}: is {found if len(found) <= 80 else found[:77] + '…'}; it should be {wanted}.")
