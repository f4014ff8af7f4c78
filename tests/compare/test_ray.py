import io
import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import faap
from faap import cli
from faap.compare import RayRunner, compare
from faap.compare.local import sent
from faap.compare.ray import _train
from faap.config import Recipe, load_recipe
from faap.errors import FaapError

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes of one CPU each, on this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # a short path, for sockets lie in it; not where a cluster of the user's is looked for, and there before Ray is
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        patch.setenv("RAY_worker_niceness", "0")  # 15 would wait long for a machine with other work
        nodes = Cluster(initialize_head=True, head_node_args={"include_dashboard": False})
        try:
            nodes.add_node()
            yield nodes.address
        finally:
            nodes.shutdown()


@pytest.fixture
def recipes(tiny_promenade: Path, tiny_detector: Path) -> list[Recipe]:
    small: dict[str, Any] = {"dataset_root": tiny_promenade, "detr_checkpoint": tiny_detector, "device": "cpu"}
    small |= {"epochs": 1, "batch_size": 4, "images_per_epoch": 4}
    return [load_recipe(name, **small) for name in ("moco_4th", "infonce_4th")]


def test_runs_on_two_nodes_are_those_made_here_and_end_as_they_do(
    cluster: str, recipes: list[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # not what Ray gives a task of one CPU; the last bits show it
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.chdir(tmp_path)
    runner = RayRunner(cluster)
    with runner.open([], QUIET):  # joined once, so that the processes on its nodes, which are slow to start, stay
        there = compare(recipes, "there", runner=runner, console=QUIET)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        _fail_and_interrupt(runner, recipes)
    assert there["failed"] == []
    logs = [Path("there/logs", f"{recipe.name}_0.log").read_text().splitlines() for recipe in recipes]
    assert len({log[0] for log in logs}) == 2
    faap.train(replace(recipes[0], output_dir="here"), console=QUIET)
    torch.set_num_threads(threads)
    one, other = Path("here"), Path("there") / recipes[0].name / "seed_0"
    measured = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    for metrics in measured:
        metrics.get("provenance", {}).pop("date", None)
    assert measured[0] == measured[1]
    rows = [json.loads((run / "train_log.jsonl").read_text()) | {"seconds": 0} for run in (one, other)]
    assert rows[0] == rows[1]
    weights = [(run / "generator" / "model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]
    # no cluster is joined where nothing is to be made
    assert compare(recipes, "there", runner=RayRunner("nowhere:1"), console=QUIET) == there


def _fail_and_interrupt(runner: RayRunner, recipes: list[Recipe]) -> None:
    endless = replace(recipes[0], output_dir="endless", epochs=100_000)
    bad = replace(recipes[1], output_dir="bad", dataset_root="/nowhere")
    with ThreadPoolExecutor(1) as pool:
        ends = pool.submit(runner.train, endless, Path("endless.log"), 1)
        with pytest.raises(FaapError, match=r"^data set /nowhere: .* \(exit status 2, log bad\.log\)$"):
            runner.train(bad, Path("bad.log"), 1)
        runner.end()
        assert ends.exception(timeout=60)


@pytest.mark.parametrize(
    ("nodes", "device", "threads", "wanted", "said"),
    [
        ([{"CPU": 16.0}], "auto", 4, (4, 0), ""),
        ([{"CPU": 4.0}, {"CPU": 8.0}], "cpu", 64, (8, 0), ""),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 128.0}], "auto", 64, (8, 1), ""),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 128.0}], "cpu", 64, (64, 0), ""),
        ([{"CPU": 2.0, "GPU": 4.0}], "cuda:0", 4, (1, 1), ""),
        ([{"CPU": 8.0}], "cuda", 4, (4, 1), "has a GPU"),
        ([{}], "cpu", 4, (4, 0), "has a CPU"),
    ],
)
def test_what_ray_is_asked_for(
    nodes: list[dict[str, float]],
    device: str,
    threads: int,
    wanted: tuple[int, int],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    cancelled: list[str] = []

    class Task:
        def options(self, **options: Any) -> "Task":
            asked.append(options)
            return self

        def remote(self, *arguments: Any) -> str:
            assert arguments[2] == str(threads)
            return "task"

    fake = SimpleNamespace(
        is_initialized=lambda: True,  # by the user, so that nothing is to be shut down here
        nodes=lambda: [{"Alive": True, "Resources": node} for node in nodes] + [{"Alive": False, "Resources": {}}],
        remote=lambda function: Task(),
        get=lambda task: runner.end() or "far",
        cancel=lambda task, force: cancelled.append(task),
        exceptions=SimpleNamespace(RayTaskError=ZeroDivisionError),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    recipe = load_recipe("moco_4th", device=device, output_dir=tmp_path / "run")
    shown = io.StringIO()
    runner = RayRunner()
    with (
        runner.open([recipe], Console(file=shown)),
        pytest.raises(FaapError, match=r"run: trained on far, and cannot be seen here\. .* every node shares"),
    ):
        runner.train(recipe, tmp_path / "log", threads)
    runner.end()
    assert cancelled == ["task"]  # while it ran, and not when it was over
    assert [(options["num_cpus"], options["num_gpus"]) for options in asked] == [wanted]
    assert said in shown.getvalue()
    assert bool(said) == bool(shown.getvalue())
    with (
        pytest.raises(FaapError, match="moco_4th has device cuda:1; with --ray it must be"),
        RayRunner().open([replace(recipe, device="cuda:1")], QUIET),
    ):
        pass


def test_a_node_without_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FaapError, match=r"No such file or directory: '.*far'\. .* every node shares"):
        _train(sent(load_recipe("moco_4th")), Path("log"), "1", str(tmp_path / "far"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ray", "infonce_4th"], "stands after the recipes"),
        (["--ray", "127.0.0.1:1"], "Ray cannot be reached at 127.0.0.1:1"),
        (["--ray", "ray://127.0.0.1:1"], "refused"),
        (["--rya"], "'--ray'"),
    ],
)
def test_mistakes(
    flags: list[str], said: str, recipes: list[Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    places = ["--dataset_root", recipes[0].dataset_root, "--detr_checkpoint", recipes[0].detr_checkpoint]
    places += ["--output_dir", str(tmp_path)]
    assert cli.main(["compare", "moco_4th", *places, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error


def test_without_ray(
    recipes: list[Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    places = ["--dataset_root", recipes[0].dataset_root, "--detr_checkpoint", recipes[0].detr_checkpoint]
    places += ["--output_dir", str(tmp_path)]
    assert cli.main(["compare", "moco_4th", *places, "--ray"]) == 2
    assert capsys.readouterr().err == "error: --ray needs Ray, which is not installed: pip install 'faap[ray]'.\n"
