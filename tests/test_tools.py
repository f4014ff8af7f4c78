"""The tools that show what docs/reliability.md says, in short; and that they would see it if it were not so."""

import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"
# what stands before a tool and harms faap
LOOSE = """
import itertools, time, faap.audit
acts = itertools.cycle([lambda path: {}["no such key"], lambda path: open(path.parents[1] / "secret.png").close(),
                        lambda path: time.sleep(60)])
faap.audit.read_results = lambda path, split: next(acts)(path)
"""
FORGETFUL = """
from faap.training import trainer
def load(self, *state, real=trainer.Trainer.load_state_dict):
    real(self, *state)
    self.optimizer.state.clear()
trainer.Trainer.load_state_dict = load
"""


def ran(tool: str, *words: str, before: str = "") -> tuple[int, str]:
    program = f"{before}\nimport runpy, sys\nsys.argv = {[tool, *words]!r}\n"
    program += f"runpy.run_path({str(TOOLS / tool)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=900)
    assert done.stdout, done.stderr
    return done.returncode, done.stdout.splitlines()[-1]


def test_nothing_that_is_read_ends_in_anything_but_words() -> None:
    assert ran("fuzz.py", "150", "--jobs", "1", "--seed", "1") == (0, "0 tracebacks, 0 hangs, 0 escapes")


def test_a_traceback_an_escape_and_a_hang_would_be_seen() -> None:
    found = ran("fuzz.py", "3", "--jobs", "1", "--kinds", "results", before=LOOSE)
    assert found == (1, "1 tracebacks, 1 hangs, 1 escapes")


def test_trainings_that_are_killed_end_as_if_they_had_not_been() -> None:
    status, last = ran("kill_test.py", "8", "--jobs", "1", "--recipes", "moco_4th", "--seed", "3")
    assert status == 0, last
    kills, *_, wrong = last.split(", ")
    assert int(kills.split()[0]) >= 8
    assert wrong == "0 mismatches"


def test_a_training_that_forgets_its_optimizer_would_be_seen() -> None:
    status, last = ran("kill_test.py", "6", "--jobs", "1", "--recipes", "moco_4th", "--seed", "3", before=FORGETFUL)
    assert status == 1
    assert not last.endswith(" 0 mismatches")


def test_a_wheel_that_lacks_something_or_is_not_in_the_changelog_is_not_released(tmp_path: Path) -> None:
    check = runpy.run_path(str(TOOLS / "check_release.py"))["wrong_with"]
    (tmp_path / "src" / "faap").mkdir(parents=True)
    for name in ("__init__.py", "page.html"):
        (tmp_path / "src" / "faap" / name).write_text("")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [0.2.0] - 2026-12-01\n")
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    wheel = tmp_path / "faap-0.2.0-py3-none-any.whl"

    def held(*names: str) -> list[str]:
        with zipfile.ZipFile(wheel, "w") as file:
            for name in names:
                file.writestr(name, "")
        return list(check(wheel, tmp_path))

    assert held("faap/__init__.py", "faap/page.html", "faap-0.2.0.dist-info/METADATA") == []
    assert held("faap/__init__.py") == [f"{wheel.name}: lacks faap/page.html"]
    (extra,) = held("faap/__init__.py", "faap/page.html", "faap/secret.txt")
    assert "faap/secret.txt" in extra
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n")
    (changelog,) = held("faap/__init__.py", "faap/page.html")
    assert "has no heading '## [0.2.0]" in changelog
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.3.0"\n')
    assert len(held("faap/__init__.py", "faap/page.html")) == 2
