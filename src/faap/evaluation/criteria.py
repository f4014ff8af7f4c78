"""The success criteria of infonce_4th (spec/recipes.md, "Success criteria")."""

import math
from collections.abc import Mapping
from typing import Any

# on the data of the study the recipe comes from
_ABSOLUTE = {"ap_gap": 0.100, "ar_gap": 0.005, "anchor_ap": 0.410, "reference_ap": 0.511}
# on other data, as shares of the baseline
_RELATIVE = {"ap_gap": 0.94, "ar_gap": 0.62, "anchor_ap": 1.015, "reference_ap": 1.0}


def success_criteria(
    baseline: Mapping[str, Mapping[str, float]],
    perturbed: Mapping[str, Mapping[str, float]],
    *,
    anchor: str,
    reference: str,
    absolute: bool = False,
) -> dict[str, dict[str, Any]]:
    """Hold the metrics with the generator against the goals of the fourth recipe.

    Relative goals: AP gap −6 %, AR gap −38 %, anchor AP +1.5 %, reference AP no lower than baseline. Absolute ones: AP
    gap < 0.100, AR gap < 0.005, anchor AP > 0.410, reference AP ≥ 0.511. A gap counts by its size, so turning it round
    is no way to meet its goal.

    Args:
        baseline: group → metrics (AP, AR100, …) without the generator.
        perturbed: the same with it.
        anchor: name of the anchor group.
        reference: name of the reference group.
        absolute: the study's own numbers instead of shares of the baseline.

    Returns:
        For ap_gap, ar_gap, anchor_ap and reference_ap: value (the metric with the generator), target (what it is held
        against, a bound on the size for a gap), met.
    """

    def values(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {
            "ap_gap": metrics[reference]["AP"] - metrics[anchor]["AP"],
            "ar_gap": metrics[reference]["AR100"] - metrics[anchor]["AR100"],
            "anchor_ap": metrics[anchor]["AP"],
            "reference_ap": metrics[reference]["AP"],
        }

    before, after = values(baseline), values(perturbed)
    result = {}
    for name, value in after.items():
        target = _ABSOLUTE[name] if absolute else _RELATIVE[name] * abs(before[name])
        reached = math.isclose(abs(value), target, abs_tol=1e-12) and (not absolute or name == "reference_ap")
        met = reached or (abs(value) < target if name.endswith("gap") else value > target)
        result[name] = {"value": value, "target": target, "met": met}
    return result
