"""An audit in words, in the terminal, and as a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Group
from rich.text import Text

from faap.audit.audit import DETECTOR, UNLABELLED
from faap.audit.errors import KINDS, TOTALS
from faap.data import Split, read_image
from faap.report import charts
from faap.report.page import render
from faap.report.terminal import columns, short, stacked
from faap.report.words import SHOWN, interval, named, number, share

# the causes that are told in words
_TOLD = 3


def estimate(found: Mapping[str, Any], *, sign: bool = False) -> str:
    """A number with its 95 % interval."""
    return f"{number(found['value'], sign=sign)} ({interval(found['ci95'], sign=sign)})"


def whom(audit: Mapping[str, Any]) -> str:
    """What is looked for, in the plural."""
    return "people" if audit["categories"] == ["person"] else "objects"


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]


def gap_sentence(audit: Mapping[str, Any]) -> str:
    """Whether there is a gap, and how sure that is."""
    anchor, reference, gap = audit["anchor"], audit["reference"], audit["gap"]
    aps = " and ".join(f"{estimate(audit['groups'][group]['AP'])} for {group}" for group in (anchor, reference))
    said = f"AP is {aps}: a gap of {estimate(gap, sign=True)}"
    if gap["ci95"] is None:
        return f"{said}. No interval could be computed, so nothing can be said of chance."
    low, high = gap["ci95"]
    if low > 0:
        return f"{said}. {_begin(anchor)} {whom(audit)} are found worse, and chance alone does not explain it."
    if high < 0:
        advice = "to ask why, exchange --anchor_group and --reference_group"
        return f"{said}. It is {reference} {whom(audit)} that are found worse; {advice}. No cause is named."
    return f"{said}. That may be chance: no gap to the disadvantage of {anchor} can be told, and no cause is named."


def cause_sentence(audit: Mapping[str, Any], cause: str) -> str:
    """How much of the gap a cause explains."""
    anchor, reference = audit["anchor"], audit["reference"]
    if cause == DETECTOR:
        found = audit["detector"]
        rest = f"is left once the pictures of {anchor} and {reference} are alike in all that was measured"
    elif cause == UNLABELLED:
        found = audit["unlabelled"]
        rates = " and ".join(map(estimate, found["each_image"].values()))
        nothing = f"detections of {audit['score']:g} or more of nothing that is annotated"
        rest = f"goes away once both have as many {nothing} ({rates} an image of {anchor} and {reference})"
    else:
        found = audit["confounders"][cause]
        means = " and ".join(map(estimate, found["means"].values()))
        rest = f"goes away once both are compared at equal {cause} ({means} in the mean of {anchor} and {reference})"
    return f"{_begin(cause)}: of the gap, {estimate(found['explained'])} {rest}."


def sentences(audit: Mapping[str, Any]) -> list[str]:
    """What came out, in plain words: the gap, its largest causes, what is wrong with the detections, the threshold."""
    anchor, reference = audit["anchor"], audit["reference"]
    said = [gap_sentence(audit)]
    said += [f"{n}. {cause_sentence(audit, cause)}" for n, cause in enumerate(audit["causes"][:_TOLD], 1)]
    if (audit["gap"]["ci95"] or [0])[0] > 0:
        if not audit["causes"]:
            said.append("None of the causes that were looked for explains it for sure.")
        if audit["detector"]["share"] is None:
            few = f"Too few {whom(audit)} of both groups are alike in all that was measured"
            said.append(f"{few}, so what is left of the gap cannot be told.")
    if DETECTOR in audit["causes"]:
        said += _error_sentence(audit)
    at, equal = audit["scores"]["at"], audit["scores"]["equal_recall"][anchor]
    recall = " and ".join(f"{estimate(at[group]['recall'])} of {group}" for group in (anchor, reference))
    sentence = f"At a score of {audit['score']:g} or more, recall is {recall} {whom(audit)}"
    if equal["threshold"]["value"] is not None:
        sentence += f"; for that of {reference}, {anchor} needs a threshold of {estimate(equal['threshold'])}"
        sentence += f", with a precision of {estimate(equal['precision'])}"
    return [*said, f"{sentence}."]


def _error_sentence(audit: Mapping[str, Any]) -> list[str]:
    """Whether the group that is found worse is missed or ranked below mistakes, whichever makes more of the gap."""
    anchor, reference, kinds = audit["anchor"], audit["reference"], audit["errors"]["kinds"]
    total = max(TOTALS, key=lambda name: kinds[name]["of_gap"]["value"] or 0)
    every, wrong = kinds[total], total == TOTALS[0]
    if (every["of_gap"]["ci95"] or [0])[0] <= 0:
        return []
    costs = " and ".join(f"{estimate(every['costs'][group])} {group}" for group in (anchor, reference))
    begin = f"It ranks {anchor} {whom(audit)} below mistakes" if wrong else f"It misses more {anchor} {whom(audit)}"
    part_of = f"of the AP50 gap of {estimate(audit['errors']['gap'])}, {estimate(every['of_gap'])}"
    said = f"{begin}: {part_of} would go away without {total}, which cost {costs} AP50."
    worst = max(KINDS[:-1], key=lambda kind: kinds[kind]["of_gap"]["value"] or 0)  # the last is "missed"
    each, part = kinds[worst], kinds[worst]["of_gap"]["value"] or 0
    if wrong and part > 0:
        much = "Most of it" if part > every["of_gap"]["value"] / 2 else "The largest part"
        counts = f"{anchor} has {each['count'][anchor]:,} of them, {reference} {each['count'][reference]:,}"
        said += f" {much} is {worst} errors, {estimate(each['of_gap'])}; {counts}."
    return [said]


def perturbation_sentences(audit: Mapping[str, Any]) -> list[str]:
    """What a generator changes, in plain words; nothing where none was measured."""
    found = audit.get("perturbation")
    if not found:
        return []
    anchor, groups = audit["anchor"], found["groups"]

    def left(row: Mapping[str, Any]) -> str:
        return estimate({"value": row["perturbed"], "ci95": row["perturbed_ci95"]}, sign=True)

    def by(row: Mapping[str, Any]) -> str:
        return estimate({**row, "value": row["change"]}, sign=True)

    gap = found["gaps"][anchor]["AP"]
    changed = (f"{by(groups[g]['AP'])} for {g}" for g in groups)
    begin = f"With the generator (ε {found['epsilon']:g}) the gap is {left(gap)}"
    said = [f"{begin}; AP changes by {' and '.join(changed)}."]
    counts = " and ".join(
        f"in {row['worse']:,} of {row['images']:,} images of {group} (more in {row['better']:,})"
        for group, row in found["found"].items()
    )
    said.append(f"Fewer {whom(audit)} are found at a score of {audit['score']:g} than before {counts}.")
    gaps = {name: each["gaps"][anchor]["AP"] for name, each in found["survival"].items()}
    if np.prod(gap["ci95"] or [0]) > 0:  # a change that is none cannot survive
        worst = min(gaps, key=lambda name: gaps[name]["change"] / gap["change"])
        kept = f"where least of that survives ({worst}), by {by(gaps[worst])}, to {left(gaps[worst])}"
        said.append(f"The gap changes by {by(gap)}; {kept}.")
    told = found["probe"]["the perturbation"]
    if told is None:
        return said
    how = "tells" if told["ci95"][0] > told["chance"] else "cannot be shown to tell"
    accuracy = estimate({"value": told["accuracy"], "ci95": told["ci95"]})
    said.append(f"A linear probe {how} the group from it: accuracy {accuracy}, by chance {number(told['chance'])}.")
    return said


def causes(audit: Mapping[str, Any]) -> dict[str, Any]:
    """All that was looked at, the one that explains most first; what cannot be compared last."""
    found = audit["confounders"] | {UNLABELLED: audit["unlabelled"], DETECTOR: audit["detector"]}
    return dict(sorted(found.items(), key=lambda each: -(-9 if (v := each[1]["explained"]["value"]) is None else v)))


def audit_summary(audit: Mapping[str, Any]) -> Group:
    """Lay an audit out for the terminal."""
    audit = named(audit, audit["images"])
    images = ", ".join(f"{count} {group}" for group, count in audit["images"].items())
    title = f"{audit['detector_name']} on {audit['dataset']}, {audit['split']} split ({images} images)"
    groups = columns(f"{title}, each number with its 95 % interval", "", *SHOWN)
    rows = [(group, row) for group, row in audit["groups"].items()]
    rows += [(f"gap ({audit['reference']} − {group})", row) for group, row in audit["gaps"].items()]
    for name, row in rows:
        cells = [stacked(number(row[m]["value"]), interval(row[m]["ci95"], sign=False)) for m in SHOWN]
        groups.add_row(Text(name), *cells)
    why = columns("what explains the gap", "", "explains", "95 % interval", "share")
    for name, each in causes(audit).items():
        found = each["explained"]
        text = (short(number(found["value"], sign=True)), short(interval(found["ci95"])), share(each["share"]))
        why.add_row(Text(name, "bold" if name in audit["causes"] else ""), *text)
    said = [Text(f"{text}\n") for text in (*sentences(audit), *perturbation_sentences(audit))]
    return Group(groups, Text(), *said, why, *(Text(f"\n{text}", "bold red") for text in audit["warnings"]))


def audit_page(audit: Mapping[str, Any], split: Split) -> str:
    """Return the self-contained page of an audit, HTML."""
    audit = named(audit, audit["images"])
    places = {record.image_id: record for record in split.records}
    pictures = [(each, r := places[each["image_id"]], np.asarray(read_image(r.path))) for each in audit["examples"]]
    drawn = {"causes": _draw_causes(audit), "errors": _draw_errors(audit), "scores": _draw_scores(audit)}
    told = perturbation_sentences(audit)
    values: dict[str, Any] = {"estimate": estimate, "sentences": sentences(audit), "causes": causes(audit)}
    values |= {"KINDS": KINDS, "TOTALS": TOTALS, "SHOWN": SHOWN, "share": share}
    return render("audit.html", audit=audit, told=told, examples=pictures, drawn=drawn, **values)


def _bars(rows: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str], axes: Any, offset: float = 0.0) -> None:
    for place, (name, found) in enumerate(rows.items()):
        if found["value"] is not None:
            low, high = found["ci95"] or (found["value"], found["value"])
            axes.plot([low, high], [place + offset] * 2, color=colours[name], linewidth=2.2, alpha=0.5)
            axes.plot(found["value"], place + offset, "o", color=colours[name], markersize=4.5)


def _labelled(size: tuple[float, float], names: Any, label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=charts.GAP_COLOUR, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel(label)
    return figure, axes


@charts.style()
def _draw_causes(audit: Mapping[str, Any]) -> Figure:
    rows = {name: each["explained"] for name, each in causes(audit).items()}
    figure, axes = _labelled((7.2, 0.9 + 0.26 * len(rows)), list(rows), "AP of the gap that it explains")
    if (gap := audit["gap"]["value"]) is None:
        return figure
    axes.axvline(gap, color=charts.QUIET, linewidth=0.9, linestyle=(0, (5, 3)))
    axes.annotate("the gap", (gap, 1), (0, 3), axes.get_xaxis_transform(), "offset points", ha="center")
    _bars(rows, {name: charts.GAP_COLOUR if name in audit["causes"] else charts.QUIET for name in rows}, axes)
    return figure


@charts.style()
def _draw_errors(audit: Mapping[str, Any]) -> Figure:
    kinds = audit["errors"]["kinds"]
    figure, axes = _labelled((7.2, 0.9 + 0.34 * len(kinds)), list(kinds), "AP50 that it costs")
    groups = list(audit["groups"])
    colours = charts.colours_of(groups, charts.GROUP_COLOURS)
    for i, group in enumerate(groups):
        rows = {kind: each["costs"][group] for kind, each in kinds.items()}
        _bars(rows, dict.fromkeys(rows, colours[group]), axes, 0.2 * (i - (len(groups) - 1) / 2))
        axes.plot([], [], "o", color=colours[group], label=group)
    figure.legend(loc="outside upper left", ncols=len(groups))
    return figure


@charts.style()
def _draw_scores(audit: Mapping[str, Any]) -> Figure:
    """How many right and wrong detections have which score, and how many of those of a score are right."""
    figure = Figure(figsize=(10.2, 2.9), layout="constrained")
    axes = figure.subplots(1, 3)
    calibration = audit["scores"]["calibration"]
    colours = charts.colours_of(calibration, charts.GROUP_COLOURS)
    for group, rows in calibration.items():
        edges = [row["from"] for row in rows]
        for panel, name in zip(axes, ("right", "wrong"), strict=False):
            panel.stairs([row[name] for row in rows], [*edges, 1.0], color=colours[group], linewidth=1.6)
            panel.set(title=f"{name} detections", xlabel="score", yscale="symlog")
            panel.yaxis.set_major_formatter("{x:,g}")
        known = [row for row in rows if row["share"]["ci95"]]
        x, y = [row["score"] for row in known], [row["share"]["value"] for row in known]
        axes[2].plot(x, y, "o-", color=colours[group], markersize=3.5, linewidth=1.2, label=group)
        low, high = np.array([row["share"]["ci95"] for row in known]).reshape(-1, 2).T
        axes[2].vlines(x, low, high, color=colours[group], alpha=0.4)
    for panel in axes[:2]:  # all groups are in it, and its upper end is theirs
        panel.set_ylim(bottom=0)
    axes[2].plot([0, 1], [0, 1], color=charts.QUIET, linewidth=0.8, linestyle=(0, (5, 3)))
    axes[2].set(title="share of right ones", xlabel="score", xlim=(0, 1.02), ylim=(0, 1.04))
    figure.legend(loc="outside upper left", ncols=len(calibration))
    return figure
