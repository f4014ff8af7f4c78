"""Curves over epochs, of one run and of many, as pictures that a page can carry."""

import base64
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, which stays distinct for colour-blind readers; a group has its colour on the whole page
ANCHOR_COLOUR = "#D55E00"
REFERENCE_COLOUR = "#0072B2"
GAP_COLOUR = "#1A1A1A"
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
QUIET = "#6B6B6B"
_FAINT = "#ABABAB"
_FONT = 8.5
DASHES = (0, (5, 3))

# terms that describe a step and are no part of the loss
_NOT_LOSSES = {"sim_f2m", "sim_f2f", "score_gap", "delta_linf", "delta_l2", "gradient_norm", "n_f", "n_m", "queue"}

_SCHEDULES = {
    "epsilon": ("Perturbation bound", "ε (normalised units)"),
    "beta": ("Detection weight", "β"),
    "contrastive_weight": ("Contrastive weight", "weight"),
    "learning_rate": ("Learning rate", "learning rate"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: values per epoch (None leaves a gap), its colour, and where the baseline lies, if there is one."""

    label: str
    values: Sequence[float | None]
    colour: str
    baseline: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """A titled picture: a data URI and its description."""

    title: str
    source: str
    description: str


@dataclass(frozen=True, slots=True)
class Band:
    """One curve of several runs: at each epoch their mean, lowest and highest value (NaN leaves a gap)."""

    label: str
    epochs: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str
    baseline: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several small charts: its curves, others to hold them against, and the epochs that its runs chose."""

    title: str
    bands: Sequence[Band]
    beside: Sequence[Band] = ()
    chosen: Sequence[int] = ()


def losses(names: Iterable[str]) -> list[str]:
    """Those of the names in a log's "train" that are parts of the loss, or of a second player's."""
    return [name for name in names if name not in _NOT_LOSSES]


def loss_title(name: str) -> str:
    """How a heading names a loss term."""
    return name.replace("_", " ").capitalize().replace("Infonce", "InfoNCE")


def style() -> AbstractContextManager[None]:
    """Fonts of all pictures; a name is never read as a formula."""
    return matplotlib.rc_context(
        {"svg.hashsalt": "faap", "font.size": _FONT, "font.family": "DejaVu Sans", "text.parse_math": False}
    )


def embed(figure: Figure, title: str, description: str) -> Chart:
    """Make a figure a picture that a page carries."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Chart(title, "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode(), description)


def dress(axes: Axes) -> None:
    """Few ticks, with plain numbers, and no frame but the axes."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-6, 6))
    axes.tick_params(labelsize=_FONT)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int) -> None:
    """Put what the signs mean above a figure."""
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=7.5,
        handlelength=2.2,
        columnspacing=1.2,
    )


def draw(title: str, unit: str, epochs: Sequence[int], chosen: int, lines: Sequence[Line]) -> Chart:
    """Draw curves over epochs with the chosen epoch marked and baselines dashed."""
    with style():
        figure = Figure(figsize=(3.7, 2.75), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(chosen, color=QUIET, linewidth=1, linestyle=":", label="chosen epoch", zorder=1)
        for line in lines:
            size = 3.5 if len(epochs) < 40 else 0
            values = [math.nan if value is None else value for value in line.values]
            axes.plot(epochs, values, color=line.colour, marker="o", markersize=size, label=line.label)
            if line.baseline is not None:
                label = "baseline" if len(lines) == 1 else f"{line.label}, baseline"
                axes.axhline(line.baseline, color=line.colour, linewidth=1.1, linestyle=DASHES, label=label)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.grid(axis="y", color="#E3E3E3", linewidth=0.7)
        dress(axes)
        handles, labels = axes.get_legend_handles_labels()
        legend(figure, [*handles[1:], handles[0]], [*labels[1:], labels[0]], 2)
    return embed(figure, title, f"{title}: {unit} over {len(epochs)} epochs")


def small_multiples(unit: str, panels: Sequence[Panel], beside: str, *, zero: bool = False) -> Figure:
    """Draw a grid of panels with the same limits in all of them.

    Args:
        unit: what the vertical axis shows.
        panels: at least one, each with at least one known value.
        beside: what the faint curves beside a panel's own are.
        zero: whether to draw the line at 0, and keep it within sight.

    Returns:
        The figure: means as lines, lowest to highest value as bands, baselines dashed, chosen epochs as small marks,
        one above the other where several runs chose the same.
    """
    columns = 3 if len(panels) <= 6 else 4 if len(panels) <= 12 else 5
    wide = min(columns, max(2, len(panels)))
    rows = math.ceil(len(panels) / wide)
    every = [band for panel in panels for band in (*panel.bands, *panel.beside)]
    values = [v for band in every for v in (*band.low, *band.high, band.baseline) if v is not None and math.isfinite(v)]
    low, high = min([*values, 0.0] if zero else values), max([*values, 0.0] if zero else values)
    margin = (high - low) or abs(high) or 1.0
    epochs = [epoch for band in every for epoch in band.epochs]
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
        grid[0, 0].set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        grid[0, 0].set_ylim(low - 0.14 * margin, high + 0.06 * margin)
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        figure.supxlabel("epoch", fontsize=_FONT)
        figure.supylabel(unit, fontsize=_FONT)
        shown: dict[str, Artist] = {}
        for band in (band for panel in panels for band in panel.bands):
            shown[band.label] = Line2D([], [], color=band.colour)
        if len(shown) == 1:
            shown = {"mean over seeds": Line2D([], [], color=QUIET)}
        if any(low < high for band in every for low, high in zip(band.low, band.high, strict=True)):
            shown["lowest to highest seed"] = Patch(color=QUIET, alpha=0.3, linewidth=0)
        if any(band.baseline is not None for band in every):
            shown["baseline"] = Line2D([], [], color=QUIET, linewidth=1, linestyle=DASHES)
        if any(panel.beside for panel in panels):
            shown[beside] = Line2D([], [], color=_FAINT, linewidth=1)
        shown["chosen epoch of a seed"] = Line2D([], [], color=QUIET, marker="^", markersize=3.5, linestyle="none")
        legend(figure, list(shown.values()), list(shown), 2 * wide)
    return figure


def _draw_panel(axes: Axes, panel: Panel, zero: bool) -> None:
    dress(axes)
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.6)
    if zero:
        axes.axhline(0, color=GAP_COLOUR, linewidth=0.8)
    for band in panel.beside:
        axes.plot(band.epochs, band.mean, color=_FAINT, linewidth=1)
    for band in panel.bands:
        if band.baseline is not None:
            axes.axhline(band.baseline, color=QUIET, linewidth=0.9, linestyle=DASHES)
        axes.fill_between(band.epochs, band.low, band.high, color=band.colour, alpha=0.25, linewidth=0)
        axes.plot(band.epochs, band.mean, color=band.colour, linewidth=1.4, marker="o", markersize=1.8)
    heights = [0.04 + 0.06 * sum(panel.chosen[j] == epoch for j in range(i)) for i, epoch in enumerate(panel.chosen)]
    place = axes.get_xaxis_transform()
    axes.plot(panel.chosen, heights, color=QUIET, marker="^", markersize=3.5, linestyle="none", transform=place)


def run_charts(
    log: Sequence[Mapping[str, Any]], chosen: int, anchor: str, reference: str
) -> list[tuple[str, list[Chart]]]:
    """All curves of a run, by subject.

    Args:
        log: the lines of train_log.jsonl.
        chosen: epoch to mark.
        anchor: name of the anchor group.
        reference: name of the reference group.

    Returns:
        (subject, charts); a curve without any value is left out.
    """
    epochs = [row["epoch"] for row in log]

    def chart(title: str, unit: str, *lines: Line) -> list[Chart]:
        shown = [line for line in lines if any(value is not None for value in line.values)]
        return [draw(title, unit, epochs, chosen, shown)] if shown else []

    def part(kind: str, name: str) -> list[float | None]:
        return [row[kind].get(name) for row in log]

    def validated(which: str, group: str, name: str) -> list[float | None]:
        return [row["validation"][which][group][name] for row in log]

    def gap(title: str, key: str, metric: str) -> list[Chart]:
        low, high = (validated("baseline", group, metric)[0] for group in (anchor, reference))
        baseline = None if low is None or high is None else high - low
        values = [row["validation"]["gap"][key] for row in log]
        return chart(title, f"{reference} − {anchor}", Line("with generator", values, GAP_COLOUR, baseline))

    ap_lines = [
        Line(group, validated("perturbed", group, "AP"), colour, validated("baseline", group, "AP")[0])
        for group, colour in ((anchor, ANCHOR_COLOUR), (reference, REFERENCE_COLOUR))
    ]
    colours = [GAP_COLOUR, *OTHER_COLOURS]
    return [
        (
            "Validation",
            [
                *gap("AP gap", "AP", "AP"),
                *gap("AR gap", "AR", "AR100"),
                *chart("AP of both groups", "AP", *ap_lines),
            ],
        ),
        (
            "Representation and scores",
            [
                *chart(
                    "Similarity of the embeddings",
                    "mean cosine",
                    Line(f"{anchor} to {reference}", part("train", "sim_f2m"), OTHER_COLOURS[0]),
                    Line(f"{anchor} to {anchor}", part("train", "sim_f2f"), ANCHOR_COLOUR),
                ),
                *chart(
                    "Gap of the image scores",
                    f"{reference} − {anchor}",
                    Line("training images", part("train", "score_gap"), GAP_COLOUR),
                ),
            ],
        ),
        (
            "Loss terms, mean over the steps",
            [
                picture
                for i, name in enumerate(losses(log[0]["train"]))
                for picture in chart(
                    loss_title(name),
                    "loss",
                    Line(name, part("train", name), colours[i % len(colours)]),
                )
            ],
        ),
        (
            "Schedules",
            [
                picture
                for name, (title, unit) in _SCHEDULES.items()
                for picture in chart(title, unit, Line(name, part("schedule", name), OTHER_COLOURS[0]))
            ],
        ),
    ]
