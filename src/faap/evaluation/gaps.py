"""The numbers by which two groups are compared: one table of them, and the gap between the groups in each."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from faap.evaluation.statistics import estimate

# group -> metric -> its value (None where unknown), or replicates of it
Metrics = Mapping[str, Mapping[str, Any]]

# a gap's name -> the metric of both groups whose difference it is
GAPS = {"AP": "AP", "AR": "AR100"}

# what criteria, comparisons and charts speak of -> whose number it is (the gap's, or a group's), and which
HEADLINE = {
    "ap_gap": ("gap", "AP"),
    "ar_gap": ("gap", "AR"),
    "anchor_ap": ("anchor", "AP"),
    "reference_ap": ("reference", "AP"),
}


def gap(metrics: Metrics, metric: str, anchor: str, reference: str) -> Any:
    """Return reference − anchor in one metric, of numbers or arrays alike; None if either is None."""
    return difference(metrics[anchor][metric], metrics[reference][metric])


def difference(before: Any, after: Any) -> Any:
    """Return after − before; None if either is."""
    return None if before is None or after is None else after - before


def headline(metrics: Metrics, anchor: str, reference: str) -> dict[str, Any]:
    """Return the numbers of `HEADLINE` from metrics by group (numbers, None where unknown, or arrays)."""
    groups = {"anchor": anchor, "reference": reference}
    return {
        name: gap(metrics, GAPS[metric], anchor, reference) if whose == "gap" else metrics[groups[whose]][metric]
        for name, (whose, metric) in HEADLINE.items()
    }


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values ready for JSON: None for every number that could not be computed, `estimate` of replicates."""
    return {key: _known(value) for key, value in values.items()}


def _known(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = estimate(value)
    if isinstance(value, list):
        return [_known(each) for each in value]
    if isinstance(value, dict):
        return without_nan(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
