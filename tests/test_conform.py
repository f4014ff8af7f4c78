"""What a file holds against its description."""

import math

import pytest

from faap.conform import conform
from faap.errors import FaapError

SHAPE = {"epoch": int, "rate?": float, "name": (str, None), "sizes": [int], "states": {str: {int: bool}}}
RIGHT = {"epoch": 3, "rate": 1, "name": None, "sizes": (1, 2), "states": {"a": {0: True}}, "other": object()}


def test_what_is_right_passes():
    conform(RIGHT, SHAPE, "file")
    conform({key: value for key, value in RIGHT.items() if key != "rate"}, SHAPE, "file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epoch": True}, "file: epoch: is True; it should be a whole number"),
        ({"epoch": 1.0}, "file: epoch: is 1.0; it should be a whole number"),
        ({"rate": math.nan}, "file: rate: is nan; it should be a finite number"),
        ({"rate": False}, "file: rate: is False"),
        ({"name": 3}, "file: name: is 3; it should be text or null"),
        ({"sizes": "12"}, "file: sizes: is '12'; it should be a list"),
        ({"sizes": [1, None]}, r"file: sizes\[1\]: is None"),
        ({"states": {1: {}}}, "file: states: is 1; it should be text as a key"),
        ({"states": {"a": {0: 1}}}, "file: states: a: 0: is 1; it should be true or false"),
        ({"states": []}, "it should be a mapping"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    with pytest.raises(FaapError, match=said):
        conform(RIGHT | change, SHAPE, "file")


def test_what_is_missing_is_named():
    with pytest.raises(FaapError, match="file: has no entry 'epoch'"):
        conform({key: value for key, value in RIGHT.items() if key != "epoch"}, SHAPE, "file")


def test_what_is_long_is_cut():
    with pytest.raises(FaapError) as caught:
        conform("x" * 10_000, int, "file")
    assert len(str(caught.value)) < 200


def test_what_cannot_be_shown_is_named_by_its_type():
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    for value, kind in ((nested, "list"), (10**5000, "int")):
        with pytest.raises(FaapError, match=rf"is a {kind}; it should be text"):
            conform(value, str, "file")
