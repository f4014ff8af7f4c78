"""What a file holds against its description."""

import math

import pytest

from faap.conform import Between, conform
from faap.errors import FaapError

SHAPE = {"epoch": int, "rate?": float, "name": (str, None), "sizes": [int], "states": {str: {int: bool}}}
SHAPE["bounds"] = SHAPE["bound"] = ([float, float], None)
RIGHT = {"epoch": 3, "rate": 1, "name": None, "sizes": (1, 2), "states": {"a": {0: True}}, "other": object()}
RIGHT |= {"bounds": [1, 2.5], "bound": None}


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
        ({"bounds": 1.5}, "file: bounds: is 1.5; it should be a list of 2"),
        ({"bounds": [1.5]}, "file: bounds: is .* list of 2"),
        ({"bounds": [1.5, None]}, r"file: bounds\[1\]: is None; it should be a finite number"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    with pytest.raises(FaapError, match=said):
        conform(RIGHT | change, SHAPE, "file")


def test_what_is_missing_is_named():
    with pytest.raises(FaapError, match="file: has no entry 'epoch'"):
        conform({key: value for key, value in RIGHT.items() if key != "epoch"}, SHAPE, "file")


@pytest.mark.parametrize(
    ("shape", "right", "wrong", "said"),
    [
        (Between(0, 4.5), [0, 0.3, 4.5], [-0.1, 5, math.nan, True, "1", 10**400], "a finite number from 0 to 4.5"),
        (Between(1, 5, 1), [1, 5], [0, 6, 2.0, True, None], "a whole number from 1 to 5"),
        (Between(8, 64, 8), [8, 64], [0, 12, 72], "a multiple of 8 from 8 to 64"),
        (float, [1e300, 10**300], [10**400, -(10**400), math.inf], "a finite number"),
        ([int, str], [[1, "a"], (2, "b")], [[1], [1, "a", 2], "1a"], "a list of 2"),
        (object, [True, 1, None], [], ""),
    ],
)
def test_bounds_and_lengths_hold(shape, right, wrong, said):
    for value in right:
        conform(value, shape, "file")
    for value in wrong:
        with pytest.raises(FaapError, match=rf"file: is .*; it should be {said}\."):
            conform(value, shape, "file")


def test_what_is_long_is_cut():
    with pytest.raises(FaapError) as caught:
        conform("x" * 10_000, int, "file")
    assert len(str(caught.value)) < 200


def test_what_is_too_deep_or_too_long_is_shown_in_part():
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    for value, said in ((nested, r"\[\[\[\.\.\.\]\]\]"), (10**5000, "a number too long to be shown")):
        with pytest.raises(FaapError, match=f"is {said}; it should be text"):
            conform(value, str, "file")
