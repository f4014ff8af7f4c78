"""Several recipes side by side: one self-contained HTML page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faap.files import write_text
from faap.report.charts import Drawn, draw_trade_off, draw_training
from faap.report.page import render
from faap.report.words import named


def write_comparison(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write a comparison as one HTML page that carries everything with it.

    Args:
        comparison: content of compare.json; any number in it may be None.
        path: of the page.

    Returns:
        The path.
    """
    return write_text(path, comparison_page(comparison))


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Return the page of `write_comparison`."""
    comparison = named(comparison, comparison["images"])
    return render("comparison.html", comparison=comparison, drawn=_draw(comparison))


def comparison_figures(comparison: Mapping[str, Any]) -> list[Drawn]:
    """Draw what the page shows.

    Args:
        comparison: content of compare.json.

    Returns:
        (slug, title, figure): ap_gap, ap, trade_off, similarity, score_gap, loss_total, loss_detection and a loss_NAME
        for each other term; what no run has is left out.
    """
    return [drawn for figures in _draw(comparison).values() for drawn in figures]


def _draw(comparison: Mapping[str, Any]) -> dict[str, list[Drawn]]:
    """Draw every figure, by subject and in the page's order."""
    comparison = named(comparison, comparison["images"])
    drawn = draw_training(comparison)
    return {"validation": drawn.pop("validation"), "trade_off": draw_trade_off(comparison), **drawn}
