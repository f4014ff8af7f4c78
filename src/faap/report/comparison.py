"""Several recipes side by side: one self-contained HTML page."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from faap.report.charts import GAP_COLOUR, OTHER_COLOURS, Drawn, draw_trade_off, draw_training
from faap.report.page import render, save

# a recipe has its colour on the whole page; the two colours of the groups are none of them, and after eight they repeat
_COLOURS = (GAP_COLOUR, *OTHER_COLOURS, "#882255", "#999933", "#332288")


def write_comparison(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write a comparison as one HTML page that carries everything with it.

    Args:
        comparison: content of compare.json; any number in it may be None.
        path: of the page.

    Returns:
        The path.
    """
    return save(comparison_page(comparison, _subjects(comparison)), path)


def comparison_page(comparison: Mapping[str, Any], subjects: Mapping[str, list[Drawn]]) -> str:
    """Fill the page with what a comparison says, and with its pictures by subject."""
    return render(
        "comparison.html", title="Recipes compared", comparison=comparison, colours=_colours(comparison), drawn=subjects
    )


def comparison_figures(comparison: Mapping[str, Any]) -> list[Drawn]:
    """Draw what the page shows.

    Args:
        comparison: content of compare.json.

    Returns:
        (slug, title, figure): ap_gap, ap, trade_off, similarity, score_gap, loss_total, loss_detection and a loss_NAME
        for each other term; what no run has is left out.
    """
    return [drawn for figures in _subjects(comparison).values() for drawn in figures]


def _subjects(comparison: Mapping[str, Any]) -> dict[str, list[Drawn]]:
    groups, colours = (comparison["anchor"], comparison["reference"]), _colours(comparison)
    drawn = draw_training(comparison["recipes"], comparison["validation_baseline"], *groups, colours=colours)
    validation = {"validation": drawn.pop("validation"), "trade_off": draw_trade_off(comparison, colours)}
    return validation | drawn


def _colours(comparison: Mapping[str, Any]) -> dict[str, str]:
    return dict(zip((recipe["name"] for recipe in comparison["recipes"]), cycle(_COLOURS), strict=False))
