"""COCO's metrics are pycocotools' metrics, for every group."""

from dataclasses import replace

import numpy as np
import pytest

from faap.errors import FaapError
from faap.evaluation import METRICS, Detections, coco_metrics, group_metrics


@pytest.mark.parametrize("levels", [0, 40])
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools(seed, levels, split_of, pycocotools):
    split, detections, _ = split_of(seed, levels=levels)
    found = coco_metrics(split.records, detections, split.categories)
    expected = pycocotools(split.records, detections).stats[:9]
    assert list(found) == list(METRICS)
    np.testing.assert_allclose(list(found.values()), np.where(expected < 0, np.nan, expected), atol=1e-12)


def test_sizes_come_from_the_area_of_the_annotation(record, pycocotools):
    records = [record(1, "female", [[0, 0, 20, 20], [30, 30, 60, 60]])]
    records[0].areas[:] = [900.0, 20000.0]  # as a segmentation's area, unlike its box
    detections = [Detections(1, np.array([0.9, 0.8]), np.array([1, 1]), records[0].boxes.copy())]
    found = coco_metrics(records, detections, {1: "person"})
    assert found["APs"] == pytest.approx(1)
    assert np.isnan(found["APm"])
    assert found["APl"] == pytest.approx(1)


def test_nothing_detected_is_zero_and_nothing_there_is_nan(record):
    nothing = Detections(1, np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
    assert coco_metrics([record(1, "a", [[5, 5, 40, 40]])], [nothing], {1: "person"})["AP"] == 0
    assert np.isnan(list(coco_metrics([record(1, "a", [])], [nothing], {1: "person"}).values())).all()


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
    with pytest.raises(FaapError, match="entry 0 is of image 11, the split has image 10"):
        group_metrics(split, [detections[1], detections[0], *detections[2:]])
    with pytest.raises(FaapError, match="23 entries of detections for 24 images"):
        group_metrics(split, detections[1:])


def test_a_group_without_images_is_named(split_of):
    split, detections, _ = split_of(0)
    with pytest.raises(FaapError, match="no image of group 'women'; it has female, male"):
        group_metrics(replace(split, anchor="women"), detections)
