"""What the numbers say, in words."""

import math
from collections.abc import Mapping
from typing import Any

# changes below this are shown as none, because four decimals are printed
_VISIBLE = 5e-5


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """A number with a true minus sign; a dash for what could not be computed."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """A share as a signed percentage with one decimal; a dash for what could not be computed."""
    return "–" if value is None else f"{number(100 * value, 1, sign=True)} %"


def interval(bounds: list[float] | None) -> str:
    """An interval as "low to high"; a dash for what could not be computed."""
    return "–" if bounds is None else " to ".join(number(bound, sign=True) for bound in bounds)


def difference(before: float | None, after: float | None) -> float | None:
    """after − before, None if either is."""
    return None if before is None or after is None else after - before


def gap_sentence(metrics: Mapping[str, Any], anchor: str, reference: str) -> str:
    """What happened to the AP gap, and whether noise could have done it."""
    gap = metrics["gap"]["AP"]
    name = f"the AP gap ({reference} − {anchor})"
    before, after, change = gap["baseline"], gap["perturbed"], gap["change"]
    if change is None:
        return f"On the {metrics['split']} split {name} could not be computed."
    if abs(change) < _VISIBLE:
        moved = f"stayed at {number(before)}"
    else:
        size = "" if before >= 0 else " in size"
        verb = "decreased" if abs(after) < abs(before) else "increased"
        turned = " and now points the other way" if before * after < 0 else ""
        relative = "" if gap["relative_change"] is None else f", {percent(gap['relative_change'])}"
        moved = f"{verb}{size} from {number(before)} to {number(after)} ({number(change, sign=True)}{relative}){turned}"
    if gap["ci95"] is None:
        verdict = "no interval was computed, so nothing can be said about noise"
    else:
        low, high = gap["ci95"]
        told = "is distinguishable from noise" if low > 0 or high < 0 else "is not distinguishable from noise"
        p = "" if gap["p_value"] is None else f", p = {number(gap['p_value'], 3)}"
        verdict = f"the change {told} (95 % interval {interval(gap['ci95'])}{p})"
    return f"On the {metrics['split']} split {name} {moved}; {verdict}."


def group_sentence(metrics: Mapping[str, Any], anchor: str, reference: str) -> str:
    """What happened to the AP of both groups, and which of them moved the gap."""

    def moved(group: str) -> tuple[str, float | None]:
        before, after = (metrics[name][group]["AP"] for name in ("baseline", "perturbed"))
        change = difference(before, after)
        if change is None:
            return "could not be computed", None
        if abs(change) < _VISIBLE:
            return f"stayed at {number(before)}", change
        verb = "rose" if change > 0 else "fell"
        return f"{verb} from {number(before)} to {number(after)} ({number(change, sign=True)})", change

    (anchor_text, lifted), (reference_text, raised) = moved(anchor), moved(reference)
    text = f"The AP of {anchor} images {anchor_text}, that of {reference} images {reference_text}"
    gap = metrics["gap"]["AP"]
    if lifted is not None and raised is not None and abs(gap["change"]) >= _VISIBLE:
        if lifted < 0 and raised < 0:
            text += "; both groups are found less well than before"
        elif abs(gap["perturbed"]) < abs(gap["baseline"]):
            cause = (
                f"{anchor} images are found better" if lifted > -raised else f"{reference} images are found less well"
            )
            text += f"; the gap is smaller mostly because {cause}"
    return f"{text}."


def criteria_rows(metrics: Mapping[str, Any], anchor: str, reference: str) -> list[dict[str, Any]]:
    """The success criteria as rows: label, baseline, value, target as text, met."""
    before = metrics["baseline"]
    labels = {
        "ap_gap": (f"AP gap ({reference} − {anchor})", metrics["gap"]["AP"]["baseline"], "size at most"),
        "ar_gap": (f"AR gap ({reference} − {anchor})", metrics["gap"]["AR"]["baseline"], "size at most"),
        "anchor_ap": (f"{anchor} AP", before[anchor]["AP"], "at least"),
        "reference_ap": (f"{reference} AP", before[reference]["AP"], "at least"),
    }
    return [
        {
            "label": label,
            "baseline": number(baseline),
            "value": number(metrics["success"][name]["value"]),
            "target": f"{bound} {number(metrics['success'][name]['target'])}",
            "met": metrics["success"][name]["met"],
        }
        for name, (label, baseline, bound) in labels.items()
    ]
