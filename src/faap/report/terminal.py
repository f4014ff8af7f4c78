"""The result of an evaluation, and of a comparison, as a table for the terminal."""

import re
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from faap.evaluation import HEADLINE
from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN
from faap.report import words
from faap.report.words import number

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
    metrics = words.named(metrics, metrics["images"])
    anchor, reference = list(metrics["baseline"])[:2]
    criteria = columns("success criteria", "", "before", "after", "target", "")
    for name, *numbers, _, verdict in words.criteria_rows(metrics, anchor, reference):
        criteria.add_row(Text(name), *numbers, Text(f"{words.MARKS[verdict]} {verdict}", _STYLES[verdict]))
    warnings = [Text(f"{note}\n", style="bold red") for note in words.notes(metrics)]
    beside = [part for other in metrics.get("beside", {}).items() for part in _beside(*other)]
    source = "\n".join(f"{name}: {text}" for name, text in words.provenance_rows(metrics))
    source = _HASH.sub(lambda found: f"{found[0][:12]}…", source)
    return Group(_changes(metrics, words.measured_on(metrics)), criteria, *warnings, *beside, Text(source, style="dim"))


def _beside(name: str, metrics: Mapping[str, Any]) -> list[RenderableType]:
    """Another generator on the same images, with what is to be said of it."""
    warnings = [Text(f"{note}\n", style="bold red") for note in words.notes(metrics)]
    return [_changes(metrics, f"the generator {name} on the same images ({words.cost(metrics)})"), *warnings]


def _changes(metrics: Mapping[str, Any], title: str) -> Table:
    reference = list(metrics["baseline"])[1]
    table = columns(f"{title}, each number with its 95 % interval", "", "before", "after", "change", "p")
    rows = [(f"{group} ", "", row) for group, row in metrics["changes"].items()]
    rows += [("", f" gap ({reference} − {group})", row) for group, row in metrics["gaps"].items()]
    for begin, end, row in rows:
        for name in words.SHOWN:
            said = [stacked(*each) for each in words.change(row[name])]
            cells = [Text(f"{begin}{name}{end}"), *said, Text(words.p_value(row[name]["p_value"]))]
            table.add_row(*cells, end_section=name == words.SHOWN[-1])
    return table


def comparison_table(comparison: Mapping[str, Any], width: int = 120) -> Group:
    """Lay out a comparison for the terminal: the baseline, and a row a recipe.

    Args:
        comparison: content of compare.json.
        width: of the terminal in characters, 80 or more; below 100 the seconds are left out.

    Returns:
        Something `rich.print` shows.
    """
    comparison = words.named(comparison, comparison["images"])
    gap, *names = words.columns(comparison["anchor"], comparison["reference"]).values()
    headings = ["", gap, "change", *names, "criteria", "seconds"][: 8 if width >= 100 else 7]
    table = columns(words.measured_on(comparison), *headings)
    table.padding = (0, int(width >= 100), 0, 0)
    for column in (table.columns[1], *table.columns[3:6]):
        column.min_width = 11  # a mean with its error; what gives way is the heading
    first, *rest = (short(number(comparison["baseline"][key])) for key in HEADLINE)
    table.add_row(*["baseline", first, "", *rest, "", ""][: len(headings)], end_section=True)
    for recipe in comparison["recipes"]:
        first, *rest = (short(words.spread(recipe["summary"][key], "±")) for key in HEADLINE)
        moved = short(number(recipe["summary"]["ap_gap"]["change"], sign=True))
        met = "-".join(number(recipe["success"][key], 0) for key in HEADLINE) + f"/{len(recipe['runs'])}"
        cells = [first, moved, *rest, met, number(recipe["seconds"]["mean"], 0)]
        table.add_row(Text(recipe["name"]), *cells[: len(headings) - 1])
    failed = [f"{each['recipe']}, seed {each['seed']}, failed: {each['error']}" for each in comparison["failed"]]
    wrong = [Text(text, "bold red") for text in (*comparison.get("warnings", ()), *failed)]
    return Group(table, Text(), *map(Text, words.comparison_sentences(comparison)), *wrong)


def columns(title: str, *headings: str) -> Table:
    """Numbers in columns; where there is no room for all, the names in the first column give way."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title=Text(title))
    table.title_justify = "left"
    name, *rest = headings
    table.add_column(Text(name), overflow="fold", min_width=8)  # beside four intervals of numbers below zero, in 80
    for heading in rest:
        table.add_column(Text(heading), justify="right" if heading else "left", no_wrap=True)
    return table


def stacked(value: str, sure: str) -> Text:
    """A number over its interval."""
    return Text.assemble(short(value), (f"\n{short(sure)}", "dim"))


def short(text: str) -> str:
    """A number without the zero before its point."""
    return text.replace("0.", ".")
