"""What is wrong with a data set, record by record."""

from collections.abc import Sequence
from pathlib import Path

from faap.errors import FaapError

_SHOWN = 10


class Problem(FaapError):
    """One thing that is wrong with a data set; it can be raised, or kept in a list with others.

    Attributes:
        kind: what kind of thing, a word of `docs/data.md`, such as "bad_box".
        file: the file that says so.
        record: the record in it, such as "annotation 7"; empty for the file as a whole.
        reason: what is wrong, and what would be right.
    """

    def __init__(self, kind: str, file: Path, record: str, reason: str) -> None:
        super().__init__(": ".join(part for part in (str(file), record, reason) if part))
        self.kind, self.file, self.record, self.reason = kind, file, record, reason


def refuse(problems: Sequence[Problem]) -> None:
    """Raise a FaapError that lists the problems, if there are any."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        more = len(problems) - _SHOWN
        lines = [str(problem) for problem in problems[:_SHOWN]] + ([f"… and {more} more"] if more > 0 else [])
        raise FaapError(
            f"{len(problems)} records of the data set are broken. `faap check` lists them all; --skip-bad goes on "
            "without them.\n" + "\n".join(lines)
        )
