"""The success criteria, on the numbers of the study and on others."""

import math

import pytest

from faap.evaluation import success_criteria


def metrics(anchor_ap, reference_ap, ar_gap):
    return {"f": {"AP": anchor_ap, "AR100": 0.5}, "m": {"AP": reference_ap, "AR100": 0.5 + ar_gap}}


BASELINE = metrics(0.404, 0.5103, 0.0081)


def met(perturbed, baseline=BASELINE, **options):
    result = success_criteria(baseline, perturbed, anchor="f", reference="m", **options)
    return {name: entry["met"] for name, entry in result.items()}


def test_the_study_itself():
    third = metrics(0.413, 0.517, 0.0026)  # the best run before the fourth: AP gap 0.104
    absolute = success_criteria(BASELINE, third, anchor="f", reference="m", absolute=True)
    assert {name: entry["target"] for name, entry in absolute.items()} == {
        "ap_gap": 0.100,
        "ar_gap": 0.005,
        "anchor_ap": 0.410,
        "reference_ap": 0.511,
    }
    assert met(third, absolute=True) == {"ap_gap": False, "ar_gap": True, "anchor_ap": True, "reference_ap": True}
    assert absolute["ap_gap"]["value"] == pytest.approx(0.104)


def test_relative_targets_are_shares_of_the_baseline():
    result = success_criteria(BASELINE, BASELINE, anchor="f", reference="m")
    assert result["ap_gap"]["target"] == pytest.approx(0.1063 - 0.06 * 0.1063)
    assert result["ar_gap"]["target"] == pytest.approx(0.0081 - 0.38 * 0.0081)
    assert result["anchor_ap"]["target"] == pytest.approx(0.404 + 0.015 * 0.404)
    assert result["reference_ap"]["target"] == 0.5103
    assert met(BASELINE) == {"ap_gap": False, "ar_gap": False, "anchor_ap": False, "reference_ap": True}
    assert all(met(metrics(0.4101, 0.5104, 0.005)).values()) is False  # the gap went down by 5.6 % only
    assert all(met(metrics(0.4110, 0.5104, 0.005)).values())


def test_exactly_reaching_a_relative_target_is_enough_an_absolute_bound_is_strict():
    assert met(metrics(0.4, 0.494, 0.0), metrics(0.4, 0.5, 0.0))["ap_gap"]
    assert not met(metrics(0.410, 0.510, 0.0), absolute=True)["ap_gap"]
    assert not met(metrics(0.410, 0.511, 0.0), absolute=True)["anchor_ap"]
    assert met(metrics(0.410, 0.511, 0.0), absolute=True)["reference_ap"]


def test_turning_the_gap_round_is_not_closing_it():
    assert met(metrics(0.60, 0.52, 0.0))["ap_gap"]
    assert not met(metrics(0.70, 0.52, 0.0))["ap_gap"]
    assert not met(metrics(0.45, 0.40, 0.0), metrics(0.42, 0.40, 0.0))["ap_gap"]


def test_what_could_not_be_computed_is_not_met():
    assert not any(met({"f": {"AP": math.nan, "AR100": math.nan}, "m": {"AP": math.nan, "AR100": math.nan}}).values())
