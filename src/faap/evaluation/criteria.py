"""The success criteria of infonce_4th (docs/recipes.md, "Success criteria"), and what makes them worthless."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from faap.data.fields import called
from faap.evaluation.gaps import GAPS, HEADLINE, Metrics, gap, headline
from faap.evaluation.statistics import VISIBLE, percentile_interval

MET, NOT_MET, UNKNOWN = "met", "not met", "cannot be told"
# below either a detector finds nobody to speak of
_DEAD = {"AP": 0.01, "AR100": 0.05}
NOTHING_TO_FIND = "There is nothing to find of group {} in what is measured: no numbers, no gap."
# differences below this are rounding
_ROUNDING = 1e-12

# a criterion's name -> its goal as a share of the baseline's number, on any data, and as the number itself, on the data
# of the study the recipe comes from; a share of 1 asks for no change, so the number itself is enough
GOALS = {"ap_gap": (0.94, 0.100), "ar_gap": (0.62, 0.005), "anchor_ap": (1.015, 0.410), "reference_ap": (1.0, 0.511)}


def success_criteria(
    baseline: Metrics, perturbed: Metrics, replicates: Sequence[Metrics], *, absolute: bool = False
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
        baseline: group → metrics (AP, AR100, …) without the generator, of the anchor group first and the reference
            group second.
        perturbed: the same with it.
        replicates: baseline's and perturbed's from the same redrawn images.
        absolute: the study's own numbers instead of shares of the baseline.

    Returns:
        For ap_gap, ar_gap, anchor_ap and reference_ap: value (the metric with the generator), target (what it is held
        against, a bound on the size for a gap), difference of the two, its ci95, verdict, and met (whether it is).
    """
    anchor, reference = list(baseline)[:2]
    numbers = [headline(each, anchor, reference) for each in (baseline, perturbed, *replicates)]
    unseen = all(is_dead(baseline[group]) for group in (anchor, reference))
    blind = {whose: is_dead(perturbed[group]) for whose, group in (("anchor", anchor), ("reference", reference))}
    blind["gap"] = any(blind.values())
    result = dict[str, dict[str, Any]]()
    for name, (share, bound) in GOALS.items():
        before, after, drawn_before, drawn_after = (each[name] for each in numbers)
        whose, _ = HEADLINE[name]
        target, targets = (bound if absolute else share * abs(values) for values in (before, drawn_before))
        difference = float(abs(after) - target)
        interval = percentile_interval((abs(drawn_after) - targets)[1:])
        verdict = UNKNOWN
        if interval is not None and np.isfinite(difference) and (whose != "gap" or absolute or before > 0):
            low, high = sorted(-end if whose == "gap" else end for end in interval)  # the right side is above zero
            edge = -_ROUNDING if share == 1 else _ROUNDING
            met = MET if not (unseen or blind[whose]) else UNKNOWN
            verdict = met if low > edge else NOT_MET if high <= edge else UNKNOWN
        result[name] = {"value": float(after), "target": float(target), "difference": difference, "ci95": interval}
        result[name] |= {"verdict": verdict, "met": verdict == MET}
    return result


def verdict_of(criterion: Mapping[str, Any]) -> str:
    """Return a criterion's verdict as metrics.json holds it; one of before there were three was met or not met."""
    said = criterion.get("verdict")
    return said if said in (MET, NOT_MET, UNKNOWN) else MET if criterion["met"] else NOT_MET


def is_dead(metrics: Mapping[str, float | None]) -> bool:
    """Whether AP or AR@100 say that a detector finds nobody to speak of; numbers that are unknown do not."""
    return any((value := metrics.get(name)) is not None and value < floor for name, floor in _DEAD.items())


def warnings_about(baseline: Metrics, perturbed: Metrics, *, absolute: bool = False) -> list[str]:
    """Say what makes a result worthless: who is not found at all, whose numbers are unknown, which gap is none."""
    (anchor, reference), said = list(baseline)[:2], []
    if unknown := [group for group, metrics in baseline.items() if np.isnan(metrics["AP"])]:
        said.append(NOTHING_TO_FIND.format(", ".join(unknown)))
    blind = [group for group in baseline if is_dead(baseline[group])]
    blinded = [group for group in perturbed if is_dead(perturbed[group]) and group not in blind]
    for which, metrics, dead, cause in (
        ("Without", baseline, blind, "right checkpoint? right class names?"),
        ("With", perturbed, blinded, "the perturbation blinds it."),
    ):
        if dead:
            whom = "" if len(dead) == len(metrics) else f" of group {', '.join(dead)}"
            numbers = ", ".join(f"{called(group)} AP {metrics[group]['AP']:.4f}" for group in dead)
            said.append(f"{which} the generator the detector finds nobody{whom} to speak of ({numbers}): {cause}")
    theirs = called(reference)
    for name, metric in GAPS.items():
        size = gap(baseline, metric, anchor, reference)
        if size <= 0 and not absolute and not {anchor, reference} <= set(blind):
            other = f"{theirs} is the one that is found worse (exchange --anchor_group and --reference_group)"
            none = other if size <= -VISIBLE else "nothing is there to shrink"
            begin = f"Without the generator the {name} gap ({theirs} − {called(anchor)}) is {size:z.4f}"
            said.append(f"{begin}: {none}, and whether it shrank as it should cannot be told.")
    return said
