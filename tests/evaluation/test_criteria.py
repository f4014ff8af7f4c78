"""The success criteria: three verdicts, by the interval of the paired difference, and what is worth no verdict."""

import numpy as np
import pytest

from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN, success_criteria, verdict_of, warnings_about

KEYS = ("ap_gap", "ar_gap", "anchor_ap", "reference_ap")


def metrics(anchor_ap, reference_ap, ar_gap, anchor_ar=0.5):
    return {"f": {"AP": anchor_ap, "AR100": anchor_ar}, "m": {"AP": reference_ap, "AR100": anchor_ar + ar_gap}}


BASELINE = metrics(0.404, 0.5103, 0.0081)
GOOD = metrics(0.420, 0.512, 0.004)  # AP gap −13 %, AR gap −51 %, anchor +4 %, reference +0.3 %


def drawn(values, rng, shared, own):
    """200 replicates: what all redrawn images have in common moves both detectors alike, the rest each by itself."""
    return {
        group: {
            name: np.concatenate([[value], value + shared[group] + own * rng.normal(size=200)])
            for name, value in each.items()
        }
        for group, each in values.items()
    }


def judged(perturbed, baseline=BASELINE, *, own=1e-6, shared=0.02, **options):
    rng = np.random.default_rng(0)
    moves = dict.fromkeys(baseline, shared * rng.normal(size=200))
    replicates = [drawn(baseline, rng, moves, 0.0), drawn(perturbed, rng, moves, own)]
    result = success_criteria(baseline, perturbed, replicates, **options)
    for entry in result.values():
        assert entry["met"] == (entry["verdict"] == MET)
        assert verdict_of(entry) == entry["verdict"]
    return result


def verdicts(*rest, **options):
    return [judged(*rest, **options)[name]["verdict"] for name in KEYS]


def test_the_study_itself():
    third = metrics(0.413, 0.517, 0.0026)  # the best run before the fourth: AP gap 0.104
    absolute = judged(third, shared=1e-6, absolute=True)
    assert {name: entry["target"] for name, entry in absolute.items()} == {
        "ap_gap": 0.100,
        "ar_gap": 0.005,
        "anchor_ap": 0.410,
        "reference_ap": 0.511,
    }
    assert [absolute[name]["verdict"] for name in KEYS] == [NOT_MET, MET, MET, MET]
    assert absolute["ap_gap"]["value"] == pytest.approx(0.104)
    # against a number of other data, what the redrawn images have in common is noise
    assert verdicts(third, absolute=True)[2:] == [UNKNOWN, UNKNOWN]


def test_relative_targets_are_shares_of_the_baseline():
    result = judged(GOOD)
    assert result["ap_gap"]["target"] == pytest.approx(0.1063 - 0.06 * 0.1063)
    assert result["ar_gap"]["target"] == pytest.approx(0.0081 - 0.38 * 0.0081)
    assert result["anchor_ap"]["target"] == pytest.approx(0.404 + 0.015 * 0.404)
    assert result["reference_ap"]["target"] == 0.5103
    for entry in result.values():
        assert entry["difference"] == pytest.approx(entry["value"] - entry["target"])
        assert entry["ci95"][0] <= entry["difference"] <= entry["ci95"][1]
    assert [entry["verdict"] for entry in result.values()] == [MET] * 4


def test_the_same_difference_is_met_not_met_or_cannot_be_told_by_its_noise():
    assert verdicts(GOOD, own=1e-4) == [MET] * 4
    assert verdicts(GOOD, own=0.05) == [UNKNOWN] * 4
    bad = metrics(0.40, 0.509, 0.009)
    assert verdicts(bad, own=1e-5) == [NOT_MET] * 4
    assert verdicts(bad, own=0.05) == [UNKNOWN] * 4


def test_noise_that_both_share_is_none():
    """Redrawn images move both detectors by 2 points, thrice what the generator does."""
    assert verdicts(metrics(0.4115, 0.5103 + 0.0065, 0.003), own=1e-4, shared=0.02)[2:] == [MET, MET]


def test_the_interval_is_of_sizes_in_every_replicate():
    """A gap around zero: by its size it is far from as small as a difference of signed gaps would have it."""
    rng = np.random.default_rng(3)
    replicates = [
        {group: {name: np.array([value, *(value + 0.05 * rng.normal(size=50))]) for name, value in each.items()}
         for group, each in values.items()}
        for values in (metrics(0.4, 0.41, 0.01), metrics(0.4, 0.405, 0.01))
    ]  # fmt: skip
    found = success_criteria(metrics(0.4, 0.41, 0.01), metrics(0.4, 0.405, 0.01), replicates)
    before, after = replicates
    expected = [
        abs(after["m"]["AP"][i] - after["f"]["AP"][i]) - 0.94 * abs(before["m"]["AP"][i] - before["f"]["AP"][i])
        for i in range(1, 51)
    ]
    assert found["ap_gap"]["ci95"] == pytest.approx(np.percentile(expected, [2.5, 97.5]))
    expected = [after["f"]["AP"][i] - 1.015 * before["f"]["AP"][i] for i in range(1, 51)]
    assert found["anchor_ap"]["ci95"] == pytest.approx(np.percentile(expected, [2.5, 97.5]))


def test_a_millionth_below_is_no_loss_that_can_be_told():
    assert verdicts(metrics(0.404, 0.5103 - 1.5e-6, 0.0081), own=1e-4)[3] == UNKNOWN


def test_where_nothing_changes_nothing_is_lost_and_nothing_reduced():
    result = judged(BASELINE, own=0.0)
    assert result["reference_ap"]["ci95"] == [0, 0]
    assert [result[name]["verdict"] for name in KEYS] == [NOT_MET, NOT_MET, NOT_MET, MET]
    # also where the gap happens to be zero in some replicates
    values = {"AP": np.array([0.4, 0.4, 0.4, 0.5, 0.5] * 9), "AR100": np.array([0.5, 0.5, 0.5, 0.5, 0.5] * 9)}
    others = {"AP": np.array([0.5, 0.4, 0.5, 0.5, 0.5] * 9), "AR100": np.array([0.6, 0.6, 0.5, 0.5, 0.5] * 9)}
    replicates = [{"f": values, "m": others}] * 2
    same = {group: {name: each[0] for name, each in by_name.items()} for group, by_name in replicates[0].items()}
    found = success_criteria(same, same, replicates)
    assert [found[name]["verdict"] for name in KEYS] == [NOT_MET, NOT_MET, NOT_MET, MET]


def test_turning_the_gap_round_is_not_closing_it():
    assert verdicts(metrics(0.60, 0.52, 0.0))[0] == MET
    assert verdicts(metrics(0.70, 0.52, 0.0))[0] == NOT_MET


@pytest.mark.parametrize("reference_ap", [0.404, 0.38])
def test_a_share_of_a_gap_that_is_none_cannot_be_told(reference_ap):
    before = metrics(0.404, reference_ap, -0.01)
    for after in (metrics(0.404, reference_ap - 0.05, 0.0), metrics(0.404, 0.404, 0.0), before):
        assert verdicts(after, before)[:2] == [UNKNOWN, UNKNOWN]
    said = warnings_about(before, before)
    assert f"the AP gap (m − f) is {reference_ap - 0.404:.4f}" in said[0]
    assert "the AR gap (m − f) is -0.0100" in said[1]
    assert "cannot be told" in said[0]
    assert ("nothing is there to shrink" in said[0]) == (reference_ap == 0.404)
    assert ("m is the one that is found worse (exchange" in said[0]) == (reference_ap != 0.404)
    assert "m is the one that is found worse (exchange" in said[1]
    # against an absolute bound it can
    assert verdicts(metrics(0.404, 0.404, 0.0), before, absolute=True)[:2] == [MET, MET]
    assert warnings_about(before, before, absolute=True) == []


def test_a_gap_that_is_shown_as_zero_is_none():
    before = metrics(0.404, 0.404 - 1e-7, 0.01)
    (said,) = warnings_about(before, before)
    assert "the AP gap (m − f) is 0.0000: nothing is there to shrink" in said


def test_without_replicates_or_numbers_nothing_can_be_told():
    single = [
        {group: {name: np.array([value]) for name, value in each.items()} for group, each in values.items()}
        for values in (BASELINE, GOOD)
    ]
    found = success_criteria(BASELINE, GOOD, single)
    assert {(entry["verdict"], entry["ci95"]) for entry in found.values()} == {(UNKNOWN, None)}
    unknown = metrics(np.nan, 0.5, np.nan)
    assert verdicts(unknown, unknown, own=0.0) == [UNKNOWN, UNKNOWN, UNKNOWN, MET]
    (said,) = warnings_about(unknown, unknown)
    assert "nothing to find of group f" in said


DEAD = metrics(0.0, 0.0, 0.0, anchor_ar=0.0)
NEARLY = metrics(0.004, 0.009, 0.02, anchor_ar=0.1)
UNSEEN = metrics(0.02, 0.03, 0.005, anchor_ar=0.03)


@pytest.mark.parametrize("dead", [DEAD, NEARLY, UNSEEN])
@pytest.mark.parametrize("other", [DEAD, NEARLY, UNSEEN, GOOD])
def test_a_detector_that_finds_nobody_meets_nothing(dead, other):
    for before, after in ((dead, other), (other, dead)):
        for absolute in (False, True):
            assert MET not in verdicts(after, before, shared=0.0, absolute=absolute)
    (said,) = [text for text in warnings_about(dead, dead) if "finds" in text]
    assert said.startswith("Without the generator the detector finds nobody")
    assert "right checkpoint? right class names?" in said


def test_a_generator_that_blinds_the_detector_is_told_from_a_wrong_detector():
    assert verdicts(DEAD, shared=0.0) == [UNKNOWN, UNKNOWN, NOT_MET, NOT_MET]
    (said,) = warnings_about(BASELINE, DEAD)
    assert said.startswith("With the generator the detector finds nobody to speak of (f AP 0.0000, m AP 0.0000)")
    assert "checkpoint" not in said


def test_one_group_that_is_not_found():
    half = {"f": {"AP": 0.0, "AR100": 0.0}, "m": {"AP": 0.5, "AR100": 0.6}}
    fewer = {"f": {"AP": 0.0, "AR100": 0.0}, "m": {"AP": 0.4, "AR100": 0.3}}
    # losing men is no way to be fair to women who are not found, and nothing is no more than nothing
    assert verdicts(fewer, half, own=0.0) == [UNKNOWN, UNKNOWN, NOT_MET, NOT_MET]
    assert verdicts(fewer, half, own=0.0, absolute=True)[0] == NOT_MET
    assert "finds nobody of group f to speak of (f AP 0.0000)" in warnings_about(half, fewer)[0]
    # found at last, they count
    assert verdicts(GOOD, half, own=1e-6) == [MET] * 4


def test_of_earlier_files_the_truth_value_is_read():
    assert [verdict_of({"met": met}) for met in (True, False)] == [MET, NOT_MET]
    assert verdict_of({"met": False, "verdict": UNKNOWN}) == UNKNOWN
    assert verdict_of({"met": False, "verdict": "?!"}) == NOT_MET


def test_groups_that_are_numbers_are_called_groups():
    before = {"6": {"AP": 0.5, "AR100": 0.6}, "1": {"AP": 0.4, "AR100": 0.5}}
    gaps = warnings_about(before, before)
    assert all("gap (group 1 − group 6)" in said and "group 1 is the one that is found worse" in said for said in gaps)
    dead = before | {"6": {"AP": 0.0, "AR100": 0.0}}
    assert "nobody of group 6 to speak of (group 6 AP 0.0000)" in warnings_about(dead, dead)[0]
