"""Several recipes side by side: one self-contained HTML page and a terminal table."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text
from scipy.stats import t

from faap.report.charts import (
    ANCHOR_COLOUR,
    DASHES,
    GAP_COLOUR,
    OTHER_COLOURS,
    QUIET,
    REFERENCE_COLOUR,
    Band,
    Panel,
    dress,
    embed,
    legend,
    loss_title,
    losses,
    small_multiples,
    style,
)
from faap.report.page import render, save
from faap.report.words import interval, number, percent

# a recipe has its colour on the whole page; the two colours of the groups are none of them, and after eight they repeat
_COLOURS = (GAP_COLOUR, *OTHER_COLOURS, "#882255", "#999933", "#332288")
_MARKERS = "os^Dv"
_KEYS = ("ap_gap", "ar_gap", "anchor_ap", "reference_ap")

Drawn = tuple[str, str, Figure]


def write_comparison(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write a comparison as one HTML page that carries everything with it.

    Args:
        comparison: content of compare.json; any number in it may be None.
        path: of the page.

    Returns:
        The path.
    """
    sections = [
        (heading, note, [embed(figure, title, f"{title}, one panel or mark a recipe") for _, title, figure in figures])
        for heading, note, figures in _sections(comparison)
        if figures
    ]
    page = render(
        "comparison.html",
        comparison=comparison,
        title="Recipes compared",
        columns=_columns(comparison),
        keys=_KEYS,
        colours=_recipe_colours(comparison),
        sentences=_sentences(comparison),
        sections=sections,
        spread=_spread,
        count=_count,
    )
    return save(page, path)


def comparison_table(comparison: Mapping[str, Any], width: int = 120) -> Group:
    """Lay out a comparison for the terminal: the baseline, and a row a recipe.

    Args:
        comparison: content of compare.json.
        width: of the terminal in characters, 80 or more; below 100 the seconds are left out.

    Returns:
        Something `rich.print` shows.
    """
    counts = ", ".join(f"{count} {group}" for group, count in comparison["images"].items())
    title = Text(f"{comparison['split']} split ({counts} images)")
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, title=title, title_justify="left"
    )
    table.add_column("", overflow="fold", min_width=9)
    names = [Text(name) for name in _columns(comparison).values()]
    headings = [names[0], Text("change"), *names[1:], Text("criteria"), Text("seconds")]
    shown = len(headings) if width >= 100 else len(headings) - 1
    for heading in headings[:shown]:
        # the first column gives way, and not below what can be read
        table.add_column(heading, justify="right", no_wrap=True, min_width=11 if heading in names else None)

    def short(text: str) -> str:
        return text.replace("0.", ".")

    first, *rest = (short(number(comparison["baseline"][key])) for key in _KEYS)
    table.add_row("baseline", *[first, "", *rest, "", ""][:shown], end_section=True)
    for recipe in comparison["recipes"]:
        summary = recipe["summary"]
        first, *rest = (short(_spread(summary[key], "±")) for key in _KEYS)
        met = "-".join(_count(recipe["success"][key]) for key in _KEYS) + f"/{len(recipe['runs'])}"
        change = short(number(summary["ap_gap"]["change"], sign=True))
        cells = [first, change, *rest, met, number(recipe["seconds"]["mean"], 0)]
        table.add_row(Text(recipe["name"]), *cells[:shown])
    notes = [Text(sentence) for sentence in _sentences(comparison)]
    wrong = [Text(f"{f['recipe']}, seed {f['seed']}, failed: {f['error']}", "bold red") for f in comparison["failed"]]
    return Group(table, Text(), *notes, *wrong)


def comparison_figures(comparison: Mapping[str, Any]) -> list[Drawn]:
    """Draw what the page shows.

    Args:
        comparison: content of compare.json.

    Returns:
        (slug, title, figure): ap_gap, ap, trade_off, similarity, score_gap, loss_total, loss_detection and a loss_NAME
        for each other term; what no run has is left out.
    """
    return [drawn for _, _, figures in _sections(comparison) for drawn in figures]


def _columns(comparison: Mapping[str, Any]) -> dict[str, str]:
    names = ("AP gap", "AR gap", f"{comparison['anchor']} AP", f"{comparison['reference']} AP")
    return dict(zip(_KEYS, names, strict=True))


def _recipe_colours(comparison: Mapping[str, Any]) -> dict[str, str]:
    return {recipe["name"]: _COLOURS[i % len(_COLOURS)] for i, recipe in enumerate(comparison["recipes"])}


def _spread(values: Mapping[str, float | None], sign: str = " ± ", digits: int = 4) -> str:
    """A mean with its standard deviation, if there is one."""
    std = values["std"]
    return number(values["mean"], digits) + ("" if std is None else f"{sign}{number(std, digits)}")


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _sentences(comparison: Mapping[str, Any]) -> list[str]:
    """Which recipe is best, whether that is more than its seeds' noise, and how many meet all criteria."""
    recipes = comparison["recipes"]
    known = [recipe for recipe in recipes if recipe["summary"]["ap_gap"]["mean"] is not None]
    if not known:
        return ["No run has measured an AP gap."]
    best = min(known, key=lambda recipe: abs(recipe["summary"]["ap_gap"]["mean"]))
    gap, before = best["summary"]["ap_gap"], comparison["baseline"]["ap_gap"]
    size = sum(run["ap_gap"] is not None for run in best["runs"])
    said = f"{best['name']} has the smallest mean AP gap ({comparison['reference']} − {comparison['anchor']})"
    said += f": {_spread(gap)} over {size} seed{'s' * (size > 1)}"
    change = gap["change"]
    if change is not None and before is not None:
        relative = f", {percent(change / before)}" if before else ""
        said += f", against {number(before)} at the baseline ({number(change, sign=True)}{relative})"
        if abs(gap["mean"]) >= abs(before):
            said += "; no recipe makes the gap smaller than it was"
        if gap["change_std"] is not None:
            # few seeds: Student's quantile, which is far from 2
            reach = float(t.ppf(0.975, size - 1)) * gap["change_std"] / math.sqrt(size)
            told = "is more than" if abs(change) > reach else "could be"
            bounds = interval([change - reach, change + reach])
            said += f". This change {told} the chance of the seeds (95 % interval of its mean {bounds})"
    full = sum(all(recipe["success"][key] == len(recipe["runs"]) for key in _KEYS) for recipe in recipes)
    runs = "every run that finished" if comparison["failed"] else "all seeds"
    verb = "meets" if full == 1 else "meet"
    return [f"{said}.", f"{full} of {len(recipes)} recipes {verb} all four success criteria in {runs}."]


class _Curve(NamedTuple):
    """What a chart shows of every recipe."""

    name: str
    label: str
    colour: str = ""  # empty: the recipe's own
    baseline: float | None = None
    shift: float = 0.0  # subtracted from the values


def _band(recipe: Mapping[str, Any], part: str, curve: _Curve, colour: str) -> Band | None:
    """A curve of one recipe over its seeds; None if no run has a value."""
    seen: dict[int, list[float]] = {}
    for run in recipe["runs"]:
        curves = run["curves"]
        for epoch, value in zip(curves["epoch"], curves[part].get(curve.name) or [], strict=False):
            known = value is not None and math.isfinite(value)
            seen.setdefault(epoch, []).extend([value - curve.shift] if known else [])
    if not any(seen.values()):
        return None
    epochs = sorted(seen)
    mean = [math.fsum(seen[epoch]) / len(seen[epoch]) if seen[epoch] else math.nan for epoch in epochs]
    low, high = ([pick(seen[epoch], default=math.nan) for epoch in epochs] for pick in (min, max))
    return Band(curve.label, epochs, mean, low, high, curve.colour or colour, curve.baseline)


def _sections(comparison: Mapping[str, Any]) -> list[tuple[str, str, list[Drawn]]]:
    """Every figure, by heading and with what its reader must know."""
    recipes, before = comparison["recipes"], comparison["validation_baseline"]
    anchor, reference, split = comparison["anchor"], comparison["reference"], comparison["split"]
    colours = _recipe_colours(comparison)

    def multiples(slug: str, title: str, unit: str, part: str, *curves: _Curve, zero: bool = False) -> list[Drawn]:
        panels: list[Panel] = []
        first: list[Band] = []
        for recipe in recipes:
            drawn = (_band(recipe, part, curve, colours[recipe["name"]]) for curve in curves)
            bands = [band for band in drawn if band is not None]
            chosen = [run["epoch"] for run in recipe["runs"] if run["epoch"] is not None]
            if bands:
                panels.append(Panel(recipe["name"], bands, first, chosen))
            if recipe is recipes[0]:
                first = bands
        label = f"{recipes[0]['name']}, mean" if recipes else ""
        return [(slug, title, small_multiples(unit, panels, label, zero=zero))] if panels else []

    groups = (("anchor_ap", anchor, ANCHOR_COLOUR), ("reference_ap", reference, REFERENCE_COLOUR))
    group_curves = [
        _Curve(key, f"{group} (baseline {number(before[key])})", colour, shift=before[key])
        for key, group, colour in groups
        if before[key] is not None
    ]
    similarities = (
        _Curve("sim_f2m", f"{anchor} to {reference}", OTHER_COLOURS[0]),
        _Curve("sim_f2f", f"{anchor} to {anchor}", ANCHOR_COLOUR),
    )
    terms = dict.fromkeys(name for r in recipes for run in r["runs"] for name in losses(run["curves"]["train"]))
    gap = f"{reference} − {anchor}"
    return [
        (
            "Validation over the epochs",
            "Lines are means over the seeds, bands reach from the lowest to the highest seed. Dashed: the detector "
            "without a generator. Triangles: the epochs that the seeds chose, one above the other where they agree. "
            "Grey: the mean of the first recipe. All panels of a figure have the same axes; epochs count from 0. Where "
            f"the change of {anchor} AP lies above that of {reference} AP, the gap is smaller than at the baseline.",
            multiples("ap_gap", "AP gap", gap, "validation", _Curve("ap_gap", gap, baseline=before["ap_gap"]))
            + multiples(
                "ap",
                "AP of both groups: change against the baseline",
                "AP − baseline",
                "validation",
                *group_curves,
                zero=True,
            ),
        ),
        (
            f"Both groups on the {split} split",
            f"Up and right is better: {anchor} images are found better further up, {reference} images further right. "
            "Above the dashed line the AP gap is smaller than at the baseline, below it larger.",
            _trade_off(comparison, colours),
        ),
        (
            "Representation and scores in training",
            "Means over the steps of an epoch, drawn as above. Where the score gap crosses zero, the image scores of "
            f"{anchor} images have become the higher ones.",
            multiples("similarity", "Similarity of the embeddings", "mean cosine", "train", *similarities)
            + multiples("score_gap", "Gap of the image scores", gap, "train", _Curve("score_gap", gap), zero=True),
        ),
        (
            "Loss terms",
            "Means over the steps of an epoch, drawn as above; a term has a panel for each recipe that uses it. The "
            "total is the weighted sum and says most by its course, since recipes add up different terms; the terms "
            "are unweighted.",
            [
                drawn
                for name in sorted(terms, key=lambda name: (name != "total", name != "detection"))
                for drawn in multiples(f"loss_{name}", loss_title(name), "loss", "train", _Curve(name, name))
            ],
        ),
    ]


def _trade_off(comparison: Mapping[str, Any], colours: Mapping[str, str]) -> list[Drawn]:
    """Anchor AP against reference AP: a dot a run, the mean of each recipe with its name, the baseline."""

    def point(values: Mapping[str, Any]) -> tuple[float, float] | None:
        x, y = values["reference_ap"], values["anchor_ap"]
        return None if x is None or y is None else (x, y)

    means = {
        recipe["name"]: place
        for recipe in comparison["recipes"]
        if (place := point({key: recipe["summary"][key]["mean"] for key in _KEYS})) is not None
    }
    if not means:
        return []
    base = point(comparison["baseline"])
    markers = {name: _MARKERS[i // len(_COLOURS) % len(_MARKERS)] for i, name in enumerate(colours)}
    runs = [(r["name"], place) for r in comparison["recipes"] for run in r["runs"] if (place := point(run)) is not None]
    every = [*means.values(), *(place for _, place in runs), *([base] if base else [])]
    span = 0.58 * max(max(values) - min(values) for values in zip(*every, strict=True)) or 0.01
    with style():
        figure = Figure(figsize=(8.2, 6.2), layout="constrained")
        axes = figure.add_subplot()
        dress(axes)
        (x0, x1), (y0, y1) = (
            ((max(v) + min(v)) / 2 - span, (max(v) + min(v)) / 2 + span) for v in zip(*every, strict=True)
        )
        axes.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(f"{comparison['reference']} AP")
        axes.set_ylabel(f"{comparison['anchor']} AP")
        signs: dict[str, Line2D] = {}
        if base:
            signs["baseline"] = axes.plot(*base, "x", color=GAP_COLOUR, markersize=11, markeredgewidth=2.5, zorder=4)[0]
            line = axes.axline(base, slope=1, color=QUIET, linewidth=1, linestyle=DASHES, zorder=1)
            signs["same AP gap as the baseline"] = line
        if max(x0, y0) < min(x1, y1):
            signs["no AP gap"] = axes.axline((x0, x0), slope=1, color=QUIET, linewidth=1, zorder=1)
        for name, place in runs:
            axes.plot(*place, markers[name], color=colours[name], markersize=4, alpha=0.6, markeredgewidth=0, zorder=2)
        for name, place in means.items():
            axes.plot(*place, markers[name], color=colours[name], markersize=9, markeredgecolor="white", zorder=3)
        _label(axes, means, colours)
        signs["one run"] = Line2D([], [], color=QUIET, marker="o", markersize=4, alpha=0.6, linestyle="none")
        signs["mean over seeds"] = Line2D([], [], color=QUIET, marker="o", markersize=9, linestyle="none")
        legend(figure, list(signs.values()), list(signs), len(signs))
    return [("trade_off", "AP of one group against the other's", figure)]


def _label(axes: Axes, places: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Name points in a column beside the axes, in the order of their heights and none on another."""
    low, high = axes.get_ylim()
    step = 1 / max(16, len(places))
    heights = {name: (y - low) / (high - low) for name, (_, y) in places.items()}
    order = sorted(heights, key=lambda name: heights[name])
    floor = step / 2
    for i, name in enumerate(order):
        ceiling = 1 - step / 2 - step * (len(order) - 1 - i)  # leaves room for those above
        floor = min(max(floor, heights[name]), ceiling)
        axes.annotate(
            name,
            places[name],
            (1.04, floor),
            textcoords="axes fraction",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "alpha": 0.6},
            zorder=2,
        )
        floor += step
