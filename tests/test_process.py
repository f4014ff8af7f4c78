"""What a terminal is shown of what strangers wrote."""

import errno
import io

import pytest
from rich.table import Table
from rich.text import Text

from faap.errors import FaapError
from faap.process import Terminal, outcome
from faap.settings import visible
from faap.training.stopping import Stop

HOSTILE = "[/b]\x1b[31m:smile:\x07\x9b2J\ud800"
SHOWN = r"[/b]\x1b[31m:smile:\x07\x9b2J\ud800"


def test_markup_and_escape_sequences_are_shown_and_not_obeyed() -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, width=200)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    for each in (HOSTILE, Text(HOSTILE), table):
        console.print(each, highlight=False)
    assert out.getvalue().count(SHOWN.replace(r"\x07", "")) == 3  # the bell is taken out by rich
    assert out.getvalue().count(r"[/b]\x1b[31m:") == 5  # a table has no room for more
    assert "\x1b[31m" not in out.getvalue()
    assert not {"\x07", "\x9b", "\ud800"} & set(out.getvalue())
    assert visible("two\nlines\tand é") == "two\nlines\tand é"


def test_an_error_is_shown_likewise(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise FaapError(f"no group {HOSTILE}")

    assert outcome(wrong) == 2
    assert capsys.readouterr().err == f"error: no group {SHOWN}\n"


@pytest.mark.parametrize(("signum", "status"), [(15, 143), (2, 130)])
def test_who_is_stopped_ends_as_the_system_expects(
    signum: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        raise Stop(signum)

    assert outcome(stopped) == status
    name = {15: "SIGTERM", 2: "SIGINT"}[signum]
    assert capsys.readouterr().err == f"stopped by {name}; the same command goes on\n"


def test_what_the_system_says_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: OSError) -> None:
        raise error

    for error, said in (
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "there.json"), "there.json: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ):
        assert outcome(lambda error=error: fail(error)) == 2
        assert capsys.readouterr().err.startswith(f"error: {said}")
