"""Groups that are made alike, and AP with weights, against plain loops."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from faap.audit import confounders
from faap.audit.confounders import CELLS, FEWEST, balance, cells_of, describe, effective_size
from faap.audit.side import Side
from faap.evaluation import Detections
from faap.evaluation.bootstrap import draw, replicate
from faap.evaluation.matching import IOU_THRESHOLDS, match_image
from faap.evaluation.metrics import by_group

CATEGORIES = (1, 7)


def sides_of(split, detections, samples=0):
    weights = draw(split, samples, 0)
    parts = by_group(split, detections)
    return {group: Side(r, d, weights[p], CATEGORIES) for group, (p, r, d) in parts.items()}


def slow_ap(side, factors, worth=None, apart=None):
    """AP of the data set itself: sorted detections, one after the other."""
    numbers = {(int(i), int(t)): n for n, (i, t) in enumerate(zip(side.image, side.wanted, strict=True))}
    values = []
    for category in CATEGORIES:
        total = sum(factors[n] for (i, t), n in numbers.items() if side.records[i].labels[t] == category)
        for threshold in range(len(IOU_THRESHOLDS)):
            rows = []
            for i, (record, detected) in enumerate(zip(side.records, side.detections, strict=True)):
                matched = match_image(record, detected, category)
                mine = [factors[n] for (image, _), n in numbers.items() if image == i]
                weight = sum(mine) / len(mine) if mine else 1.0
                for d, score in enumerate(matched.scores):
                    if matched.hits[threshold, d]:
                        rows.append((score, factors[numbers[i, int(matched.truth[threshold, d])]], 0.0))
                    elif not matched.ignored[threshold, d]:
                        special = apart is not None and matched.chosen[d] in apart[i]
                        rows.append((score, 0.0, weight * (worth if special else 1.0)))
            rows.sort(key=lambda row: -row[0])
            right = np.cumsum([row[1] for row in rows])
            recall = np.where(right > total - 1e-9, 1.0, right / total)
            precision = right / np.maximum(right + np.cumsum([row[2] for row in rows]), 1e-12)
            levels = [
                max((p for p, r in zip(precision, recall, strict=True) if r >= level), default=0.0)
                for level in np.linspace(0, 1, 101)
            ]
            values.append(np.mean(levels))
    return np.mean(values)


@pytest.mark.parametrize("seed", range(3))
def test_ap_without_weights_is_that_of_the_group(seed, split_of):
    split, detections, _ = split_of(seed)
    sides = sides_of(split, detections, 5)
    expected = replicate(split, detections, samples=5, metrics=["AP"])[0]
    for group, side in sides.items():
        np.testing.assert_allclose(side.average_precision().mean(0), expected[group]["AP"], atol=1e-12)
        np.testing.assert_allclose(
            side.average_precision(np.ones(side.box_copies.shape)).mean(0), expected[group]["AP"], atol=1e-9
        )


@pytest.mark.parametrize("seed", range(3))
def test_ap_with_weights_is_that_of_plain_loops(seed, split_of):
    split, detections, _ = split_of(seed)
    rng = np.random.default_rng(seed)
    for side in sides_of(split, detections).values():
        factors = rng.uniform(0, 3, len(side.image)) * (rng.random(len(side.image)) < 0.8)
        found = side.average_precision(factors[:, None]).mean(0)
        assert found.shape == (1,)
        assert found[0] == pytest.approx(slow_ap(side, factors), abs=1e-9)
        assert abs(found[0] - side.average_precision().mean(0)[0]) > 1e-4
        apart = side.unexplained(0.2)
        assert sum(map(len, apart)) > 3
        thinned = side.average_precision(factors[:, None], apart, np.array([0.25])).mean(0)
        assert thinned[0] == pytest.approx(slow_ap(side, factors, 0.25, apart), abs=1e-9)
        assert thinned[0] > found[0]


def test_weights_of_all_boxes_of_an_image_are_copies_of_it(split_of, repeat):
    split, detections, _ = split_of(5)
    copies = np.random.default_rng(0).integers(0, 4, len(split.records))
    sides = sides_of(split, detections)
    records, found = repeat(split.records, detections, copies)
    again = sides_of(replace(split, records=tuple(records)), found)
    for group, side in sides.items():
        mine = copies[split.positions(group)]
        empty = np.bincount(side.image, minlength=len(mine)) == 0
        side.copies = np.where(empty, mine, 1)[:, None]  # an image without boxes has no box that could weigh it
        assert side.average_precision(mine[side.image][:, None].astype(float)).mean(0)[0] == pytest.approx(
            again[group].average_precision().mean(0)[0], abs=1e-9
        )


def test_whoever_and_whatever_is_annotated_is_not_unlabelled(record):
    boxes = [[10, 10, 40, 40], [100, 10, 40, 40]]
    found = Detections(
        1, np.full(3, 0.9), np.ones(3, int), np.array([[35.0, 10, 40, 40], [125, 10, 40, 40], [20, 90, 40, 40]])
    )
    other = replace(record(1, "female", boxes, labels=[1, 7]), crowd=np.array([True, False]))
    side = Side([other], [found], np.ones((1, 1), int), [1])
    assert [each.tolist() for each in side.unexplained(0.5)] == [[2]]
    assert [each.tolist() for each in side.unexplained(0.95)] == [[]]


def test_both_groups_have_the_same_distribution_afterwards():
    rng = np.random.default_rng(0)
    sizes = [rng.normal(0, 1, 600), rng.normal(0.8, 1, 500)]
    places = [sizes[0] + rng.normal(0, 1, 600), rng.normal(0, 1.5, 500)]
    cells = [cells_of(np.concatenate(each)) for each in (sizes, places)]
    parts = [[each[:600] for each in cells], [each[600:] for each in cells]]
    copies = [rng.integers(0, 3, (count, 4)).astype(float) for count in (600, 500)]
    factors = balance(parts, copies)
    for number in range(2):
        tables = [
            np.stack([(each * factor)[part[number] == cell].sum(axis=0) for cell in range(CELLS)])
            for part, each, factor in zip(parts, copies, factors, strict=True)
        ]
        shares = [table / table.sum(axis=0) for table in tables]
        np.testing.assert_allclose(*shares, atol=2e-3)
    for each, factor in zip(copies, factors, strict=True):
        np.testing.assert_allclose((each * factor).sum(axis=0), each.sum(axis=0))
    alone = balance([[part[0]] for part in parts], copies)
    share = [np.bincount(part[0], each[:, 0] * f[:, 0]) for part, each, f in zip(parts, copies, alone, strict=True)]
    before = [np.bincount(part[0], each[:, 0]) for part, each in zip(parts, copies, strict=True)]
    expected = sum(each / each.sum() for each in before) / 2
    for each in share:
        np.testing.assert_allclose(each / each.sum(), expected, atol=1e-12)


def test_what_has_no_counterpart_has_no_weight():
    cells = [[np.array([0] * 20 + [1] * 9)], [np.array([0] * 10 + [1] * (FEWEST - 1) + [2] * 6)]]
    copies = [np.ones((29, 1)), np.ones((10 + FEWEST - 1 + 6, 1))]
    factors = balance(cells, copies)
    assert [(factor[:, 0] > 0).sum() for factor in factors] == [20, 10]
    # those that count stand for all, so that they weigh as much beside images that have no boxes
    assert [factor.sum() for factor in factors] == [pytest.approx(29), pytest.approx(10 + FEWEST - 1 + 6)]
    nobody = balance([[np.zeros(9, dtype=int)], [np.ones(9, dtype=int)]], [np.ones((9, 2))] * 2)
    assert all((each == 0).all() for each in nobody)


def test_cells_hold_as_many_values_each_and_equal_ones_together():
    values = np.random.default_rng(0).permutation(np.arange(800.0))
    assert np.bincount(cells_of(values)).tolist() == [100] * CELLS
    assert cells_of(np.array([0.0, 1.0, 1.0, 0.0, np.nan])).tolist() == [0, 1, 1, 0, CELLS + 1]
    mostly = cells_of(np.array([0.0] * 90 + [1.0, 2.0] * 5))
    assert len(set(mostly[:90])) == 1
    assert len(set(mostly)) == 3
    assert set(cells_of(np.full(3, np.nan))) == {CELLS + 1}


@pytest.mark.parametrize("most", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9, 0.97])
def test_what_most_boxes_have_shares_its_cell_with_no_other_value(most, share):
    """As most boxes are not covered, or wholly visible: the least value, the largest, and one between."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random(2000) < share, most, rng.uniform(0, 1, 2000))
    cells = cells_of(values)
    (cell,) = set(cells[values == most])
    assert (cells[values < most] < cell).all()
    assert (cells[values > most] > cell).all()


def test_effective_size_is_kishs():
    assert effective_size(np.array([[1.0, 2], [1, 0], [1, 2]])).tolist() == [3.0, 2.0]


def test_boxes_are_described(record, tmp_path):
    one = record(1, "female", [[0, 10, 20, 40], [10, 10, 20, 80], [150, 100, 30, 30]])
    pixels = np.zeros((150, 200, 3), np.uint8)
    pixels[:, :100] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    one = replace(one, path=tmp_path / "1.png", conditions={"occluded": np.array([1.0, 0.0, np.nan])})
    found = describe(one)
    np.testing.assert_allclose(found["box size"], np.sqrt([800, 1600, 900]))
    np.testing.assert_allclose(found["box shape"], [2, 4, 1])
    np.testing.assert_allclose(found["position across"], [10 / 200, 20 / 200, 165 / 200])
    np.testing.assert_allclose(found["position down"], [30 / 150, 50 / 150, 115 / 150])
    assert found["cut off"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(found["covered"], [400 / 800, 400 / 1600, 0])
    assert found["people in the image"].tolist() == [3, 3, 3]
    some = describe(replace(one, crowd=np.array([False, True, False])))
    assert some["people in the image"].tolist() == [2, 2, 2]
    np.testing.assert_array_equal(found["occluded"], [1, 0, np.nan])
    level = 255 * 0.299
    np.testing.assert_allclose(found["brightness"], [level / 2] * 3, rtol=1e-6)
    np.testing.assert_allclose(found["contrast"], [1] * 3, rtol=1e-6)
    # the Laplacian is a step down and a step up, in two of 200 columns
    np.testing.assert_allclose(found["sharpness"], [np.sqrt(2 / 200) * level / (level / 2)] * 3, rtol=1e-6)
    assert describe(replace(record(2, "male", []), path=one.path))["covered"].shape == (0,)


@pytest.mark.parametrize("pairs", [1, 40, 10**7])
def test_covered_is_the_largest_share_under_any_other_box(pairs, record, tmp_path, monkeypatch):
    monkeypatch.setattr(confounders, "_PAIRS", pairs)
    Image.new("RGB", (200, 150)).save(tmp_path / "a.png")
    rng = np.random.default_rng(pairs)
    boxes = np.concatenate([rng.uniform(0, 120, (40, 2)), rng.uniform(1, 60, (40, 2))], axis=1).round()
    boxes = np.concatenate([boxes, boxes[:3], [[199, 0, 1, 1]]])  # some twice, one alone
    found = describe(replace(record(1, "male", boxes), path=tmp_path / "a.png"))["covered"]
    for i, (left, top, width, height) in enumerate(boxes):
        shares = [
            max(0, min(left + width, x + w) - max(left, x)) * max(0, min(top + height, y + h) - max(top, y))
            for j, (x, y, w, h) in enumerate(boxes)
            if j != i
        ]
        assert found[i] == pytest.approx(max(shares) / (width * height))
