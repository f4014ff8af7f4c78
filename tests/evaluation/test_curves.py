"""The curves are pycocotools' own, at every place; their bands are those of redrawn data sets."""

from dataclasses import replace

import numpy as np
import pytest

from faap.evaluation import MetricFrame
from faap.evaluation.curves import LEVELS, curves_of
from faap.evaluation.metrics import by_group, shared_categories
from faap.report.charts import draw_curves, values_in


def above(found, score):
    kept = found.scores >= score
    return replace(found, scores=found.scores[kept], labels=found.labels[kept], boxes=found.boxes[kept])


@pytest.mark.parametrize("seed", range(6))
def test_precision_at_every_recall_is_pycocotools(seed, split_of, pycocotools):
    split, detections, _ = split_of(seed)
    (found,) = curves_of(split, detections, samples=0)
    for group, (_, records, theirs) in by_group(split, detections).items():
        judged = pycocotools(records, theirs)
        places = [judged.params.catIds.index(each) for each in shared_categories(split)]
        expected = judged.eval["precision"][0][:, places, 0, 2].mean(axis=1)
        np.testing.assert_allclose(found[group]["precision"][0], expected, rtol=0, atol=1e-9)
        assert np.isnan(found[group]["precision"][1:]).all()


def test_the_mean_precision_is_ap50(split_of):
    split, detections, _ = split_of(3)
    frame = MetricFrame(split, detections, detections, samples=0)
    (found,) = curves_of(split, detections, samples=0)
    for group, row in frame.by_group.items():
        assert found[group]["precision"][0].mean() == pytest.approx(row["AP50"]["baseline"], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_recall_over_scores_counts_what_a_threshold_keeps(seed, split_of, pycocotools):
    split, detections, _ = split_of(seed, levels=40)
    (found,) = curves_of(split, detections, samples=0)
    for group, (_, records, theirs) in by_group(split, detections).items():
        for place in (0, 25, 50, 73, 100):
            kept = [above(each, LEVELS[place]) for each in theirs]
            expected = 0.0
            if any(len(each.scores) for each in kept):
                judged = pycocotools(records, kept)
                places = [judged.params.catIds.index(each) for each in shared_categories(split)]
                expected = judged.eval["recall"][0, places, 0, 2].mean()
            assert found[group]["recall"][0][place] == pytest.approx(expected, abs=1e-9)


def test_bands_are_of_the_images_that_are_redrawn(split_of):
    split, detections, _ = split_of(1)
    (found,) = curves_of(split, detections, samples=60, seed=5)
    for group in ("female", "male"):
        for value, low, high in (found[group]["precision"], found[group]["recall"]):
            assert (low <= value + 0.05).all()
            assert (low <= high).all()
            assert (high - low).max() > 0.05
    again, other = (curves_of(split, detections, samples=60, seed=seed)[0] for seed in (5, 6))
    np.testing.assert_array_equal(again["female"]["recall"], found["female"]["recall"])
    assert not np.array_equal(other["female"]["recall"][1:], found["female"]["recall"][1:])


def test_a_rare_category_takes_no_band_and_what_no_two_groups_share_is_nowhere(split_of):
    split, detections, _ = split_of(2, images=30)
    rare = [record.with_boxes((record.labels == 1) | (record.image_id % 30 < 3)) for record in split.records]
    split = replace(split, records=tuple(rare))
    drawn = MetricFrame(split, detections, detections, samples=60)
    (found,) = curves_of(split, detections, samples=60)
    for group, row in drawn.by_group.items():
        assert row["AP50"]["baseline_ci95"] is not None
        assert np.isfinite(found[group]["precision"]).all()
        assert found[group]["precision"][0].mean() == pytest.approx(row["AP50"]["baseline"], abs=1e-9)
    apart = [record.with_boxes(record.labels == (1 if record.group == "female" else 7)) for record in split.records]
    (found,) = curves_of(replace(split, records=tuple(apart)), detections, samples=9)
    assert all(np.isnan(each).all() for curves in found.values() for each in curves.values())
    assert [values_in(figure) for _, _, figure in draw_curves(found, found)] == ["", ""]
