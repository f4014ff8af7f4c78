"""Several recipes side by side: one self-contained HTML page and a terminal table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from faap.evaluation import HEADLINE, t_interval, verdict_of
from faap.evaluation.criteria import UNKNOWN, is_dead
from faap.report.charts import DASHES, GAP_COLOUR, OTHER_COLOURS, QUIET, Drawn, Training, legend, style, style_axes
from faap.report.page import render, save
from faap.report.words import headline_name, interval, number, percent, spread

# a recipe has its colour on the whole page; the two colours of the groups are none of them, and after eight they repeat
_COLOURS = (GAP_COLOUR, *OTHER_COLOURS, "#882255", "#999933", "#332288")
_MARKERS = "os^Dv"


def write_comparison(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write a comparison as one HTML page that carries everything with it.

    Args:
        comparison: content of compare.json; any number in it may be None.
        path: of the page.

    Returns:
        The path.
    """
    return save(render("comparison.html", **page_content(comparison), sections=_sections(comparison)), path)


def page_content(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page says beside its pictures."""
    return {
        "comparison": comparison,
        "title": "Recipes compared",
        "columns": _columns(comparison),
        "colours": _recipe_colours(comparison),
        "sentences": _sentences(comparison),
        "verdict": _verdict,
    }


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

    first, *rest = (short(number(comparison["baseline"][key])) for key in HEADLINE)
    table.add_row("baseline", *[first, "", *rest, "", ""][:shown], end_section=True)
    for recipe in comparison["recipes"]:
        summary = recipe["summary"]
        first, *rest = (short(spread(summary[key], "±")) for key in HEADLINE)
        met = "-".join(number(recipe["success"][key], 0) for key in HEADLINE) + f"/{len(recipe['runs'])}"
        change = short(number(summary["ap_gap"]["change"], sign=True))
        cells = [first, change, *rest, met, number(recipe["seconds"]["mean"], 0)]
        table.add_row(Text(recipe["name"]), *cells[:shown])
    said = [Text(sentence) for sentence in _sentences(comparison)]
    warnings = [Text(text, "bold red") for text in comparison.get("warnings", ())]
    wrong = [Text(f"{f['recipe']}, seed {f['seed']}, failed: {f['error']}", "bold red") for f in comparison["failed"]]
    return Group(table, Text(), *said, *warnings, *wrong)


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
    return {name: headline_name(name, comparison["anchor"], comparison["reference"]) for name in HEADLINE}


def _recipe_colours(comparison: Mapping[str, Any]) -> dict[str, str]:
    return {recipe["name"]: _COLOURS[i % len(_COLOURS)] for i, recipe in enumerate(comparison["recipes"])}


def _verdict(run: Mapping[str, Any], key: str) -> str:
    return verdict_of({"verdict": run.get("verdicts", {}).get(key), "met": run["success"][key]})


def _sentences(comparison: Mapping[str, Any]) -> list[str]:
    """Which recipe is best, whether that is more than its seeds' noise, and how many meet all criteria."""
    recipes, before = comparison["recipes"], comparison["baseline"]
    known = [recipe for recipe in recipes if recipe["summary"]["ap_gap"]["mean"] is not None]
    if not known:
        return ["No run has measured an AP gap."]
    if _finds_nobody(before):
        return [
            "The detector finds nobody, without any generator: right checkpoint? right class names? No recipe counts."
        ]
    best = min(known, key=lambda recipe: abs(recipe["summary"]["ap_gap"]["mean"]))
    gap = best["summary"]["ap_gap"]
    size = sum(run["ap_gap"] is not None for run in best["runs"])
    said = f"{best['name']} has the smallest mean AP gap ({comparison['reference']} − {comparison['anchor']})"
    said += f": {spread(gap)} over {size} seed{'s' * (size > 1)}"
    change = gap["change"]
    if change is not None and before["ap_gap"] is not None:
        relative = f", {percent(change / before['ap_gap'])}" if before["ap_gap"] else ""
        said += f", against {number(before['ap_gap'])} at the baseline ({number(change, sign=True)}{relative})"
        if abs(gap["mean"]) >= abs(before["ap_gap"]):
            said += "; no recipe makes the gap smaller than it was"
        if gap["change_std"] is not None:
            low, high = t_interval(change, gap["change_std"], size)
            certainty = "could be" if low <= 0 <= high else "is more than"
            said += (
                f". This change {certainty} the chance of the seeds (95 % interval of its mean {interval([low, high])})"
            )
    return [f"{said}.", _criteria_sentence(comparison)]


def _finds_nobody(numbers: Mapping[str, float | None]) -> bool:
    return all(is_dead({"AP": numbers[key]}) for key in ("anchor_ap", "reference_ap"))


def _criteria_sentence(comparison: Mapping[str, Any]) -> str:
    """How many recipes meet all criteria, and of how many it cannot be told."""
    recipes = comparison["recipes"]
    full = unknown = 0
    for recipe in recipes:
        runs, blind = len(recipe["runs"]), _finds_nobody({key: recipe["summary"][key]["mean"] for key in HEADLINE})
        met = [recipe["success"][key] or 0 for key in HEADLINE]
        untold = [recipe.get("verdicts", {}).get(key, {}).get(UNKNOWN, 0) for key in HEADLINE]
        full += not blind and min(met) == runs
        unknown += min(met) < runs and all(a + b == runs for a, b in zip(met, untold, strict=True))
    where = "every run that finished" if comparison["failed"] else "all seeds"
    rest = f"; of {unknown} it cannot be told" if unknown else ""
    verb = "meets" if full == 1 else "meet"
    return f"{full} of {len(recipes)} recipes {verb} all four success criteria in {where}{rest}."


def _sections(comparison: Mapping[str, Any]) -> list[tuple[str, str, list[Drawn]]]:
    """Every figure, by heading and with what its reader must know."""
    anchor, reference, split = comparison["anchor"], comparison["reference"], comparison["split"]
    colours = _recipe_colours(comparison)
    training = Training(comparison["recipes"], comparison["validation_baseline"], anchor, reference, colours)
    return [
        (
            "Validation over the epochs",
            "Lines are means over the seeds, bands reach from the lowest to the highest seed. Dashed: the detector "
            "without a generator. Triangles: the epochs that the seeds chose, one above the other where they agree. "
            "Grey: the mean of the first recipe. All panels of a figure have the same axes; epochs count from 0. Where "
            f"the change of {anchor} AP lies above that of {reference} AP, the gap is smaller than at the baseline.",
            [*training.gap("ap_gap"), *training.groups()],
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
            training.representation(),
        ),
        (
            "Loss terms",
            "Means over the steps of an epoch, drawn as above; a term has a panel for each recipe that uses it. The "
            "total is the weighted sum and says most by its course, since recipes add up different terms; the terms "
            "are unweighted.",
            training.losses(),
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
        if (place := point({key: recipe["summary"][key]["mean"] for key in HEADLINE})) is not None
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
        style_axes(axes)
        (x0, x1), (y0, y1) = (
            ((max(v) + min(v)) / 2 - span, (max(v) + min(v)) / 2 + span) for v in zip(*every, strict=True)
        )
        axes.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(f"{comparison['reference']} AP")
        axes.set_ylabel(f"{comparison['anchor']} AP")
        signs: dict[str, Artist] = {}
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
        legend(figure, signs, len(signs))
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
