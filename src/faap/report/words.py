"""What the numbers say, in words."""

import math
from collections.abc import Mapping
from typing import Any

from faap.evaluation import HEADLINE, headline, verdict_of
from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN

# changes below this are shown as none, because four decimals are printed
_VISIBLE = 5e-5

MARKS = {MET: "✓", NOT_MET: "✗", UNKNOWN: "?"}


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """A number with a true minus sign; a dash for what could not be computed."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """A share as a signed percentage with one decimal; a dash for what could not be computed."""
    return "–" if value is None else f"{number(100 * value, 1, sign=True)} %"


def interval(bounds: list[float] | None) -> str:
    """An interval as "low to high"; a dash for what could not be computed."""
    return "–" if bounds is None else " to ".join(number(bound, sign=True) for bound in bounds)


def spread(values: Mapping[str, float | None], sign: str = " ± ") -> str:
    """A mean with its standard deviation, if there is one."""
    std = values["std"]
    return number(values["mean"]) + ("" if std is None else f"{sign}{number(std)}")


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
        what = f"stayed at {number(before)}"
    else:
        size = "" if before >= 0 else " in size"
        verb = "decreased" if abs(after) < abs(before) else "increased"
        turned = " and now points the other way" if before * after < 0 else ""
        relative = "" if gap["relative_change"] is None else f", {percent(gap['relative_change'])}"
        what = f"{verb}{size} from {number(before)} to {number(after)} ({number(change, sign=True)}{relative}){turned}"
    if gap["ci95"] is None:
        verdict = "no interval was computed, so nothing can be said about noise"
    else:
        low, high = gap["ci95"]
        certainty = "is distinguishable from noise" if low > 0 or high < 0 else "is not distinguishable from noise"
        p = "" if gap["p_value"] is None else f", p = {number(gap['p_value'], 3)}"
        verdict = f"the change {certainty} (95 % interval {interval(gap['ci95'])}{p})"
    return f"On the {metrics['split']} split {name} {what}; {verdict}."


def group_sentence(metrics: Mapping[str, Any], anchor: str, reference: str) -> str:
    """What happened to the AP of both groups, and which of them moved the gap."""

    def what_happened(group: str) -> tuple[str, float | None]:
        before, after = (metrics[name][group]["AP"] for name in ("baseline", "perturbed"))
        change = difference(before, after)
        if change is None:
            return "could not be computed", None
        if abs(change) < _VISIBLE:
            return f"stayed at {number(before)}", change
        verb = "rose" if change > 0 else "fell"
        return f"{verb} from {number(before)} to {number(after)} ({number(change, sign=True)})", change

    (anchor_text, lifted), (reference_text, raised) = what_happened(anchor), what_happened(reference)
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


def notes(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any number: warnings, and categories that are not measured."""
    left_out = [
        f"{name} ({', '.join(groups)} {'has' if len(groups) == 1 else 'have'} none)"
        for name, groups in metrics.get("categories_left_out", {}).items()
    ]
    said = [f"Left out, since not all groups have them: {', '.join(left_out)}."] if left_out else []
    return [*metrics.get("warnings", []), *said]


def headline_name(name: str, anchor: str, reference: str, *, formula: str = "") -> str:
    """How one of the numbers of `HEADLINE` is called; the formula is added to a gap."""
    whose, metric = HEADLINE[name]
    groups = {"anchor": anchor, "reference": reference}
    return f"{metric} gap{formula}" if whose == "gap" else f"{groups[whose]} {metric}"


def criteria_rows(metrics: Mapping[str, Any], anchor: str, reference: str) -> list[dict[str, str]]:
    """The success criteria as rows of text: label, baseline, value, target, interval of the difference, verdict."""
    before = headline(metrics["baseline"], anchor, reference)
    rows = []
    for name, criterion in metrics["success"].items():
        bound = "size ≤" if HEADLINE[name][0] == "gap" else "≥"
        verdict = verdict_of(criterion)
        rows.append(
            {
                "label": headline_name(name, anchor, reference, formula=f" ({reference} − {anchor})"),
                "baseline": number(before[name]),
                "value": number(criterion["value"]),
                "target": f"{bound} {number(criterion['target'])}",
                "interval": interval(criterion.get("ci95")),
                "verdict": verdict,
                "mark": MARKS[verdict],
            }
        )
    return rows


def provenance_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a measurement comes from, as rows of text; before it was recorded in full, the detector's hash alone."""
    source = metrics.get("provenance")
    if source is None:
        return [("detector", metrics["detector_sha256"])]
    detector, generator = source["detector"], source["generator"]
    return [
        ("data", f"{source['dataset']}, {metrics['split']} split {source['split_sha256']}"),
        ("detector", f"{detector['name']}, file {detector['file_sha256']}, tensors {detector['tensors_sha256']}"),
        ("generator", f"{generator['arch']}, ε {generator['epsilon']:g}, {generator['sha256']}"),
        ("measured", f"{source['date']}, " + ", ".join(f"{name} {what}" for name, what in source["versions"].items())),
    ]
