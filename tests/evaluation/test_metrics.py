"""COCO's metrics are pycocotools' metrics, for every group."""

from dataclasses import replace

import numpy as np
import pytest

from faap.data import Split
from faap.errors import FaapError
from faap.evaluation import METRICS, Detections, MetricFrame, group_metrics
from faap.evaluation.metrics import comparable_categories


@pytest.mark.parametrize("levels", [0, 40])
@pytest.mark.parametrize("seed", range(12))
def test_all_twelve_are_pycocotools_for_every_group(seed, levels, split_of, pycocotools, coco_numbers):
    split, detections, _ = split_of(seed, levels=levels)
    # regions that are nobody's to find, beside the crowds, as other groups' people are
    records = [each.ignoring_others("female") if seed % 2 else each for each in split.records]
    for group in (*split.counts(), None):
        mine = [i for i, record in enumerate(records) if group in (record.group, None)]
        chosen = [records[i] for i in mine], [detections[i] for i in mine]
        expected = pycocotools(*chosen).stats
        assert (expected[3:6] >= 0).sum() > 1
        found = coco_numbers(*chosen, split.categories)
        np.testing.assert_allclose(found, np.where(expected < 0, np.nan, expected), rtol=0, atol=1e-12)


def test_the_numbers_of_a_group_are_named(split_of):
    split, detections, _ = split_of(0)
    assert [list(values) for values in group_metrics(split, detections).values()] == [list(METRICS)] * 2


def test_sizes_come_from_the_area_of_the_annotation(record, coco_numbers):
    records = [record(1, "female", [[0, 0, 20, 20], [30, 30, 60, 60]])]
    records[0].areas[:] = [900.0, 20000.0]  # as a segmentation's area, unlike its box
    detections = [Detections(1, np.array([0.9, 0.8]), np.array([1, 1]), records[0].boxes.copy())]
    found = dict(zip(METRICS, coco_numbers(records, detections, [1]), strict=False))
    assert found["APs"] == pytest.approx(1)
    assert np.isnan(found["APm"])
    assert found["APl"] == pytest.approx(1)


def test_nothing_detected_is_zero_and_nothing_there_is_nan(record, coco_numbers):
    nothing = Detections(1, np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
    assert coco_numbers([record(1, "a", [[5, 5, 40, 40]])], [nothing], [1])[0] == 0
    assert np.isnan(coco_numbers([record(1, "a", [])], [nothing], [1])).all()


def test_each_group_on_its_own_anchor_and_reference_first(split_of, pycocotools):
    split, detections, _ = split_of(3, groups=("woman", "man", "child"))
    by_group = group_metrics(split, detections)
    assert list(by_group) == ["woman", "man", "child"]
    for group, metrics in by_group.items():
        mine = [i for i, r in enumerate(split.records) if r.group == group]
        expected = pycocotools([split.records[i] for i in mine], [detections[i] for i in mine]).stats
        assert metrics["AP"] == pytest.approx(expected[0], abs=1e-12)


def test_detections_of_other_images_are_refused(split_of):
    split, detections, _ = split_of(0)
    with pytest.raises(FaapError, match="entry 0 is of image 11, where the split has image 10"):
        group_metrics(split, [detections[1], detections[0], *detections[2:]])
    with pytest.raises(FaapError, match="23 entries of detections for 24 images"):
        group_metrics(split, detections[1:])


def test_a_group_without_images_is_named(split_of):
    split, detections, _ = split_of(0)
    with pytest.raises(FaapError, match="no image of group 'women'; it has female, male"):
        group_metrics(replace(split, anchor="women"), detections)


def test_a_category_that_one_group_lacks_opens_no_gap(record):
    """Dogs in men's images only, and a detector that finds every person and no dog."""
    box, dog = [10, 10, 40, 60], [90, 20, 30, 30]
    records = [record(i, "female", [box]) for i in range(3)] + [
        record(3 + i, "male", [box, dog], labels=[1, 7]) for i in range(3)
    ]
    split = Split("test", tuple(records), {1: "person", 7: "dog"}, "female", "male")
    found = [Detections(r.image_id, np.array([0.9]), np.array([1]), r.boxes[:1]) for r in records]
    assert {group: metrics["AP"] for group, metrics in group_metrics(split, found).items()} == {"female": 1, "male": 1}
    gap = MetricFrame(split, found, found, samples=20).difference["female"]
    assert [gap[name]["baseline"] for name in ("AP", "AR100")] == [0, 0]
    assert comparable_categories(split) == (["person"], {"dog": ["female"]})
    # a crowd is nothing to find
    split.records[0].crowd[:] = True
    crowd = replace(records[0], labels=np.array([7]))
    assert comparable_categories(replace(split, records=(crowd, *records[1:])))[1] == {"dog": ["female"]}


def test_categories_that_are_rare_in_a_size_or_a_group(split_of, brute_force, coco_numbers):
    """A category of three groups is averaged over if all have it; so for small, medium and large ones."""
    split, found, _ = split_of(11, images=5, groups=("woman", "man", "child"))
    rng = np.random.default_rng(0)
    wide = {**split.categories, 9: "skateboard", 11: "tie"}
    records = [replace(r, labels=rng.choice(list(wide), len(r.labels))) for r in split.records]
    split = replace(split, records=tuple(records), categories=wide)
    lacking = comparable_categories(split)[1]
    assert lacking  # else nothing is shown
    expected = brute_force(split, found, np.ones(len(records), dtype=int))
    for group, metrics in group_metrics(split, found).items():
        assert [metrics["AP"], metrics["AR100"]] == pytest.approx(expected[group], nan_ok=True)
    small = replace(split, records=tuple(replace(r, crowd=r.crowd | (r.areas >= 32**2)) for r in records))
    only_small = group_metrics(split, found)
    assert comparable_categories(small) != comparable_categories(split)
    for group, metrics in only_small.items():
        names, _ = comparable_categories(small)
        kept = small.with_categories([number for number, name in wide.items() if name in names])
        mine = [found[i] for i in kept.positions(group)]
        alone = (
            coco_numbers(split.with_categories(kept.categories).group(group), mine, kept.categories)[3]
            if names
            else np.nan
        )
        assert metrics["APs"] == pytest.approx(alone, nan_ok=True)


def test_a_group_without_anything_rules_no_category_out(record):
    records = [record(1, "female", [[1, 1, 30, 30]]), record(2, "male", [[1, 1, 30, 30]]), record(3, "third", [])]
    split = Split("test", tuple(records), {1: "person"}, "female", "male")
    found = [Detections(r.image_id, np.full(len(r.labels), 0.5), r.labels, r.boxes) for r in records]
    metrics = group_metrics(split, found)
    assert (metrics["female"]["AP"], metrics["male"]["AP"]) == (1, 1)
    assert np.isnan(metrics["third"]["AP"])
    assert comparable_categories(split) == (["person"], {})


def test_groups_without_a_common_category_are_not_compared(record):
    records = [record(i, "female", [[1, 1, 30, 30]]) for i in range(2)] + [
        record(2 + i, "male", [[1, 1, 30, 30]], labels=[7]) for i in range(2)
    ]
    split = Split("test", tuple(records), {1: "person", 7: "dog"}, "female", "male")
    found = [Detections(r.image_id, np.full(1, 0.5), r.labels, r.boxes) for r in records]
    assert all(np.isnan(values["AP"]) for values in group_metrics(split, found).values())
    assert np.isnan(MetricFrame(split, found, found, samples=5).difference["female"]["AP"]["baseline"])
    assert comparable_categories(split) == ([], {"person": ["male"], "dog": ["female"]})
