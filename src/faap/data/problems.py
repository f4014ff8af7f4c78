"""What is wrong with a data set, record by record."""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from faap.errors import FaapError
from faap.files import MOST_TEXT, refuse_odd
from faap.files import lfs_pointer as lfs_pointer

MakeProblem = Callable[[str, str], "Problem"]
_SHOWN = 10


class Problem(FaapError):
    """One thing that is wrong with a data set; it can be raised, or kept in a list with others.

    Attributes:
        reason: what is wrong, and what would be right.
        kind: what kind of thing, a word of `docs/data.md`, such as "bad_box".
        file: the file that says so.
        record: the record in it, such as "annotation 7"; empty for the file as a whole.
    """

    # a process of a data loader makes what another raised from its message alone
    def __init__(self, reason: str, kind: str = "", file: Path | str = "", record: str = "") -> None:
        super().__init__(": ".join(part for part in (str(file), record, reason) if part))
        self.reason, self.kind, self.file, self.record = reason, kind, file, record


def place(file: Path, record: str = "") -> MakeProblem:
    """Return what makes problems, of a kind and a reason, of one place in a file."""
    return lambda kind, reason: Problem(reason, kind, file, record)


@contextmanager
def noting(problems: list[Problem]) -> Iterator[None]:
    """Keep a problem of the block in a list instead of raising it."""
    try:
        yield
    except Problem as problem:
        problems.append(problem)


def refuse(problems: Sequence[Problem]) -> None:
    """Raise a FaapError that lists the problems, if there are any."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        advice = "`faap check` lists them all; --skip-bad goes on without them."
        lines = [f"{len(problems)} records of the data set are broken. {advice}", *map(str, problems[:_SHOWN])]
        lines += [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise FaapError("\n".join(lines))


@contextmanager
def opening(path: Path, make: MakeProblem, what: str = "file") -> Iterator[None]:
    """Turn what is raised where a broken "file" or "image" is read into a problem; of images that is of many kinds.

    Raises:
        FaapError: if that is no fault of the file, but of what this machine has left.
    """
    try:
        yield
    except FaapError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            advice = "Too many files are open, or memory ran out: use fewer --num_workers, or raise ulimit -n."
            raise FaapError(f"{path}: cannot be read now: {str(error) or 'out of memory'}. {advice}") from error
        told = f"cannot be read{' as an image' if what == 'image' else ''}: {getattr(error, 'strerror', None) or error}"
        raise make(f"unreadable_{what}", lfs_pointer(path) or told) from error


def read_bytes(path: Path) -> bytes:
    """Read a file of annotations, which must be an ordinary one: a pipe would be waited for."""
    with opening(path, place(path)):
        if lfs_pointer(path) or (path.exists() and not path.is_file()):
            raise OSError("it is no file")
        refuse_odd(path, MOST_TEXT)
        return path.read_bytes()
