"""The tools that show what docs/reliability.md says, in short; and that they would see it if it were not so."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
# what stands before a tool and harms faap
BROKEN = {
    "a traceback": "import faap.audit; faap.audit.read_results = lambda *_: {}['no such key']",
    "an escape": "import faap.audit; faap.audit.read_results = lambda path, _: open(path.parents[1] / 'secret.png').close()",
    "a hang": "import faap.audit, time; faap.audit.read_results = lambda *_: time.sleep(60)",
    "a log that lacks": "from faap.runs import Run; Run.read_log = lambda self, real=Run.read_log: real(self)[:1]",
}


def ran(tool: str, *words: str, before: str = "") -> tuple[int, str]:
    program = f"{before}\nimport runpy, sys\nsys.argv = {[tool, *words]!r}\n"
    program += f"import pathlib; sys.path[:0] = [{str(TOOLS)!r}]\n"
    program += f"runpy.run_path({str(TOOLS / tool)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=600)
    assert done.stdout, done.stderr
    return done.returncode, done.stdout.splitlines()[-1]


def test_nothing_that_is_read_ends_in_anything_but_words() -> None:
    status, last = ran("fuzz.py", "150", "--jobs", "1", "--seed", "1")
    assert (status, last) == (0, "0 tracebacks, 0 hangs, 0 escapes")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a traceback", "2 tracebacks, 0 hangs, 0 escapes"),
        ("an escape", "0 tracebacks, 0 hangs, 2 escapes"),
        ("a hang", "0 tracebacks, 1 hangs, 0 escapes"),
    ],
)
def test_it_would_be_seen(what: str, said: str) -> None:
    count = "1" if what == "a hang" else "2"
    status, last = ran("fuzz.py", count, "--jobs", "1", "--kinds", "results", before=BROKEN[what])
    assert (status, last) == (1, said)


def test_trainings_that_are_killed_end_as_if_they_had_not_been() -> None:
    status, last = ran("kill_test.py", "8", "--jobs", "1", "--recipes", "moco_4th", "--seed", "3")
    assert status == 0, last
    kills, *_, wrong = last.split(", ")
    assert int(kills.split()[0]) >= 8
    assert wrong == "0 mismatches"
