"""Experiments whose truth is known: the interval holds it as often as it says."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
from scipy.stats import binom

from faap.evaluation import MetricFrame

TOOL = Path(__file__).parents[2] / "tools" / "measure_coverage.py"


def test_the_interval_of_a_gap_holds_the_truth_in_95_of_100_experiments():
    spec = spec_from_file_location("measure_coverage", TOOL)
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)

    truth, _ = json.loads(tool.OUT.read_text())["truth"]["AP"]  # of many images
    assert truth > 0.1
    covered = 0
    for experiment in range(400):
        split, (found,) = tool.simulate(100, np.random.default_rng([1, experiment]), tool.FOUND)
        gap = MetricFrame(split, found, samples=200, metrics=["AP"]).difference["female"]["AP"]
        low, high = gap["ci95"]
        covered += low <= truth <= high
    few, many = binom.ppf([0.005, 0.995], 400, 0.95)
    assert few <= covered <= many
