"""Every replicate is what pycocotools says about the resampled data set."""

import re
from dataclasses import replace

import numpy as np
import pytest

from faap.data import Split
from faap.errors import FaapError
from faap.evaluation import Detections, MetricFrame, bootstrap, matching, validation_row
from faap.evaluation.matching import AREAS, match_image
from faap.evaluation.statistics import change


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", AREAS)
def test_matching_of_each_image_is_pycocotools(seed, size, split_of, pycocotools):
    split, detections, _ = split_of(seed, images=6)
    area = list(AREAS[size])
    evaluated = [e for e in pycocotools(split.records, detections).evalImgs if e and e["aRng"] == area]
    assert any(np.any(e["dtIgnore"]) for e in evaluated)
    for expected in evaluated:
        position = [r.image_id for r in split.records].index(expected["image_id"])
        truth, found = split.records[position], detections[position]
        matched = match_image(truth, found, expected["category_id"], AREAS[size])
        hits = (expected["dtMatches"] > 0) & ~expected["dtIgnore"].astype(bool)
        np.testing.assert_array_equal(matched.scores, expected["dtScores"])
        np.testing.assert_array_equal(matched.ignored, expected["dtIgnore"])
        np.testing.assert_array_equal(matched.hits, hits)
        numbers = np.flatnonzero(np.isin(truth.labels, expected["category_id"]))
        taken = np.searchsorted(sorted(expected["gtIds"]), expected["dtMatches"][hits])
        np.testing.assert_array_equal(numbers[taken], matched.truth[hits])
        np.testing.assert_array_equal(found.scores[matched.chosen], matched.scores)


@pytest.mark.parametrize("levels", [0, 40])
@pytest.mark.parametrize("seed", range(10))
def test_weights_are_copies_of_images(seed, levels, split_of, repeat, pycocotools, coco_numbers):
    split, detections, _ = split_of(seed, levels=levels)
    rng = np.random.default_rng(seed)
    copies = np.bincount(rng.integers(24, size=24), minlength=24).astype(np.int32)
    stats = pycocotools(*repeat(split.records, detections, copies)).stats
    found = coco_numbers(split.records, detections, split.categories, copies)
    np.testing.assert_allclose(found, np.where(stats < 0, np.nan, stats), rtol=0, atol=1e-9)


def test_equal_scores_within_an_image_are_the_only_exception(record, repeat, pycocotools, coco_numbers):
    records = [record(1, "female", [[10, 10, 40, 40], [100, 20, 40, 40]])]
    boxes = np.array([[10.0, 10, 40, 40], [60, 90, 40, 40]])
    tied = [Detections(1, np.array([0.5, 0.5]), np.array([1, 1]), boxes)]
    untied = [replace(tied[0], scores=np.array([0.6, 0.5]))]
    twice = np.array([2], dtype=np.int32)
    for detections, same in ((untied, True), (tied, False)):
        stats = pycocotools(*repeat(records, detections, twice)).stats
        assert (abs(coco_numbers(records, detections, [1], twice)[0] - stats[0]) < 1e-9) == same


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_of_two_equal_overlaps_the_later_ground_truth_is_taken(order, record, pycocotools, coco_numbers):
    left, middle, right = [10.0, 10, 40, 40], [15.0, 10, 40, 40], [20.0, 10, 40, 40]
    truth = record(1, "female", np.array([left, right])[order])
    detections = [Detections(1, np.array([0.9, 0.8]), np.array([1, 1]), np.array([middle, left]))]
    stats = pycocotools([truth], detections).stats
    np.testing.assert_allclose(coco_numbers([truth], detections, [1])[[0, 8]], stats[[0, 8]])


def test_more_than_a_hundred_detections_of_an_image(record, pycocotools, coco_numbers):
    rng = np.random.default_rng(0)
    truth = record(1, "female", [[10, 10, 40, 40], [100, 20, 40, 40]])
    boxes = np.concatenate([np.tile([5.0, 90, 20, 20], (120, 1)), truth.boxes])
    scores = np.concatenate([rng.uniform(0.3, 1.0, 120), [0.99, 0.1]])
    detections = [Detections(1, scores, np.ones(122, dtype=np.int64), boxes)]
    stats = pycocotools([truth], detections).stats
    found = coco_numbers([truth], detections, [1])
    np.testing.assert_allclose(found, np.where(stats < 0, np.nan, stats), rtol=0, atol=1e-12)
    assert found[8] == pytest.approx(0.5)


def test_equal_scores_of_images_in_any_order_of_ids(split_of, pycocotools):
    """COCO goes through images by id, which decides between equal scores of theirs."""
    split, detections, _ = split_of(4, levels=15)
    ids = np.random.default_rng(0).permutation(100)[: len(detections)].tolist()
    split = replace(split, records=tuple(replace(r, image_id=i) for r, i in zip(split.records, ids, strict=True)))
    detections = [replace(d, image_id=i) for d, i in zip(detections, ids, strict=True)]
    frame = MetricFrame(split, detections, samples=0, metrics=["AP", "AP50", "AR100"])
    parts = {group: split.positions(group) for group in ("female", "male")}
    rows = {**frame.by_group, "all": frame.overall}
    for name, positions in {**parts, "all": range(len(ids))}.items():
        records, found = ([each[i] for i in positions] for each in (split.records, detections))
        stats = pycocotools(records, found).stats
        assert [number["value"] for number in rows[name].values()] == pytest.approx(stats[[0, 1, 8]], abs=1e-12)
        # without their ids it would be another number
        renumbered = [[replace(each, image_id=i) for i, each in enumerate(part)] for part in (records, found)]
        assert abs(pycocotools(*renumbered).stats[0] - stats[0]) > 1e-6


@pytest.mark.usefixtures("few_replicates")
@pytest.mark.parametrize("paired", [False, True])
def test_the_whole_bootstrap_by_brute_force(paired, split_of, brute_force):
    split, before, after = split_of(5, images=8, paired=paired)
    samples = 12
    frame = MetricFrame(split, before, after, samples=samples, seed=3)
    weights = bootstrap.draw(split, samples, 3)
    assert (weights[:, 0] == 1).all()
    # (1 + samples, 2): AP and AR of the split and of every replicate, before and after
    values = [[brute_force(split, each, copies) for copies in weights.T] for each in (before, after)]

    def series(of):
        return (np.array([of(each) for each in part]) for part in values)

    def interval(numbers):
        return [np.interp(q * (samples - 1), np.arange(samples), np.sort(numbers)) for q in (0.025, 0.975)]

    expected = {"gap": (frame.difference[split.anchor], lambda each: each[split.reference] - each[split.anchor])}
    for group, found in frame.by_group.items():
        expected[group] = (found, lambda each, group=group: each[group])
    assert list(expected) == ["gap", split.anchor, split.reference]
    for result, of in expected.values():
        old, new = series(of)
        for column, name in enumerate(("AP", "AR100")):
            found, changes = result[name], (new - old)[:, column]
            assert found["baseline"] == pytest.approx(old[0, column], abs=1e-9)
            assert found["perturbed"] == pytest.approx(new[0, column], abs=1e-9)
            assert found["change"] == pytest.approx(changes[0], abs=1e-9)
            assert found["relative_change"] == pytest.approx(new[0, column] / old[0, column] - 1, abs=1e-6)
            assert found["standard_error"] == pytest.approx(np.std(changes[1:], ddof=1), abs=1e-9)
            assert found["ci95"] == pytest.approx(interval(changes[1:]), abs=1e-9)
            assert found["baseline_ci95"] == pytest.approx(interval(old[1:, column]), abs=1e-9)
            assert found["perturbed_ci95"] == pytest.approx(interval(new[1:, column]), abs=1e-9)
            sides = [sum(c <= 0 for c in changes[1:]), sum(c >= 0 for c in changes[1:])]
            assert found["p_value"] == pytest.approx(min(1, 2 * (min(sides) + 1) / (samples + 1)))


def test_one_detectors_errors_are_the_spread_of_the_same_replicates(split_of, brute_force, coco_numbers):
    split, detections, _ = split_of(6, images=8, paired=True)
    frame = MetricFrame(split, detections, samples=10, seed=1)
    drawn = [brute_force(split, detections, copies) for copies in bootstrap.draw(split, 10, 1).T[1:]]
    values = {group: [each[group] for each in drawn] for group in ("female", "male")}
    female, male = (np.array(values[group]) for group in ("female", "male"))
    for column, name in enumerate(("AP", "AR100")):
        error = np.std((male - female)[:, column], ddof=1)
        assert frame.difference["female"][name]["standard_error"] == pytest.approx(error, abs=1e-9)
        for group, replicates in (("female", female), ("male", male)):
            error = np.std(replicates[:, column], ddof=1)
            assert frame.by_group[group][name]["standard_error"] == pytest.approx(error, abs=1e-9)
    female_only = [(r, d) for r, d in zip(split.records, detections, strict=True) if r.group == "female"]
    expected = coco_numbers(*zip(*female_only, strict=True), split.categories)[0]
    assert frame.by_group["female"]["AP"]["value"] == pytest.approx(expected, abs=1e-12)


def test_errors_of_changes_are_the_spread_of_the_same_replicates(split_of, brute_force):
    split, before, after = split_of(6, images=8, paired=True)
    found = validation_row(split, before, after, samples=10)["errors"]
    assert list(found) == ["female", "male", "gap"]
    changes = {"female": [], "male": []}
    for copies in bootstrap.draw(split, 10, 0).T[1:]:
        old, new = (brute_force(split, each, copies) for each in (before, after))
        for group, values in changes.items():
            values.append(new[group][0] - old[group][0])
    for group, values in changes.items():
        assert found[group] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    gap = np.subtract(changes["male"], changes["female"])
    assert found["gap"] == pytest.approx(np.std(gap, ddof=1), abs=1e-9) != 0


def test_twins_come_and_go_together_and_group_sizes_stay(split_of):
    split, _, _ = split_of(0, images=9, paired=True)
    alone = [replace(r, pair=None, image_id=100 + i) for i, r in enumerate(split.records[:4])]
    records = replace(split, records=(*split.records, *alone))
    draws = bootstrap.draw(records, 50, 0).T[1:]
    np.testing.assert_array_equal(draws[:, :9], draws[:, 9:18])
    assert (draws[:, :9].sum(axis=1) == 9).all()
    assert (draws[:, 18:].sum(axis=1) == 4).all()
    assert len({tuple(draw) for draw in draws}) == 50
    np.testing.assert_array_equal(draws[:8], bootstrap.draw(records, 8, 0).T[1:])
    assert not np.array_equal(draws[7], bootstrap.draw(records, 8, 1).T[8])
    np.testing.assert_allclose(draws.mean(), 1)


def test_few_images_are_said_to_be_few(split_of):
    enough, few = (split_of(0, images=images, paired=True)[0] for images in (100, 99))
    assert bootstrap.too_few(enough) == []
    assert re.search(r"\(99 of female, 99 of male\).*fewer than 100 a 95 % interval", *bootstrap.too_few(few))
    # scenes are counted, and not their images
    thrice = replace(enough, records=tuple(replace(r, pair=f"{r.pair[:-1]}x") for r in enough.records))
    assert "(10 of female, 10 of male)" in bootstrap.too_few(thrice)[0]
    alone = replace(enough, records=tuple(r for r in enough.records if r.group == "male" or r.pair == "scene 7"))
    assert "(1 of female)" in bootstrap.too_few(alone)[0]


def test_unpaired_groups_are_drawn_apart(split_of):
    split, _, _ = split_of(0, images=9)
    draws = bootstrap.draw(split, 20, 0).T[1:]
    assert (draws[:, :9].sum(axis=1) == 9).all()
    assert not np.array_equal(draws[:, :9], draws[:, 9:])


def test_images_of_mixtures_of_their_own_vary_as_others_do(split_of):
    """Of six groups, hardly two images show the same ones: each alone in its stratum, all would be certain."""
    split, _, _ = split_of(0, images=100)
    names, rng = ["female", "male", *"abcd"], np.random.default_rng(0)
    owners = [tuple(rng.choice(names, len(r.boxes))) if i % 4 else (r.group,) for i, r in enumerate(split.records)]
    often = [("female", "male") if i % 4 == 2 else own for i, own in enumerate(owners)]
    records = tuple(replace(r, group="", owners=own) for r, own in zip(split.records, often, strict=True))
    draws = bootstrap.draw(replace(split, records=records), 400, 0)[:, 1:]
    assert draws.var(axis=1).mean() > 0.9
    # as many as there are of each group alone, and of a mixture that is no rarity
    for groups in (("female",), ("male",), ("female", "male")):
        mine = np.array([record.groups == groups for record in records])
        assert mine.sum() >= 20
        assert (draws[mine].sum(axis=0) == mine.sum()).all()
    assert draws[[len(set(own)) > 2 for own in often]].sum(axis=0).std() > 0


@pytest.mark.usefixtures("few_replicates")
def test_no_change_is_no_change(split_of):
    split, before, _ = split_of(2)
    for gap in MetricFrame(split, before, before, samples=20, metrics=["AP", "AR1"]).difference["female"].values():
        assert gap["change"] == 0
        assert gap["ci95"] == [0, 0]
        assert gap["p_value"] == 1


def test_a_clear_change_is_told_from_noise(split_of):
    split, before, _ = split_of(2, images=40)
    lifted = [
        Detections(r.image_id, np.linspace(1, 0.9, len(r.labels)), r.labels, r.boxes) if r.group == "female" else d
        for r, d in zip(split.records, before, strict=True)
    ]
    gap = MetricFrame(split, before, lifted, samples=200).difference["female"]["AP"]
    assert gap["ci95"][1] < 0
    assert gap["p_value"] == pytest.approx(2 / 201)


def test_standard_error_is_the_spread_over_data_sets(split_of):
    runs = [split_of(100 + seed, images=40, crowds=False) for seed in range(30)]
    gaps = [
        MetricFrame(split, detections, samples=0).difference["female"]["AP"]["value"] for split, detections, _ in runs
    ]
    frames = [MetricFrame(*run[:2], samples=60, metrics=["AP"]) for run in runs[:10]]
    errors = [frame.difference["female"]["AP"]["standard_error"] for frame in frames]
    assert 0.6 < np.mean(errors) / np.std(gaps, ddof=1) < 1.6


def test_pieces_of_the_table_do_not_matter(split_of, monkeypatch):
    split, before, after = split_of(1)
    whole = MetricFrame(split, before, after, samples=30).drawn
    monkeypatch.setattr(matching, "_TABLE", 300)
    np.testing.assert_equal(MetricFrame(split, before, after, samples=30).drawn, whole)


def test_replicates_without_ground_truth_are_left_out(record):
    rng = np.random.default_rng(0)
    filled = (0, 1, 2, 3, 4, 20, 21, 22, 23)
    records = [record(i, "female" if i < 9 else "male", [[10, 10, 40, 40]] if i in filled else []) for i in range(24)]
    before, after = (
        [Detections(r.image_id, rng.random(1), np.array([1]), np.array([[10.0, 10, 40, side]])) for r in records]
        for side in (30, 40)
    )
    split = Split(name="test", records=tuple(records), categories={1: "person"}, anchor="female", reference="male")
    frame = MetricFrame(split, before, after, samples=400, metrics=["AP"])
    missing = [np.isnan(values["AP"]).sum() for each in frame.drawn for values in each.values()]
    assert 0 < max(missing) < 10
    for row in (*frame.by_group.values(), *frame.difference.values()):
        assert np.isfinite([row["AP"]["p_value"], *row["AP"]["ci95"]]).all()
    # of two images to find something in, a tenth of the replicates has none: that says nothing of the error
    few = replace(
        split,
        records=tuple(replace(r, crowd=r.crowd | (r.image_id > 1)) for r in split.records[:9]) + split.records[9:],
    )
    row = MetricFrame(few, before, after, samples=400, metrics=["AP"]).by_group["female"]["AP"]
    assert np.isfinite(row["baseline"])
    assert not any(row[name] for name in ("standard_error", "ci95", "p_value", "baseline_ci95", "perturbed_ci95"))
    nothing = [
        replace(r, boxes=np.zeros((0, 4)), labels=r.labels[:0], areas=r.areas[:0], crowd=r.crowd[:0]) for r in records
    ]
    split = Split(name="test", records=tuple(nothing), categories={1: "person"}, anchor="female", reference="male")
    gap = MetricFrame(split, before, after, samples=5).difference["female"]["AP"]
    assert np.isnan(gap["change"])
    assert gap["ci95"] is None
    assert gap["p_value"] is None


@pytest.mark.parametrize(
    ("baseline", "relative"), [(5e-5, 199), (-5e-5, -201), (4e-5, None), (1e-17, None), (0.0, None)]
)
def test_nothing_is_a_share_of_a_number_that_is_shown_as_zero(baseline, relative):
    found = change(np.array([baseline]), np.array([0.01]))["relative_change"]
    assert found == (None if relative is None else pytest.approx(relative))


@pytest.mark.parametrize(("samples", "told"), [(2, False), (39, False), (40, True)])
def test_of_fewer_than_forty_replicates_there_is_no_interval(samples, told, split_of):
    split, before, after = split_of(0)
    row = MetricFrame(split, before, after, samples=samples, metrics=["AP"]).difference["female"]["AP"]
    assert [row[name] is not None for name in ("ci95", "baseline_ci95", "perturbed_ci95")] == [told] * 3
    assert row["standard_error"] > 0


def test_without_samples_there_is_no_interval(split_of):
    split, before, after = split_of(0)
    gap = MetricFrame(split, before, after, samples=0).difference["female"]["AP"]
    assert gap["ci95"] is None
    assert gap["p_value"] is None
    assert MetricFrame(split, before, samples=0).difference["female"]["AP"]["standard_error"] is None


def test_too_little_to_resample_is_refused(split_of):
    split, before, after = split_of(0, images=1)
    with pytest.raises(FaapError, match="group 'female' has a single image or scene"):
        MetricFrame(split, before, after, samples=10)
    assert MetricFrame(split, before, after, samples=0).difference["female"]["AP"]["ci95"] is None
    split, before, after = split_of(0)
    with pytest.raises(FaapError, match="-1 bootstrap samples"):
        MetricFrame(split, before, after, samples=-1)
