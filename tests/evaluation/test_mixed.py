"""People of several groups in one image: what belongs to others is ignored, neither right nor wrong."""

from dataclasses import replace

import numpy as np
import pytest

from faap.data import Split
from faap.evaluation import Detections, MetricFrame, group_metrics

HER, HIM, LATER = [10, 10, 30, 60], [80, 10, 30, 60], [140, 10, 30, 60]


def split_with(records):
    return Split("test", tuple(records), {1: "person"}, "female", "male")


def everybody(record, scores):
    return Detections(record.image_id, np.array(scores), record.labels, record.boxes)


def test_a_found_man_is_no_mistake_about_women(record):
    """One image with a man, found first, and a woman, found second; and one of each alone, found as well."""
    both = replace(record(1, "", [HIM, HER]), owners=("male", "female"))
    split = split_with([both, record(2, "female", [HER]), record(3, "male", [HIM])])
    found = [everybody(split.records[0], [0.9, 0.8]), *(everybody(r, [0.7]) for r in split.records[1:])]
    assert split.counts() == {"female": 2, "male": 2}
    metrics = group_metrics(split, found)
    assert metrics["female"]["AP"] == metrics["male"]["AP"] == pytest.approx(1)
    # naively, the man ranks above both women: precision is 1/2 at the first of them, 2/3 at the second
    naive = split_with([replace(record(1, "female", [HER]), owners=None), *split.records[1:]])
    assert group_metrics(naive, found)["female"]["AP"] == pytest.approx(2 / 3)


def test_nobodys_person_counts_for_no_group(record):
    image = replace(record(1, "female", [HER, LATER]), owners=("female", ""))
    split = split_with([image, record(2, "male", [HIM])])
    women = [Detections(1, np.array([0.9, 0.8]), np.array([1, 1]), np.array([LATER, HER], dtype=float))]
    metrics = group_metrics(split, [*women, everybody(split.records[1], [0.7])])
    assert metrics["female"]["AP"] == metrics["female"]["AR100"] == pytest.approx(1)


@pytest.fixture(scope="module")
def mixed(split_of):
    """A random split in which half of the images are of nobody alone: each box is drawn a group, or none."""
    split, before, after = split_of(5, 30)
    rng = np.random.default_rng(1)
    records = [
        record
        if position % 2
        else replace(record, group="", owners=tuple(rng.choice(["female", "male", "third", ""], len(record.boxes))))
        for position, record in enumerate(split.records)
    ]
    return replace(split, records=tuple(records)), before, after


def test_metrics_are_pycocotools_with_the_others_as_crowds(mixed, pycocotools):
    split, found, _ = mixed
    metrics = group_metrics(split, found)
    assert list(metrics) == ["female", "male", "third"]
    for group, values in metrics.items():
        records, mine = [], []
        for record, detections in zip(split.records, found, strict=True):
            owners = record.owners if record.owners is not None else [record.group] * len(record.boxes)
            if record.group == group or group in owners:
                others = np.array([owner != group for owner in owners], dtype=bool)
                records.append(replace(record, crowd=record.crowd | others))
                mine.append(detections)
        stats = pycocotools(records, mine, split.categories).stats
        assert [values[key] for key in ("AP", "AP50", "AR100")] == pytest.approx([stats[0], stats[1], stats[8]])


def test_a_third_group_may_be_a_single_image(mixed, record):
    split, before, after = mixed
    kept = [i for i, each in enumerate(split.records) if each.owners is None]
    few = split.subset(kept)
    few = replace(few, records=(*few.records, record(999, "fourth", [HER])))
    found = [[entries[i] for i in kept] + [everybody(few.records[-1], [0.5])] for entries in (before, after)]
    assert np.isfinite(MetricFrame(few, *found, samples=10).difference["female"]["AP"]["p_value"])


def test_the_bootstrap_measures_the_same_gap(mixed):
    split, before, after = mixed
    metrics = [group_metrics(split, found) for found in (before, after)]
    gaps = [values["male"]["AP"] - values["female"]["AP"] for values in metrics]
    result = MetricFrame(split, before, after, samples=20).difference["female"]["AP"]
    assert (result["baseline"], result["perturbed"]) == pytest.approx(gaps)
    alone = MetricFrame(split, before, samples=20)
    assert alone.difference["female"]["AP"]["value"] == pytest.approx(gaps[0])
    assert list(alone.by_group) == ["female", "male", "third"]
