"""One object for the numbers of groups and what sets them apart, against pycocotools on the repeated images."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from faap.errors import FaapError
from faap.evaluation import METRICS, MetricFrame, bootstrap

GROUPS = ("woman", "man", "child")


@pytest.fixture
def three(split_of):
    return split_of(5, images=7, groups=GROUPS, crowds=False)


@pytest.fixture
def drawn(three, brute_force):
    """group → (before and after, 1 + samples) of AP, by pycocotools."""
    split, before, after = three
    copies = bootstrap.draw(split, 12, 3).T
    values = [[brute_force(split, found, each) for each in copies] for found in (before, after)]
    return {group: np.array([[each[group][0] for each in part] for part in values]) for group in GROUPS}


def interval(values):
    return np.percentile(values, [2.5, 97.5])


def check_estimate(found, values):
    assert found["value"] == pytest.approx(values[0])
    assert found["standard_error"] == pytest.approx(np.std(values[1:], ddof=1))
    assert found["ci95"] == pytest.approx(interval(values[1:]))


@pytest.mark.usefixtures("few_replicates")
def test_of_one_detector(three, drawn):
    split, before, _ = three
    frame = MetricFrame(split, before, samples=12, seed=3)
    values = {group: each[0] for group, each in drawn.items()}
    assert list(frame.by_group) == list(GROUPS)
    assert list(frame.difference) == list(frame.ratio) == ["woman", "child"]
    for group in GROUPS:
        assert list(frame.by_group[group]) == list(METRICS)
        check_estimate(frame.by_group[group]["AP"], values[group])
    for group in ("woman", "child"):
        check_estimate(frame.difference[group]["AP"], values["man"] - values[group])
        check_estimate(frame.ratio[group]["AP"], values[group] / values["man"])
    table = np.array(list(values.values()))
    worst = frame.worst["AP"]
    check_estimate(worst, table.min(0))
    least = table.argmin(0)
    assert worst["group"] == GROUPS[least[0]]
    assert worst["share"] == pytest.approx((least[1:] == least[0]).mean())
    assert 0 < worst["share"] < 1  # else nothing is shown


@pytest.mark.usefixtures("few_replicates")
def test_of_two_the_change_is_paired(three, drawn):
    split, before, after = three
    frame = MetricFrame(split, before, after, samples=12, seed=3)
    expected = [
        (frame.by_group["child"], drawn["child"]),
        (frame.difference["woman"], drawn["man"] - drawn["woman"]),
        (frame.ratio["child"], drawn["child"] / drawn["man"]),
        (frame.worst, np.min(list(drawn.values()), axis=0)),
    ]
    for row, (old, new) in expected:
        found, moved = row["AP"], new - old
        assert (found["baseline"], found["perturbed"], found["change"]) == pytest.approx((old[0], new[0], moved[0]))
        assert found["relative_change"] == pytest.approx(moved[0] / old[0])
        assert found["standard_error"] == pytest.approx(np.std(moved[1:], ddof=1))
        for name, values in (("ci95", moved), ("baseline_ci95", old), ("perturbed_ci95", new)):
            assert found[name] == pytest.approx(interval(values[1:]))
        tail = 1 + min((moved[1:] <= 0).sum(), (moved[1:] >= 0).sum())
        assert found["p_value"] == pytest.approx(min(1, 2 * tail / 13))


@pytest.mark.usefixtures("few_replicates")
def test_overall_is_all_images_whoever_is_in_them(three, repeat, pycocotools):
    split, found, _ = three
    # in another order than that of the ids, which decides between equal scores
    order = np.random.default_rng(0).permutation(len(found))
    split, found = replace(split, records=tuple(split.records[i] for i in order)), [found[i] for i in order]
    frame = MetricFrame(split, found, samples=6, seed=1, metrics=["AP", "AP50", "AR100"])
    values = []
    for copies in bootstrap.draw(split, 6, 1).T:
        inverse = np.argsort(order)
        back = [split.records[i] for i in inverse], [found[i] for i in inverse], copies[inverse]
        stats = pycocotools(*repeat(*back)).stats
        values.append(stats[[0, 1, 8]])
    for name, column in zip(frame.metrics, np.transpose(values), strict=True):
        check_estimate(frame.overall[name], column)


def test_overall_is_of_the_categories_that_the_groups_are_compared_in(split_of, pycocotools):
    split, found, _ = split_of(3, images=6, crowds=False)
    lacking = tuple(
        replace(each, labels=np.ones_like(each.labels)) if each.group == "female" else each for each in split.records
    )
    split = replace(split, records=lacking)  # only men have bicycles
    assert any((each.labels == 7).any() for each in lacking)
    expected = pycocotools(split.records, found, {1: "person"}).stats[0]
    assert MetricFrame(split, found, samples=0).overall["AP"]["value"] == pytest.approx(expected)


@pytest.mark.usefixtures("few_replicates")
def test_a_pandas_frame_holds_all_of_it(three):
    pytest.importorskip("pandas")
    split, before, after = three
    for found in ((before,), (before, after)):
        frame = MetricFrame(split, *found, samples=8, metrics=["AP", "AR100"])
        table = frame.to_frame()
        assert len(table) == 2 * (1 + 3 + 2 + 2 + 1)
        assert table.index.names == ["what", "group", "metric"]
        row = table.loc[("difference", "child", "AR100")]
        number = frame.difference["child"]["AR100"]
        assert [row["ci95_low"], row["ci95_high"]] == number["ci95"]
        for key, value in number.items():
            assert key.endswith("ci95") or row[key] == value
        worst = frame.worst["AP"]
        assert table.loc[("worst", worst["group"], "AP"), "share"] == worst["share"]
    assert MetricFrame(split, before, samples=0).to_frame()["ci95_low"].isna().all()


def test_without_pandas(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FaapError, match="to_frame needs pandas"):
        MetricFrame(*three[:2], samples=0).to_frame()


def test_what_cannot_be_known(three):
    empty = tuple(
        replace(each, boxes=each.boxes[:0], labels=each.labels[:0], areas=each.areas[:0], crowd=each.crowd[:0])
        for each in three[0].records
    )
    split = replace(three[0], records=empty)
    frame = MetricFrame(split, three[1], samples=4)
    assert frame.worst["AP"]["group"] is None
    assert frame.worst["AP"]["ci95"] is frame.difference["woman"]["AP"]["ci95"] is frame.overall["AP"]["ci95"] is None
    assert np.isnan(frame.overall["AP"]["value"])


@pytest.mark.usefixtures("few_replicates")
def test_a_group_of_one_image_has_no_interval_and_is_worst_in_no_share(three, brute_force):
    split, found, _ = three
    children = [i for i in split.positions("child") if len(split.records[i].boxes)]
    kept = [*split.positions("woman"), *split.positions("man"), children[0]]
    split, found = split.subset(kept), [found[i] for i in kept]
    found[-1] = replace(found[-1], boxes=found[-1].boxes + 1000)
    frame = MetricFrame(split, found, samples=6, seed=3, metrics=["AP"])
    for row in (frame.by_group["child"]["AP"], frame.difference["child"]["AP"]):
        assert np.isfinite(row["value"])
        assert row["ci95"] is row["standard_error"] is None
    assert (frame.worst["AP"]["group"], frame.worst["AP"]["share"]) == ("child", None)
    # the others are still measured in what the child has, too
    each = [brute_force(split, found, copies)["man"][0] for copies in bootstrap.draw(split, 6, 3).T]
    check_estimate(frame.by_group["man"]["AP"], np.array(each))
