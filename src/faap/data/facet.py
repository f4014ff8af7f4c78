"""FACET's annotations: a CSV file with a person a row."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from faap.data.boxes import check_box
from faap.data.coco import Reading, Row, check_header, record_of
from faap.data.fields import MISSING
from faap.data.finding import Finder
from faap.data.orientation import upright
from faap.data.problems import MakeProblem, Problem, noting, place
from faap.data.tables import read_csv

FACET_COLUMNS = ("filename", "bounding_box")
FACET_ATTRIBUTE = "gender_presentation"
FACET_LICENCE = "FACET's licence allows evaluation only: it may not be trained on."


def is_facet(path: Path) -> bool:
    """Whether a CSV file has FACET's columns."""
    try:
        columns, _ = read_csv(path)
    except Problem:
        return False
    return all(name in columns for name in FACET_COLUMNS)


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
    columns, rows = read_csv(path)
    voted = {name: name[len(attribute) + 1 :] for name in columns if name.startswith(f"{attribute}_")}
    for name in (*FACET_COLUMNS, *([] if voted else [f"{attribute}_…"])):
        if name not in columns and name not in voted:
            reason = f"has no column {name}; --group_field names the attribute (columns: {', '.join(columns)})"
            raise Problem("missing_column", path, "", reason)
    starts = {group.partition("_")[0] for group in voted.values()}
    if len(voted) > 1 and len(starts) == 1:
        whole = f"{attribute}_{starts.pop()}"
        raise Problem("missing_column", path, "", f"{attribute!r} is no attribute; did you mean {whole!r}?")
    try:
        finder = Finder([*sorted(path for path in root.iterdir() if path.is_dir()), root])
    except OSError as error:
        raise Problem("missing_image", root, "", f"cannot be read: {error.strerror}; it should hold images") from error
    result = Reading(categories={1: "person"})
    people: dict[str, list[Row]] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    paths: dict[str, Path] = {}
    seen: set[str] = set()
    for line, row in rows:
        person = row.get("person_id", "")
        record = f"line {line}" + (f" (person {person})" if person else "")
        problem = place(path, record)
        with noting(result.problems):
            if person and person in seen:
                raise problem("duplicate_id", "the person_id is used by an earlier line; ids must differ")
            seen.add(person)
            name = row["filename"]
            if name != os.path.basename(name) or not name:
                raise problem("leaves_folder", f"filename {name!r:.80} should be a name without folders")
            if name not in sizes:
                sizes[name] = None  # so that a broken image is said to be once
                paths[name] = finder.find(name, problem)
                sizes[name] = upright(*check_header(paths[name], problem))
            size = sizes[name]
            if size is None:
                continue
            box = check_box(_facet_box(row["bounding_box"]), size, problem)
            group = _most_voted(row, voted, problem)
            people.setdefault(name, []).append((box, 1, box[2] * box[3], False, group))
    if not sizes:
        raise Problem("empty_split", path, "", "holds no person; an empty split cannot be used")
    for number, (name, rows_of) in enumerate(people.items(), start=1):
        size = sizes[name]
        assert size is not None  # or it would have no people
        result.add(record_of(number, paths[name], size, rows_of))
    return result


def _facet_box(text: str) -> Any:
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
        said = "0" if row[column].casefold() in MISSING else row[column]
        with suppress(ValueError):
            votes[group] = float(said)
        if not 0 <= votes.get(group, -1) < math.inf:
            raise problem("bad_field", f"{column} should be a number of votes, found {row[column]!r:.80}")
    most = max(votes.values())
    winners = [group for group, count in votes.items() if count == most]
    return winners[0] if most > 0 and len(winners) == 1 and winners[0] != "na" else ""
