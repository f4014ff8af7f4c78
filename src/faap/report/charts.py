"""Curves over the epochs and what came out, of one run or of many, as pictures that a page can carry."""

import base64
import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from faap.evaluation import HEADLINE, headline
from faap.evaluation.curves import LEVELS, Curves
from faap.report.words import number

# Okabe and Ito's palette, which stays distinct for colour-blind readers; a group has its colour on the whole page
ANCHOR_COLOUR = "#D55E00"
REFERENCE_COLOUR = "#0072B2"
GAP_COLOUR = "#1A1A1A"
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
QUIET = "#6B6B6B"
_FAINT = "#ABABAB"
GROUP_COLOURS = (ANCHOR_COLOUR, REFERENCE_COLOUR, *OTHER_COLOURS)
# the two colours of the groups are none of the recipes'
RECIPE_COLOURS = (GAP_COLOUR, *OTHER_COLOURS, "#882255", "#999933", "#332288")
_DASHES = (0, (5, 3))

# of logs that do not say themselves which of their numbers are losses
_NOT_LOSSES = {"sim_f2m", "sim_f2f", "score_gap", "delta_linf", "delta_l2", "gradient_norm", "n_f", "n_m", "queue"}

_TITLES = {"epsilon": "Perturbation bound ε (normalised units)", "beta": "Detection weight β"}

Drawn = tuple[str, str, Figure]  # slug, title, figure
Band = tuple["Curve", Any]  # its values, (runs, epochs), masked where there is none

style = partial(matplotlib.rc_context, fname=Path(__file__).with_name("faap.mplstyle"))


class Curve(NamedTuple):
    """A number of every run, over the epochs."""

    name: str
    label: str = ""
    colour: str = ""  # empty: the recipe's own
    shift: float = 0.0  # subtracted from the values


class Chart(NamedTuple):
    """What is drawn in a panel for each recipe: curves from one part of a run's, the baseline, the line at zero."""

    slug: str
    title: str
    unit: str
    part: str
    curves: Sequence[Curve]
    baseline: float | None = None
    zero: bool = False


def colours_of(names: Iterable[str], palette: Sequence[str]) -> dict[str, str]:
    """Give each its own colour; where there are more names than colours, these repeat."""
    return dict(zip(names, cycle(palette), strict=False))


def data_uri(kind: str, image: io.BytesIO) -> str:
    """Make an image part of a page."""
    return f"data:image/{kind};base64,{base64.b64encode(image.getvalue()).decode()}"


@style()
def embed(figure: Figure) -> str:
    """Make a figure a picture that a page carries, as a data URI."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # of one that is missing here, where text is measured, and not where it is read
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri("svg+xml", buffer)


def values_in(figure: Figure) -> str:
    """Say what the lines of a figure show, by panel and name: first, middle and last value of each; of marks x, y."""
    said = []
    for axes in figure.axes:
        for line in axes.get_lines():
            points = np.ma.filled(np.ma.asarray(line.get_xydata(), dtype=np.float64), np.nan)
            points = points[np.isfinite(points).all(axis=1)]
            label, marks = str(line.get_label()).strip(), line.get_linestyle() == "None"
            named = not label.startswith("_")
            if line.get_transform() != axes.transData or not len(points) or line.get_color() == _FAINT:
                continue  # a mark at the edge, a line across, another panel's line
            if marks and not named:
                continue  # the single runs
            first, middle, last = (number(points[i, 1]) for i in (0, len(points) // 2, -1))
            what = ", ".join(map(number, points[0])) if marks else f"{first}, {middle}, {last}"
            name = " ".join(part for part in (axes.get_title(loc="left"), label * named) if part)
            said.append(f"{name}: {what}".replace("\n", " "))
    return "; ".join(said)


@style()
def draw_curves(before: Curves, after: Curves) -> list[Drawn]:
    """Draw the groups' precision over recall, and recall over scores, before and after side by side."""
    charts = (
        ("precision", "Precision over recall", "recall", "precision"),
        ("recall", "Share of what there is to find that has a score of so much or more", "score", "recall"),
    )
    colours = colours_of(before, GROUP_COLOURS)
    drawn = []
    for slug, title, x, y in charts:
        figure = Figure(figsize=(8.4, 3.3), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name, curves in zip(panels, ("before", "after"), (before, after), strict=True):
            axes.set(title=name, xlabel=x, xlim=(0, 1), ylim=(0, 1.02))
            axes.grid()
            for group, found in curves.items():
                value, low, high = found[slug]
                axes.fill_between(LEVELS, low, high, color=colours[group], alpha=0.25, linewidth=0)
                axes.plot(LEVELS, value, color=colours[group], linewidth=1.5, label=f" {group}")
        panels[0].set_ylabel(y)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(before))
        drawn.append((slug, title, figure))
    return drawn


def draw_training(comparison: Mapping[str, Any], gaps: Sequence[str] = ("ap_gap",)) -> dict[str, list[Drawn]]:
    """Draw what happened in one or more trainings; what none of them has is left out.

    Args:
        comparison: recipes, each with its name and runs, each with its chosen epoch and curves ("epoch", "losses", and
            by name under "validation", "train" and, where it is known, "schedule"); validation_baseline, the numbers
            of `HEADLINE` without a generator; anchor and reference, the names of the groups.
        gaps: which of `HEADLINE` to draw.

    Returns:
        By subject: validation, representation, losses (the total and the detector's first, others by name), schedules.
    """
    recipes, baseline = comparison["recipes"], comparison["validation_baseline"]
    anchor, reference = comparison["anchor"], comparison["reference"]
    unit = f"{reference} − {anchor}"
    groups = (("anchor_ap", anchor, ANCHOR_COLOUR), ("reference_ap", reference, REFERENCE_COLOUR))
    changes = [
        Curve(key, f"{group} (baseline {number(start)})", colour, start)
        for key, group, colour in groups
        if (start := baseline[key]) is not None
    ]
    across = Curve("sim_f2m", f"{anchor} to {reference}", OTHER_COLOURS[0])
    within = Curve("sim_f2f", f"{anchor} to {anchor}", ANCHOR_COLOUR)
    curves = [run["curves"] for recipe in recipes for run in recipe["runs"]]
    planned = dict.fromkeys(name for each in curves for name in each.get("schedule", {}))
    losses = {name for each in curves for name in each.get("losses") or each["train"].keys() - _NOT_LOSSES}
    title = "AP of both groups: change against the baseline"
    subjects = {
        "validation": [
            *(Chart(key, f"{HEADLINE[key][1]} gap", unit, "validation", [Curve(key)], baseline[key]) for key in gaps),
            Chart("ap", title, "AP − baseline", "validation", changes, zero=True),
        ],
        "representation": [
            Chart("similarity", "Similarity of the embeddings", "mean cosine", "train", [across, within]),
            Chart("score_gap", "Gap of the image scores", unit, "train", [Curve("score_gap")], zero=True),
        ],
        "losses": [
            Chart(f"loss_{name}", _title(name), "loss", "train", [Curve(name)])
            for name in sorted(losses, key=lambda name: (name != "total", name != "detection", name))
        ],
        "schedules": [Chart(name, _title(name), "value", "schedule", [Curve(name)]) for name in planned],
    }
    return {
        subject: [(each.slug, each.title, figure) for each in charts if (figure := small_multiples(each, recipes))]
        for subject, charts in subjects.items()
    }


def _title(name: str) -> str:
    return _TITLES.get(name) or name.replace("_", " ").capitalize().replace("Infonce", "InfoNCE")


def draw_log(log: Sequence[Mapping[str, Any]], chosen: int, anchor: str, reference: str) -> dict[str, list[Drawn]]:
    """Draw a run's log, of at least one epoch, as `draw_training` does one recipe with one seed."""
    run = {"epoch": chosen, "curves": curves_of(log, anchor, reference, "train", "schedule")}
    baseline = headline(log[0]["validation"]["baseline"], anchor, reference)
    groups = {"anchor": anchor, "reference": reference}
    recipes = [{"name": "", "runs": [run]}]
    return draw_training({"recipes": recipes, "validation_baseline": baseline, **groups}, gaps=("ap_gap", "ar_gap"))


def curves_of(log: Sequence[Mapping[str, Any]], anchor: str, reference: str, *parts: str) -> dict[str, Any]:
    """Return a log, of at least one epoch, as curves for `draw_training`: of the validation split, and other parts.

    They have six digits of each number, and None where it is not known.
    """
    rows = {"validation": [headline(row["validation"]["perturbed"], anchor, reference) for row in log]}
    rows |= {part: [row[part] for row in log] for part in parts}
    curves: dict[str, Any] = {"epoch": [row["epoch"] for row in log], "losses": log[-1].get("losses")}
    for part, each in rows.items():
        columns = {name: [row.get(name) for row in each] for name in each[0]}
        curves[part] = {name: list(map(_six_digits, column)) for name, column in columns.items()}
    return curves


def _six_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


@style()
def small_multiples(chart: Chart, recipes: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw a panel for each recipe that has something to show, with the same limits in all of them; None if none has.

    Means over the runs are lines, lowest to highest value bands, chosen epochs small marks, one above the other where
    several runs chose the same. The first panel's means stand faintly in the others.
    """
    colours = colours_of((recipe["name"] for recipe in recipes), RECIPE_COLOURS)
    panels = [(recipe, bands) for recipe in recipes if (bands := _bands(chart, recipe["runs"]))]
    if not panels:
        return None
    columns = 3 if len(panels) <= 6 else 4 if len(panels) <= 12 else 5
    wide = min(columns, len(panels))
    rows = math.ceil(len(panels) / wide)
    size = (10.8 * wide / columns, 0.75 + (2.25 if columns < 5 else 1.85) * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, wide, sharex=True, sharey=True, squeeze=False)
    first, faint = panels[0]
    signs: dict[str, Artist] = {}
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for i, (axes, (recipe, bands)) in enumerate(zip(grid.flat, panels, strict=False)):
        axes.set_title(textwrap.fill(recipe["name"], 26))
        axes.tick_params(labelbottom=i + wide >= len(panels))
        if chart.zero:
            axes.axhline(0, color=GAP_COLOUR, linewidth=0.8)
        for _, values in faint if i else []:
            (signs[f"{first['name']}, mean"],) = axes.plot(values.mean(axis=0), color=_FAINT, linewidth=1)
        # of what stands in several panels, the first one's colour is in the legend
        signs = _draw_panel(axes, chart, recipe, bands, colours[recipe["name"]]) | signs
    grid[0, 0].locator_params(axis="y", nbins=5)
    grid[0, 0].locator_params(axis="x", nbins=6, integer=True, min_n_ticks=1)
    figure.supxlabel("epoch")
    figure.supylabel(chart.unit)
    figure.legend(list(signs.values()), list(signs), loc="outside upper left", ncols=2 * wide)
    return figure


def _draw_panel(axes: Axes, chart: Chart, recipe: Mapping[str, Any], bands: list[Band], own: str) -> dict[str, Artist]:
    """Draw what one recipe's runs did; return what the signs mean."""
    signs: dict[str, Artist] = {}
    runs = recipe["runs"]
    axes.grid(axis="y")
    if chart.baseline is not None:
        signs["baseline"] = axes.axhline(chart.baseline, color=QUIET, linewidth=0.9, linestyle=_DASHES)
    for curve, values in bands:
        low, high, colour = values.min(axis=0), values.max(axis=0), curve.colour or own
        axes.fill_between(range(len(low)), low, high, color=colour, alpha=0.25, linewidth=0)
        label = curve.label or ("mean over seeds" if len(runs) > 1 else "one seed")
        (signs[label],) = axes.plot(values.mean(axis=0), color=colour, linewidth=1.4, marker="o", markersize=1.8)
    if len(runs) > 1:
        signs["lowest to highest seed"] = Patch(color=QUIET, alpha=0.3, linewidth=0)
    chosen = [run["epoch"] for run in runs if run["epoch"] is not None]
    heights = [0.04 + 0.06 * chosen[:i].count(epoch) for i, epoch in enumerate(chosen)]
    place = axes.get_xaxis_transform()
    (signs["chosen epoch"],) = axes.plot(chosen, heights, "^", color=QUIET, markersize=3.5, transform=place)
    return signs


def _bands(chart: Chart, runs: Sequence[Mapping[str, Any]]) -> list[Band]:
    """Gather those of a chart's curves that any of the runs has."""
    every = [run["curves"] for run in runs]
    bands = []
    for curve in chart.curves:
        values = np.full((len(runs), 1 + max(max(curves["epoch"]) for curves in every)), np.nan)
        for row, curves in zip(values, every, strict=True):
            found = curves.get(chart.part, {}).get(curve.name) or np.nan
            row[curves["epoch"]] = np.array(found, dtype=np.float64) - curve.shift
        if np.isfinite(values).any():
            bands.append((curve, np.ma.masked_invalid(values)))
    return bands


@style()
def draw_trade_off(comparison: Mapping[str, Any]) -> list[Drawn]:
    """Draw AP of one group against the other's: a small mark a run, a large one the mean of a recipe, the baseline."""
    axis = ("reference_ap", "anchor_ap")

    def point(values: Mapping[str, Any]) -> tuple[float, float]:
        """The two numbers; nowhere if one is unknown."""
        x, y = (values[key] for key in axis)
        return (np.nan, np.nan) if None in (x, y) else (x, y)

    base = point(comparison["baseline"])
    recipes = {
        recipe["name"]: [point({key: recipe["summary"][key]["mean"] for key in axis}), *map(point, recipe["runs"])]
        for recipe in comparison["recipes"]
    }
    if not any(np.isfinite(mean).all() for mean, *_ in recipes.values()):
        return []
    every = np.vstack([base, *recipes.values()])
    centre = (np.nanmin(every, axis=0) + np.nanmax(every, axis=0)) / 2
    span = 1.16 * np.nanmax(np.abs(every - centre)) or 0.01
    low, high = centre - span, centre + span
    figure = Figure(figsize=(8.2, 6.2), layout="constrained")
    # anchored on the left, or its first layout leaves the name of the upright axis off the picture
    axes = figure.add_subplot(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", anchor="W")
    axes.set(xlabel=f"{comparison['reference']} AP", ylabel=f"{comparison['anchor']} AP")
    axes.locator_params(nbins=5)
    line: dict[str, Any] = {"slope": 1, "color": QUIET, "linewidth": 1, "zorder": 1}
    if np.isfinite(base).all():
        axes.plot(*base, "x", color=GAP_COLOUR, markersize=11, markeredgewidth=2.5, zorder=4, label="baseline")
        axes.axline(base, **line, linestyle=_DASHES, label="same AP gap as the baseline")
    if max(low) < min(high):
        axes.axline((0, 0), **line, label="no AP gap")
    colours = colours_of(recipes, RECIPE_COLOURS)
    for (name, (mean, *runs)), marker in zip(recipes.items(), cycle("os^Dv"), strict=False):
        look: dict[str, Any] = {"color": colours[name], "marker": marker, "linestyle": "none"}
        axes.plot(*np.transpose(runs), **look, markersize=4, alpha=0.6, markeredgewidth=0, zorder=2)
        # with a space, since what begins with an underscore is left out of legends
        axes.plot(*mean, **look, markersize=9, markeredgecolor="white", zorder=3, label=f" {name}")
    figure.legend(loc="outside right upper")
    return [("trade_off", "AP of one group against the other's", figure)]
