"""The result of an evaluation as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from faap.report.words import criteria_rows, difference, interval, number


def summary(metrics: Mapping[str, Any]) -> Group:
    """Lay out both groups before and after, the gaps with their error, and the success criteria.

    Args:
        metrics: what `faap.evaluate` returns, or metrics.json read back; the anchor group stands first in it and the
            reference group second.

    Returns:
        Something `rich.print` shows.
    """
    anchor, reference = list(metrics["baseline"])[:2]
    counts = ", ".join(f"{count} {group}" for group, count in metrics["images"].items())
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        title=Text(f"{metrics['split']} split ({counts} images)"),
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for heading in ("before", "after", "change", "95 % interval", "p"):
        table.add_column(heading, justify="right")
    for group, before in metrics["baseline"].items():
        after = metrics["perturbed"][group]
        for name in ("AP", "AP50", "AR100"):
            change = difference(before[name], after[name])
            cells = (number(before[name]), number(after[name]), number(change, sign=True))
            table.add_row(Text(f"{group} {name}"), *cells, end_section=name == "AR100")
    for name, gap in metrics["gap"].items():
        table.add_row(
            Text(f"{name} gap ({reference} − {anchor})"),
            number(gap["baseline"]),
            number(gap["perturbed"]),
            number(gap["change"], sign=True),
            interval(gap["ci95"]),
            number(gap["p_value"], 3),
        )
    criteria = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title="success criteria", title_justify="left")
    criteria.add_column("")
    for heading in ("before", "after", "target"):
        criteria.add_column(heading, justify="right")
    criteria.add_column("met")
    for row in criteria_rows(metrics, anchor, reference):
        verdict = Text("✓ met", style="green") if row["met"] else Text("✗ not met", style="bold red")
        criteria.add_row(Text(row["label"]), row["baseline"], row["value"], row["target"], verdict)
    return Group(table, criteria)
