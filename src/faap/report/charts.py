"""Curves over epochs, of one run or of many, as pictures that a page can carry."""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from faap.evaluation import HEADLINE, headline
from faap.report.words import number

# Okabe and Ito's palette, which stays distinct for colour-blind readers; a group has its colour on the whole page
ANCHOR_COLOUR = "#D55E00"
REFERENCE_COLOUR = "#0072B2"
GAP_COLOUR = "#1A1A1A"
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
QUIET = "#6B6B6B"
_FAINT = "#ABABAB"
_FONT = 8.5
DASHES = (0, (5, 3))

# of logs that do not say themselves which of their numbers are losses
_NOT_LOSSES = {"sim_f2m", "sim_f2f", "score_gap", "delta_linf", "delta_l2", "gradient_norm", "n_f", "n_m", "queue"}

_SCHEDULES = {
    "epsilon": ("Perturbation bound", "ε (normalised units)"),
    "beta": ("Detection weight", "β"),
    "contrastive_weight": ("Contrastive weight", "weight"),
    "learning_rate": ("Learning rate", "learning rate"),
}

# slug, title, figure
Drawn = tuple[str, str, Figure]


class Curve(NamedTuple):
    """What a chart shows of every recipe."""

    name: str
    label: str
    colour: str = ""  # empty: the recipe's own
    baseline: float | None = None
    shift: float = 0.0  # subtracted from the values


class Band(NamedTuple):
    """A curve of one recipe: (runs, epochs) its values, NaN where there is none."""

    curve: Curve
    colour: str
    values: npt.NDArray[np.float64]


class Panel(NamedTuple):
    """One of several small charts: its curves, others to hold them against, and the epochs that its runs chose."""

    title: str
    bands: Sequence[Band]
    others: Sequence[Band]
    chosen: Sequence[int]


def style() -> AbstractContextManager[None]:
    """Fonts of all pictures; a name is never read as a formula."""
    return matplotlib.rc_context(
        {"svg.hashsalt": "faap", "font.size": _FONT, "font.family": "DejaVu Sans", "text.parse_math": False}
    )


def embed(figure: Figure) -> str:
    """Make a figure a picture that a page carries, as a data URI."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def style_axes(axes: Axes) -> None:
    """Few ticks, with plain numbers, and no frame but the axes."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-6, 6))
    axes.tick_params(labelsize=_FONT)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, signs: Mapping[str, Artist], columns: int) -> None:
    """Put what the signs mean above a figure."""
    figure.legend(
        list(signs.values()),
        list(signs),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=7.5,
        handlelength=2.2,
        columnspacing=1.2,
    )


def small_multiples(unit: str, panels: Sequence[Panel], others: str, *, zero: bool = False) -> Figure:
    """Draw a grid of panels with the same limits in all of them.

    Args:
        unit: what the vertical axis shows.
        panels: at least one, each with at least one known value; a single one without a title takes little room.
        others: what the faint curves that a panel's own are held against are.
        zero: whether to draw the line at 0, and keep it within sight.

    Returns:
        The figure: means as lines, lowest to highest value as bands, baselines dashed, chosen epochs as small marks,
        one above the other where several runs chose the same.
    """
    columns = 3 if len(panels) <= 6 else 4 if len(panels) <= 12 else 5
    wide = min(columns, max(2, len(panels))) if panels[0].title else 1
    rows = math.ceil(len(panels) / wide)
    every = [band for panel in panels for band in (*panel.bands, *panel.others)]
    baselines = [band.curve.baseline for band in every if band.curve.baseline is not None]
    known = np.concatenate([*(band.values.ravel() for band in every), baselines, [0.0] if zero else []])
    low, high = np.nanmin(known), np.nanmax(known)
    margin = (high - low) or abs(high) or 1.0
    with style():
        figure = Figure(
            figsize=(10.8 * wide / columns, 0.75 + (2.25 if columns < 5 else 1.85) * rows), layout="constrained"
        )
        grid = figure.subplots(rows, wide, sharex=True, sharey=True, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i >= len(panels):
                axes.remove()
                continue
            _draw_panel(axes, panels[i], zero)
            axes.set_title("\n".join(textwrap.wrap(panels[i].title, 26)), fontsize=_FONT, fontweight="bold", loc="left")
            axes.tick_params(labelbottom=i + wide >= len(panels))
        grid[0, 0].set_xlim(-0.5, max(band.values.shape[1] for band in every) - 0.5)
        grid[0, 0].set_ylim(low - 0.14 * margin, high + 0.06 * margin)
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        figure.supxlabel("epoch", fontsize=_FONT)
        figure.supylabel(unit, fontsize=_FONT)
        legend(figure, _signs(panels, every, others), 2 * wide)
    return figure


def _signs(panels: Sequence[Panel], every: Sequence[Band], others: str) -> dict[str, Artist]:
    signs: dict[str, Artist] = {
        band.curve.label: Line2D([], [], color=band.colour) for panel in panels for band in panel.bands
    }
    several = any(len(band.values) > 1 for band in every)
    if len(signs) == 1:
        signs = {"mean over seeds" if several else "one seed": Line2D([], [], color=QUIET)}
    if several:
        signs["lowest to highest seed"] = Patch(color=QUIET, alpha=0.3, linewidth=0)
    if any(band.curve.baseline is not None for band in every):
        signs["baseline"] = Line2D([], [], color=QUIET, linewidth=1, linestyle=DASHES)
    if any(panel.others for panel in panels):
        signs[others] = Line2D([], [], color=_FAINT, linewidth=1)
    signs["chosen epoch"] = Line2D([], [], color=QUIET, marker="^", markersize=3.5, linestyle="none")
    return signs


def _draw_panel(axes: Axes, panel: Panel, zero: bool) -> None:
    style_axes(axes)
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.6)
    if zero:
        axes.axhline(0, color=GAP_COLOUR, linewidth=0.8)
    for band in panel.others:
        axes.plot(np.ma.masked_invalid(band.values).mean(axis=0), color=_FAINT, linewidth=1)
    for band in panel.bands:
        values = np.ma.masked_invalid(band.values)
        if band.curve.baseline is not None:
            axes.axhline(band.curve.baseline, color=QUIET, linewidth=0.9, linestyle=DASHES)
        epochs = np.arange(values.shape[1])
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=band.colour, alpha=0.25, linewidth=0)
        axes.plot(values.mean(axis=0), color=band.colour, linewidth=1.4, marker="o", markersize=1.8)
    heights = [0.04 + 0.06 * sum(panel.chosen[j] == epoch for j in range(i)) for i, epoch in enumerate(panel.chosen)]
    place = axes.get_xaxis_transform()
    axes.plot(panel.chosen, heights, color=QUIET, marker="^", markersize=3.5, linestyle="none", transform=place)


@dataclass(frozen=True)
class Training:
    """What happened in one or more trainings, to be drawn; what none of them has is left out.

    Attributes:
        recipes: each with its name and runs, each with its chosen epoch and curves: "epoch", and by name under
            "validation", "train" and, where it is known, "schedule".
        baseline: the numbers of `HEADLINE` on the validation split without a generator.
        anchor: name of the anchor group.
        reference: name of the reference group.
        colours: of the recipes, by name.
    """

    recipes: Sequence[Mapping[str, Any]]
    baseline: Mapping[str, float | None]
    anchor: str
    reference: str
    colours: Mapping[str, str] = field(default_factory=dict)

    def gap(self, key: str) -> list[Drawn]:
        """Draw one of the gaps of `HEADLINE` on the validation split."""
        unit = f"{self.reference} − {self.anchor}"
        title = f"{HEADLINE[key][1]} gap"
        return self._draw(key, title, unit, "validation", Curve(key, unit, baseline=self.baseline[key]))

    def groups(self) -> list[Drawn]:
        """Draw the change of both groups' AP on the validation split."""
        colours = {"anchor_ap": ANCHOR_COLOUR, "reference_ap": REFERENCE_COLOUR}
        curves = [
            Curve(key, f"{group} (baseline {number(start)})", colours[key], shift=start)
            for key, group in (("anchor_ap", self.anchor), ("reference_ap", self.reference))
            if (start := self.baseline[key]) is not None
        ]
        title = "AP of both groups: change against the baseline"
        return self._draw("ap", title, "AP − baseline", "validation", *curves, zero=True)

    def representation(self) -> list[Drawn]:
        """Draw how alike the groups' embeddings are and how far apart their image scores."""
        curves = (
            Curve("sim_f2m", f"{self.anchor} to {self.reference}", OTHER_COLOURS[0]),
            Curve("sim_f2f", f"{self.anchor} to {self.anchor}", ANCHOR_COLOUR),
        )
        unit = f"{self.reference} − {self.anchor}"
        score_gap = Curve("score_gap", unit)
        return [
            *self._draw("similarity", "Similarity of the embeddings", "mean cosine", "train", *curves),
            *self._draw("score_gap", "Gap of the image scores", unit, "train", score_gap, zero=True),
        ]

    def losses(self) -> list[Drawn]:
        """Draw every term of the loss, or of a second player's: the total and the detector's first, others by name."""
        curves = [run["curves"] for recipe in self.recipes for run in recipe["runs"]]
        names = {name for each in curves for name in each.get("losses") or each["train"].keys() - _NOT_LOSSES}
        return [
            drawn
            for name in sorted(names, key=lambda name: (name != "total", name != "detection", name))
            for drawn in self._draw(f"loss_{name}", _loss_title(name), "loss", "train", Curve(name, name))
        ]

    def schedules(self) -> list[Drawn]:
        """Draw what changes from epoch to epoch by plan."""
        return [
            drawn
            for name, (title, unit) in _SCHEDULES.items()
            for drawn in self._draw(name, title, unit, "schedule", Curve(name, name))
        ]

    def _draw(self, slug: str, title: str, unit: str, part: str, *curves: Curve, zero: bool = False) -> list[Drawn]:
        panels: list[Panel] = []
        first: list[Band] = []
        for recipe in self.recipes:
            colour = self.colours.get(recipe["name"], GAP_COLOUR)
            bands = [band for curve in curves if (band := _band(recipe["runs"], part, curve, colour)) is not None]
            chosen = [run["epoch"] for run in recipe["runs"] if run["epoch"] is not None]
            if bands:
                panels.append(Panel(recipe["name"], bands, first, chosen))
            if recipe is self.recipes[0]:
                first = bands
        others = f"{self.recipes[0]['name']}, mean" if self.recipes else ""
        return [(slug, title, small_multiples(unit, panels, others, zero=zero))] if panels else []


def _band(runs: Sequence[Mapping[str, Any]], part: str, curve: Curve, colour: str) -> Band | None:
    """Gather one curve of several runs; None if none of them has a value."""
    values = np.full((len(runs), 1 + max(epoch for run in runs for epoch in run["curves"]["epoch"])), np.nan)
    for row, run in zip(values, runs, strict=True):
        curves = run["curves"]
        if found := curves[part].get(curve.name):
            row[curves["epoch"]] = np.array(found, dtype=np.float64) - curve.shift
    return Band(curve, curve.colour or colour, values) if np.isfinite(values).any() else None


def _loss_title(name: str) -> str:
    return name.replace("_", " ").capitalize().replace("Infonce", "InfoNCE")


def training_of(log: Sequence[Mapping[str, Any]], chosen: int, anchor: str, reference: str) -> Training:
    """Take a run's log, of at least one epoch, for a comparison of one recipe with one seed."""
    before, after = (
        [headline(row["validation"][which], anchor, reference) for row in log] for which in ("baseline", "perturbed")
    )
    curves: dict[str, Any] = {
        part: {name: [row.get(name) for row in rows] for name in rows[0]}
        for part, rows in (
            ("validation", after),
            *((part, [row[part] for row in log]) for part in ("train", "schedule")),
        )
    }
    run = {
        "epoch": chosen,
        "curves": curves | {"epoch": [row["epoch"] for row in log], "losses": log[-1].get("losses")},
    }
    return Training([{"name": "", "runs": [run]}], before[0], anchor, reference)
