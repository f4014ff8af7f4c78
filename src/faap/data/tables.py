"""CSV files: a table that gives images their group."""

import csv
import io
import json
from itertools import zip_longest
from pathlib import Path

from faap.data.fields import file_key, joined, plain
from faap.data.problems import Problem, noting, place, read_bytes
from faap.errors import nearest

_IDS = ("image_id", "image", "id")
_IMAGE_COLUMNS = ("image_id", "file_name", "filename", "file", "image_name", "name", "path", "image", "id")


def read_table(path: Path, group_field: str) -> tuple[dict[str | int, dict[str, str]], list[Problem]]:
    """Read a table from images to their group.

    Args:
        path: a CSV file with a header. One column names the image: the first there is of image_id, file_name,
            filename, file, image_name, name, path, image and id; whole numbers in image_id, image and id are ids, all
            else are file names. The column `group_field` holds its group, one named split its split.
        group_field: name of the column, or of several, joined by +.

    Returns:
        Id, or file name -> {group_field: group, "split": split}, and what is wrong with its rows. Of an image that has
        two groups or splits neither stands there.

    Raises:
        Problem: the file cannot be read or lacks a column.
    """
    columns, rows, problems = read_csv(path)
    written = {name.casefold(): name for name in columns}
    if "name" in written and not any(Path(row[written["name"]]).suffix for _, row in rows):
        del written["name"]  # perhaps a person's
    key = next((written[name] for name in _IMAGE_COLUMNS if name in written), None)
    here, those = place(path), f"(it has {', '.join(columns)})"
    if key is None:
        raise here("missing_column", f"has no column that names images: one of {', '.join(_IMAGE_COLUMNS)} {those}")
    parts = [group_field] if group_field in columns else [part.strip() for part in group_field.split("+")]
    if lacking := [part for part in parts if part not in columns]:
        reason = f"has no column {lacking[0]!r}; --group_field names the one with the group {those}."
        raise here("missing_column", reason + nearest(lacking[0], columns))
    table: dict[str | int, dict[str, str]] = {}
    torn: list[tuple[dict[str, str], str]] = []
    for line, row in rows:
        with noting(problems):
            name, at = row[key], place(path, f"line {line}")
            if not name:
                raise at("bad_field", f"column {key} is empty; it should name an image")
            fields = {group_field: joined([row[part] for part in parts])}
            fields |= {"split": row[written["split"]]} if "split" in written else {}
            number = name.removesuffix(".0")  # as pandas writes a column that has gaps
            is_id = key.casefold() in _IDS and number.isdecimal() and len(number) < 20  # which 64 bits hold
            earlier = table.setdefault(int(number) if is_id else file_key(name), fields)
            for what, word in (("group", group_field), ("split", "split")):
                now, then = fields.get(word, ""), earlier.get(word, "")
                if plain(now) != plain(then):
                    torn.append((earlier, word))
                    reason = f"image {name} is in {what} {now!r} here and in {then!r} in an earlier line"
                    raise at(f"two_{what}s", reason)
    for fields, word in torn:
        fields[word] = ""
    return table, problems


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[Problem]]:
    """Read a CSV file with a header; what a short row lacks is empty, and empty rows are none.

    Args:
        path: the file, UTF-8 or UTF-16, with commas, semicolons or tabs, whichever the header has most of.

    Returns:
        The names of its columns, its rows, each with the line that it ends in, and what is wrong with others: one that
        has more cells than there are columns may have them in any.

    Raises:
        Problem: the file cannot be read.
    """
    content = read_bytes(path)
    try:
        text = content.decode(json.detect_encoding(content))
        # semicolons come from spreadsheets where the comma is a decimal point
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        lines = [(reader.line_num, cells) for row in reader if any(cells := [cell.strip() for cell in row])]
    except (UnicodeDecodeError, csv.Error) as error:
        advice = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise place(path)("unreadable_file", f"not valid CSV: {error}{advice}") from error
    [(_, header), *rows] = lines or [(1, [])]
    columns = [name for name in header if name]  # a comma at the end names none
    if len(set(columns)) < len(columns):
        raise place(path)("missing_column", f"its first line should name each column once, found {columns}")
    why = f"{len(header)}; each column should have a name there, and a cell with {delimiter!r} in it quotes"
    long = {n: f"has {len(row)} cells, and the first line {why}" for n, row in rows if any(row[len(header) :])}
    problems = [place(path, f"line {line}")("bad_field", reason) for line, reason in long.items()]
    right = [(line, dict(zip_longest(header, cells, fillvalue=""))) for line, cells in rows if line not in long]
    return columns, right, problems
