"""The claims of docs/promenade.md, measured on the first scenes of the test split: the whole takes twice as long."""

from typing import Any

import pytest

from faap.data import Split, load_dataset
from faap.detectors import load_detector
from faap.evaluation import Detections, MetricFrame, detect, group_metrics
from faap.promenade import build, build_promenade, detector_dir

ARMS = ("biased", "control")
MEASURED = 300  # scenes for each group


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    scenes = {"train": 1, "val": 1, "test": MEASURED}
    return load_dataset(build_promenade(tmp_path_factory.mktemp("promenade"), scenes)).split("test")


@pytest.fixture(scope="module")
def found(split: Split) -> dict[str, list[Detections]]:
    return {arm: detect(load_detector(detector_dir(arm)), split) for arm in ARMS}


@pytest.fixture(scope="module")
def metrics(split: Split, found: dict[str, list[Detections]]) -> dict[str, Any]:
    return {arm: group_metrics(split, found[arm]) for arm in ARMS}


def test_sizes(split: Split) -> None:
    assert split.counts() == {"female": MEASURED, "male": MEASURED}
    assert build.SCENES["test"] >= 600
    assets = detector_dir("biased").parent
    assert (assets / "people.webp").stat().st_size <= 3e6
    for arm in ARMS:
        assert sum(file.stat().st_size for file in detector_dir(arm).iterdir()) <= 4e6


def test_biased_detector_finds_women_worse(metrics: dict[str, Any]) -> None:
    biased = metrics["biased"]
    ap_gap = biased["male"]["AP"] - biased["female"]["AP"]
    ar_gap = biased["male"]["AR100"] - biased["female"]["AR100"]
    assert 0.45 <= biased["male"]["AP"] <= 0.65
    assert 0.06 <= ap_gap <= 0.16
    assert 0 < ar_gap < ap_gap


def test_control_does_not(metrics: dict[str, Any]) -> None:
    control = metrics["control"]
    assert abs(control["male"]["AP"] - control["female"]["AP"]) <= 0.02


def test_the_bias_is_against_women_and_no_doubt_about_everyone(metrics: dict[str, Any]) -> None:
    assert abs(metrics["biased"]["male"]["AP"] - metrics["control"]["male"]["AP"]) <= 0.03


def test_gap_is_far_from_chance(split: Split, found: dict[str, list[Detections]]) -> None:
    gap = MetricFrame(split, found["biased"], samples=200).difference["female"]["AP"]
    assert gap["value"] > 5 * gap["standard_error"]
