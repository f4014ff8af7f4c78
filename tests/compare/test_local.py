"""Processes of this machine: those that `LocalRunner` starts, and small ones in their place."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from faap.compare import LocalRunner, compare
from faap.compare.local import rebuilt, sent
from faap.compare.standing import standing
from faap.config import load_recipe
from faap.errors import FaapError
from faap.runs import Run
from faap.training.stopping import Stop

RECIPE = load_recipe("moco_4th")


def runner(script: str) -> LocalRunner:
    """A runner whose processes run a script instead of a training."""
    made = LocalRunner()
    made.command = (sys.executable, "-c", script)
    return made


def test_a_run_in_its_own_process(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # nothing is imported because it lies where the command is given
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    LocalRunner().train(replace(finished.recipes[0], output_dir="run"), Path("logs/run.log"), 1)
    first, second = (
        torch.load(run / "checkpoints" / "epoch_0001.pth", weights_only=True)["generator"]
        for run in (finished.root / "infonce_4th" / "seed_0", tmp_path / "run")
    )
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)
    assert "validation AP gap" in Path("logs/run.log").read_text()


def test_terms_of_ones_own_go_with_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "dispersion.py").write_text(
        "from dataclasses import dataclass\n"
        "from faap.objectives import Term, setting\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Settings:\n"
        "    lambda_spread: float = setting(0.1, 'weight of the spread', low=0)\n"
        "def terms(recipe, feature_dim, projected_dim):\n"
        "    yield Term('spread', recipe.lambda_spread, lambda view: -view.projected[0].var(0).sum())\n"
    )
    (mine / "own.yaml").write_text("base: moco_4th\nterms: dispersion\nlambda_spread: 0.3\n")
    recipe = load_recipe(mine / "own.yaml")
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    again = rebuilt(json.loads(json.dumps(sent(recipe))))
    assert again.to_dict() == recipe.to_dict()
    assert again.own is not None
    assert again.to_dict()["lambda_spread"] == 0.3
    # what lies in a run's folder is held against them, and a run folder alone brings nothing in
    run = Run(there)
    replace(recipe, resume="").save(run.config)
    run.log.touch()
    assert "other settings" not in standing(replace(recipe, output_dir=str(there))).note
    assert "other settings" in standing(replace(RECIPE, output_dir=str(there))).note


def test_a_process_for_which_nobody_waits_ends(finished: Any, tmp_path: Path) -> None:
    recipe = replace(finished.recipes[0], output_dir=str(tmp_path / "run"), epochs=100_000)
    process = subprocess.Popen(LocalRunner.command, stdin=subprocess.PIPE)
    process.communicate(json.dumps(sent(recipe)).encode() + b"\n", timeout=60)
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('error: no such data'); raise SystemExit(2)", r"^no such data \(exit status 2, log .*run\.log\)$"),
        ("import sys; sys.stdin.close(); raise SystemExit(3)", r"^nothing was printed \(exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"^nothing was printed \(ended by SIGKILL"),
    ],
)
def test_what_is_said_of_a_process_that_fails(script: str, said: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    log.parent.mkdir()
    log.write_text("error: of an earlier run\n")
    with pytest.raises(FaapError, match=said):
        runner(script).train(RECIPE, log, 1)
    assert log.read_text().startswith("error: of an earlier run\n")


def test_a_process_reads_its_recipe_and_has_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    log = tmp_path / "log"
    runner("import os; print(os.environ['OMP_NUM_THREADS'], input())").train(RECIPE, log, 3)
    threads, _, fields = log.read_text().partition(" ")
    assert threads == "3"
    assert rebuilt(json.loads(fields)) == RECIPE


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """A shell that runs the tests in the background has them ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("heeds_interrupts")
def test_an_interrupt_ends_the_processes_and_starts_no_further_run(
    told: signal.Signals, small: dict[str, Any], tmp_path: Path
) -> None:
    # the process itself interrupts this one, and goes on for as long as it is let
    script = f"import os, sys; os.kill({os.getpid()}, {int(told)}); print(os.getpid(), flush=True); input()"
    script += "; sys.stdin.read()"
    with pytest.raises(Stop, match=f"stopped by {told.name}"):
        compare(
            [load_recipe("moco_4th", **small)], tmp_path, seeds=3, console=Console(quiet=True), runner=runner(script)
        )
    logs = list((tmp_path / "logs").iterdir())
    assert [log.name for log in logs] == ["moco_4th_0.log"]
    for word in logs[0].read_text().split():
        for _ in range(100):  # an interrupt at an unhappy moment does not wait for the thread that reaps it
            if not Path("/proc", word).exists():
                break
            time.sleep(0.05)
        with pytest.raises(ProcessLookupError):
            os.kill(int(word), 0)


def test_a_run_that_begins_when_the_others_have_been_ended_is_ended_too(tmp_path: Path) -> None:
    ended = runner("import sys; sys.stdin.read()")
    ended.end()
    with pytest.raises(FaapError, match="ended by SIGTERM"):
        ended.train(RECIPE, tmp_path / "log", 1)


def test_runs_spread_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # each waits until all three are there
    script = "import os, sys, time\n"
    script += "print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)\n"
    script += "while sum(os.path.getsize(name) > 0 for name in os.listdir('.')) < 3: time.sleep(.01)"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run_three(name: str, device: str) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        here, recipe, errors = runner(script), load_recipe("moco_4th", device=device), []
        with ThreadPoolExecutor(3) as pool:
            made = [pool.submit(here.train, recipe, folder / str(number), 1) for number in range(3)]
        errors = [each.exception() for each in made]
        assert errors == [None] * 3
        return sorted((folder / str(number)).read_text().strip() for number in range(3))

    assert run_three("one", "auto") in (["0", "0", "1"], ["0", "1", "1"])
    assert run_three("two", "cuda:1") == ["None"] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert set(run_three("three", "cuda")) == {"5", "7"}
