"""The result of an evaluation as a table for the terminal."""

import re
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN
from faap.report.words import criteria_rows, difference, interval, notes, number, provenance_rows

_STYLES = {MET: "green", NOT_MET: "bold red", UNKNOWN: "yellow"}
_HASH = re.compile(r"[0-9a-f]{64}")


def summary(metrics: Mapping[str, Any]) -> Group:
    """Lay out what to beware of, both groups before and after, the gaps with their error, and the success criteria.

    Args:
        metrics: what `faap.evaluate` returns, or metrics.json read back; the anchor group stands first in it and the
            reference group second.

    Returns:
        Something `rich.print` shows.
    """
    anchor, reference = list(metrics["baseline"])[:2]
    counts = ", ".join(f"{count} {group}" for group, count in metrics["images"].items())
    table = _table(f"{metrics['split']} split ({counts} images)", "before", "after", "change", "95 % interval", "p")
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
    criteria = _table("success criteria", "before", "after", "target", "")
    for row in criteria_rows(metrics, anchor, reference):
        verdict = Text(f"{row['mark']} {row['verdict']}", style=_STYLES[row["verdict"]])
        criteria.add_row(Text(row["label"]), row["baseline"], row["value"], row["target"], verdict)
    warnings = [Text(f"{note}\n", style="bold red") for note in notes(metrics)]
    source = "\n".join(f"{name}: {text}" for name, text in provenance_rows(metrics))
    source = _HASH.sub(lambda found: f"{found[0][:12]}…", source)
    return Group(table, criteria, *warnings, Text(source, style="dim"))


def _table(title: str, *headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title=Text(title), title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    return table
