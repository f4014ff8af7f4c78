"""FACET's annotations: a CSV file with a person a row."""

import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from faap.data.fields import MISSING
from faap.data.problems import MakeProblem, Problem, lfs_pointer, noting, place
from faap.data.reading import Entry, Reader, Reading
from faap.data.tables import read_csv

FACET_COLUMNS = ("filename", "bounding_box")
FACET_ATTRIBUTE = "gender_presentation"
FACET_LICENCE = "FACET's licence allows evaluation only: it may not be trained on."


def is_facet(path: Path) -> bool:
    """Whether a CSV file has FACET's columns, or may have them where Git LFS keeps it."""
    with suppress(Problem):
        return set(FACET_COLUMNS) <= set(read_csv(path)[0])
    return bool(lfs_pointer(path))


def read_facet(path: Path, root: Path, attribute: str = FACET_ATTRIBUTE) -> Reading:
    """Read FACET's annotations.csv: a person a row, of any class, with the attributes that annotators saw.

    A person's group is the one column of the attribute with the most votes, without the attribute's name: `masc`, `fem`
    or `non_binary` for gender_presentation, `1` to `10` for skin_tone. Who has none, a tie, or `na` counts for nobody.

    Args:
        path: the file, with columns filename, bounding_box (JSON with x, y, width, height in pixels) and those of the
            attribute.
        root: images are looked for in it and in the folders in it.
        attribute: the columns' common beginning, such as gender_presentation, skin_tone, visible or age_presentation.

    Returns:
        The records in the order of the file, and what is wrong with the others; one category, person.

    Raises:
        Problem: the file cannot be read, lacks a column, or has no row.

    Source: Gustafson et al., FACET: Fairness in Computer Vision Evaluation Benchmark, ICCV 2023.
    """
    columns, rows, problems = read_csv(path)
    voted = {name: name[len(attribute) + 1 :] for name in columns if name.startswith(f"{attribute}_")}
    lacking = [name for name in FACET_COLUMNS if name not in columns] + ([] if voted else [f"{attribute}_…"])
    if lacking:
        reason = f"has no column {lacking[0]}; --group_field names the attribute (columns: {', '.join(columns)})"
        raise place(path)("missing_column", reason)
    starts = {group.partition("_")[0] for group in voted.values()}
    if len(voted) > 1 and len(starts) == 1:
        whole = f"{attribute}_{starts.pop()}"
        raise place(path)("missing_column", f"{attribute!r} is no attribute; did you mean {whole!r}?")
    images: dict[str, Entry] = {}
    people: list[Entry] = []
    seen: set[str] = set()
    for line, row in rows:
        person, name = row.get("person_id", ""), row["filename"]
        label = f"line {line}" + (f" (person {person})" if person else "")
        with noting(problems):
            at = place(path, label)
            if person and person in seen:
                raise at("duplicate_id", "the person_id is used by an earlier line; ids must differ")
            seen.add(person)
            _, image = images.setdefault(name, (label, {"id": len(images) + 1, "file_name": name}))
            fields = {"id": line, "image_id": image["id"], "category_id": 1, "bbox": _box(row["bounding_box"])}
            people.append((label, {**fields, "group": _most_voted(row, voted, at)}))
    category = ("category 1", {"id": 1, "name": "person"})
    lists = {"images": list(images.values()), "annotations": people, "categories": [category]}
    folders = [*sorted(root.glob("*/")), root]
    reader = Reader(
        path, lists, folders, roots=[root], group_field="group", table=lambda: ({}, problems), complete=False
    )
    return replace(reader.read(), renumbered=True)


def _box(text: str) -> Any:
    """Read a bounding box, {"x", "y", "width", "height"} or a list, as a list; other values as they are."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return [value.get(key) for key in ("x", "y", "width", "height")] if isinstance(value, dict) else value


def _most_voted(row: dict[str, str], voted: dict[str, str], problem: MakeProblem) -> str:
    """Return the group that the most annotators saw; empty for a tie, for na, and where nobody saw any."""
    votes: dict[str, float] = {}
    for column, group in voted.items():
        with suppress(ValueError):
            votes[group] = 0.0 if row[column].casefold() in MISSING else float(row[column])
        if not 0 <= votes.get(group, -1) < math.inf:
            raise problem("bad_field", f"{column} should be a number of votes, found {row[column]!r:.80}")
    most = max(votes.values())
    winners = [group for group, count in votes.items() if count == most]
    return winners[0] if most > 0 and len(winners) == 1 and winners[0] != "na" else ""
