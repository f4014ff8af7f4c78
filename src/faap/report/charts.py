"""Curves over the epochs of a run, as small pictures that a page can carry."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, which stays distinct for colour-blind readers; a group has its colour on the whole page
ANCHOR_COLOUR = "#D55E00"
REFERENCE_COLOUR = "#0072B2"
GAP_COLOUR = "#1A1A1A"
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_QUIET = "#6B6B6B"

# terms that describe a step and are no part of the loss
_NOT_LOSSES = {"sim_f2m", "sim_f2f", "score_gap", "delta_linf", "delta_l2", "gradient_norm", "n_f", "n_m"}

_TITLES = {"infonce": "InfoNCE"}

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


def _plain(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def draw(title: str, unit: str, epochs: Sequence[int], chosen: int, lines: Sequence[Line]) -> Chart:
    """Draw curves over epochs with the chosen epoch marked and baselines dashed."""
    with matplotlib.rc_context(
        {"svg.hashsalt": "faap", "font.size": 8.5, "font.family": "DejaVu Sans", "text.parse_math": False}
    ):
        figure = Figure(figsize=(3.7, 2.75), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(chosen, color=_QUIET, linewidth=1, linestyle=":", label="chosen epoch", zorder=1)
        for line in lines:
            size = 3.5 if len(epochs) < 40 else 0
            axes.plot(epochs, _plain(line.values), color=line.colour, marker="o", markersize=size, label=line.label)
            if line.baseline is not None:
                label = "baseline" if len(lines) == 1 else f"{line.label}, baseline"
                axes.axhline(line.baseline, color=line.colour, linewidth=1.1, linestyle=(0, (5, 3)), label=label)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-6, 6))
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.grid(axis="y", color="#E3E3E3", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        order = [*range(1, len(labels)), 0]
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside upper left",
            ncols=2,
            frameon=False,
            fontsize=7.5,
            handlelength=2.2,
            columnspacing=1.2,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Chart(title, source, f"{title}: {unit} over {len(epochs)} epochs")


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
    losses = [name for name in log[0]["train"] if name not in _NOT_LOSSES]
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
                for i, name in enumerate(losses)
                for picture in chart(
                    _TITLES.get(name, name.replace("_", " ").capitalize()),
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
