"""What a terminal is shown of what strangers wrote."""

import errno
import io
import os
import signal
import time
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from faap.errors import FaapError
from faap.files import atomic_write
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


def test_who_is_told_to_end_clears_away_what_is_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> None:
        with atomic_write(tmp_path / "half") as temporary:
            temporary.write_text("ha")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or a test that fails would end them all
    try:
        assert outcome(told) == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "interrupted\n"
    assert [*tmp_path.iterdir()] == []
