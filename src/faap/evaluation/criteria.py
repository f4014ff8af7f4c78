"""The success criteria of infonce_4th (spec/recipes.md, "Success criteria"), and what makes them worthless."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from faap.evaluation.bootstrap import Replicates
from faap.evaluation.gaps import GAPS, HEADLINE, gap, headline
from faap.evaluation.statistics import percentile_interval

MET, NOT_MET, UNKNOWN = "met", "not met", "cannot be told"
# below either a detector finds nobody to speak of
DEAD_AP, DEAD_AR = 0.01, 0.05
# differences below this are rounding
_ROUNDING = 1e-12

Metrics = Mapping[str, Mapping[str, float]]


class Goal(NamedTuple):
    """One criterion.

    Attributes:
        share: of the baseline's number, on any data.
        absolute: the number itself, on the data of the study the recipe comes from.
        is_met_by_equality: whether the number itself is enough: it is for "no lower than", and for nothing that asks
            for a change.
    """

    share: float
    absolute: float
    is_met_by_equality: bool = False


GOALS = {
    "ap_gap": Goal(0.94, 0.100),
    "ar_gap": Goal(0.62, 0.005),
    "anchor_ap": Goal(1.015, 0.410),
    "reference_ap": Goal(1.0, 0.511, is_met_by_equality=True),
}


def success_criteria(
    baseline: Metrics,
    perturbed: Metrics,
    replicates: Sequence[Replicates],
    *,
    anchor: str,
    reference: str,
    absolute: bool = False,
) -> dict[str, dict[str, Any]]:
    """Hold the metrics with the generator against the goals of the fourth recipe.

    Relative goals: AP gap −6 %, AR gap −38 %, anchor AP +1.5 %, reference AP no lower than baseline. Absolute ones: AP
    gap < 0.100, AR gap < 0.005, anchor AP > 0.410, reference AP ≥ 0.511. A gap counts by its size, so turning it round
    is no way to meet its goal.

    A relative target is measured on the same images as the value, so what is judged is their paired difference in
    every bootstrap replicate, such as |perturbed gap| − 0.94·|baseline gap|. A criterion is met if the whole 95 %
    interval of the difference lies on the right side, not met if the whole of it lies on the wrong side, and cannot be
    told else. "No lower" has no margin: noise of a hundredth of a point would be within any, and a loss that is
    certain would be called none. So it is met by a gain that is certain, or where nothing changes at all; else the
    lower end of the interval says how much may have been lost.

    Nothing can be told without replicates, of unknown numbers, by a share of a gap that is not there (the anchor group
    found no worse at the baseline); and what is met by a detector that finds nobody, in both groups before or after or
    in a group that the criterion is about, is not called met.

    Args:
        baseline: group → metrics (AP, AR100, …) without the generator.
        perturbed: the same with it.
        replicates: baseline's and perturbed's from the same redrawn images.
        anchor: name of the anchor group.
        reference: name of the reference group.
        absolute: the study's own numbers instead of shares of the baseline.

    Returns:
        For ap_gap, ar_gap, anchor_ap and reference_ap: value (the metric with the generator), target (what it is held
        against, a bound on the size for a gap), difference of the two, its ci95, verdict, and met (whether it is).
    """
    before, after = (headline(metrics, anchor, reference) for metrics in (baseline, perturbed))
    drawn_before, drawn_after = (headline(drawn, anchor, reference) for drawn in replicates)
    blind = {group for group in (anchor, reference) if is_dead(perturbed[group])}
    useless = len(blind) == 2 or all(is_dead(baseline[group]) for group in (anchor, reference))
    result = {}
    for name, goal in GOALS.items():
        whose, _ = HEADLINE[name]
        target, targets = (
            goal.absolute if absolute else goal.share * abs(values) for values in (before[name], drawn_before[name])
        )
        interval = percentile_interval((abs(drawn_after[name]) - targets)[1:])
        difference = float(abs(after[name]) - target)
        verdict = _verdict(goal, -1 if whose == "gap" else 1, difference, interval)
        about = {"gap": {anchor, reference}, "anchor": {anchor}, "reference": {reference}}[whose]
        nothing_to_shrink = whose == "gap" and not absolute and not before[name] > 0
        if nothing_to_shrink or (verdict == MET and (useless or about & blind)):
            verdict = UNKNOWN
        result[name] = {
            "value": float(after[name]),
            "target": float(target),
            "difference": difference,
            "ci95": interval,
            "verdict": verdict,
            "met": verdict == MET,
        }
    return result


def _verdict(goal: Goal, sign: int, difference: float, interval: list[float] | None) -> str:
    if interval is None or not np.isfinite(difference):
        return UNKNOWN
    low, high = sorted(sign * bound for bound in interval)  # the right side is that above zero
    edge = -_ROUNDING if goal.is_met_by_equality else _ROUNDING
    return MET if low > edge else NOT_MET if high <= edge else UNKNOWN


def verdict_of(criterion: Mapping[str, Any]) -> str:
    """Return a criterion's verdict as metrics.json holds it; one of before there were three was met or not met."""
    said = criterion.get("verdict")
    return said if said in (MET, NOT_MET, UNKNOWN) else MET if criterion["met"] else NOT_MET


def is_dead(metrics: Mapping[str, float | None]) -> bool:
    """Whether AP or AR@100 say that a detector finds nobody to speak of; numbers that are unknown do not."""
    ap, ar = metrics.get("AP"), metrics.get("AR100")
    return (ap is not None and ap < DEAD_AP) or (ar is not None and ar < DEAD_AR)


def warnings_about(
    baseline: Metrics, perturbed: Metrics, *, anchor: str, reference: str, absolute: bool = False
) -> list[str]:
    """Say what makes a result worthless: who is not found at all, whose numbers are unknown, which gap is none."""
    said = []
    if unknown := [group for group, metrics in baseline.items() if np.isnan(metrics["AP"])]:
        said.append(f"There is nothing to find of group {', '.join(unknown)} in what is measured: no numbers, no gap.")
    blind: list[str] = []
    for which, metrics, cause in (
        ("Without", baseline, "right checkpoint? right class names?"),
        ("With", perturbed, "the perturbation blinds it."),
    ):
        if dead := [group for group in metrics if is_dead(metrics[group]) and group not in blind]:
            whom = "" if len(dead) == len(metrics) else f" of group {', '.join(dead)}"
            numbers = ", ".join(f"{group} AP {metrics[group]['AP']:.4f}" for group in dead)
            said.append(f"{which} the generator the detector finds nobody{whom} to speak of ({numbers}): {cause}")
        blind += dead
    for name, metric in GAPS.items():
        size = gap(baseline, metric, anchor, reference)
        if size <= 0 and not absolute and not all(is_dead(baseline[group]) for group in (anchor, reference)):
            said.append(
                f"Without the generator the {name} gap ({reference} − {anchor}) is {size:.4f}: {anchor} is found no "
                "worse there, so there is nothing to shrink, and whether it shrank as it should cannot be told."
            )
    return said
