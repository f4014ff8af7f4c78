import io
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import faap
from faap import compare as module
from faap.compare import compare, gather, recipes_to_compare, run_in_process
from faap.config import RECIPES, Recipe, load_recipe
from faap.errors import FaapError

QUIET = Console(quiet=True)


@pytest.fixture
def small(tiny_promenade: Path, tiny_detector: Path) -> dict[str, Any]:
    return {
        "dataset_root": tiny_promenade,
        "detr_checkpoint": tiny_detector,
        "device": "cpu",
        "epochs": 2,
        "batch_size": 4,
        "images_per_epoch": 4,
    }


class Runner:
    """Trains in this process, remembers what it was asked for, and fails or stops where it is told to."""

    def __init__(self, fails: Callable[[Recipe], bool] = lambda recipe: False) -> None:
        self.seen: list[Recipe] = []
        self.fails = fails

    def __call__(self, recipe: Recipe, log: Path, threads: int) -> None:
        self.seen.append(recipe)
        if self.fails(recipe):
            raise FaapError("out of luck")
        faap.train(recipe, console=QUIET)


@pytest.fixture(scope="module")
def finished(tiny_promenade: Path, tiny_detector: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two recipes with two seeds each, as several tests look at them."""
    root = tmp_path_factory.mktemp("compare")
    recipes = recipes_to_compare(
        ["infonce_4th", "wgan_7th"],
        dataset_root=tiny_promenade,
        detr_checkpoint=tiny_detector,
        device="cpu",
        epochs=2,
        batch_size=4,
        images_per_epoch=4,
    )
    return {
        "root": root,
        "recipes": recipes,
        "result": compare(recipes, root, seeds=2, console=QUIET, execute=Runner()),
    }


def test_every_run_is_an_ordinary_one(finished: dict[str, Any], tmp_path: Path) -> None:
    root = finished["root"]
    assert sorted(str(path.parent.relative_to(root)) for path in root.glob("*/*/metrics.json")) == [
        "infonce_4th/seed_0",
        "infonce_4th/seed_1",
        "wgan_7th/seed_0",
        "wgan_7th/seed_1",
    ]
    alone = faap.train(replace(finished["recipes"][1], seed=1, output_dir=str(tmp_path / "alone")), console=QUIET)
    assert json.loads((root / "wgan_7th" / "seed_1" / "metrics.json").read_text()) == alone.metrics


def test_numbers_are_those_of_the_runs(finished: dict[str, Any]) -> None:
    result, root = finished["result"], finished["root"]
    assert json.loads((root / "compare.json").read_text()) == result
    assert [recipe["name"] for recipe in result["recipes"]] == ["infonce_4th", "wgan_7th"]
    for recipe in result["recipes"]:
        metrics = [json.loads((root / recipe["name"] / f"seed_{s}" / "metrics.json").read_text()) for s in (0, 1)]
        logs = [
            [json.loads(line) for line in (root / recipe["name"] / f"seed_{s}" / "train_log.jsonl").open()]
            for s in (0, 1)
        ]
        gaps = [m["perturbed"]["male"]["AP"] - m["perturbed"]["female"]["AP"] for m in metrics]
        before = metrics[0]["baseline"]["male"]["AP"] - metrics[0]["baseline"]["female"]["AP"]
        summary = recipe["summary"]
        assert summary["ap_gap"]["mean"] == pytest.approx(sum(gaps) / 2)
        assert summary["ap_gap"]["std"] == pytest.approx(statistics.stdev(gaps))
        assert summary["ap_gap"]["change"] == pytest.approx(sum(gaps) / 2 - before)
        assert summary["anchor_ap"]["mean"] == pytest.approx(sum(m["perturbed"]["female"]["AP"] for m in metrics) / 2)
        recalls = [m["perturbed"]["male"]["AR100"] - m["perturbed"]["female"]["AR100"] for m in metrics]
        assert summary["ar_gap"]["mean"] == pytest.approx(sum(recalls) / 2)
        for criterion, count in recipe["success"].items():
            assert count == sum(m["success"][criterion]["met"] for m in metrics)
        assert recipe["detector_passes"] == {"forward": 8, "backward": 8}
        for run, log, m in zip(recipe["runs"], logs, metrics, strict=True):
            assert run["seconds"] == pytest.approx(sum(row["seconds"] for row in log))
            assert run["ap_gap_ci95"] == m["gap"]["AP"]["ci95"]
            assert run["curves"]["epoch"] == [0, 1]
            assert run["curves"]["validation"]["ap_gap"] == pytest.approx(
                [row["validation"]["gap"]["AP"] for row in log], rel=1e-5
            )
            assert run["curves"]["train"]["total"] == pytest.approx([row["train"]["total"] for row in log], rel=1e-5)
            best = torch.load(Path(run["run_dir"]) / "checkpoints" / "best.pth", weights_only=True)
            assert run["epoch"] == best["epoch"]
    assert result["shared"]["images_per_epoch"] == 4
    assert "seed" not in result["shared"]
    assert result["recipes"][0]["differs"] == {}
    assert result["recipes"][1]["differs"]["lambda_adv"] == 2.0
    assert result["validation_baseline"]["anchor_ap"] == logs[0][0]["validation"]["baseline"]["female"]["AP"]


def test_finished_runs_are_not_repeated(finished: dict[str, Any]) -> None:
    nothing = Runner(lambda recipe: pytest.fail("trained again"))
    again = compare(finished["recipes"], finished["root"], seeds=2, console=QUIET, execute=nothing)
    assert again == finished["result"]
    more = Runner()
    compare([finished["recipes"][0]], finished["root"], seeds=3, console=QUIET, execute=more)
    assert [(recipe.name, recipe.seed) for recipe in more.seen] == [("infonce_4th", 2)]


def test_a_failed_run_is_reported_and_the_others_go_on(small: dict[str, Any], tmp_path: Path) -> None:
    recipes = recipes_to_compare(["infonce_4th", "moco_4th"], **small | {"epochs": 1})
    broken = Runner(lambda recipe: recipe.name == "infonce_4th" and recipe.seed == 0)
    result = compare(recipes, tmp_path, seeds=2, console=QUIET, execute=broken)
    assert result["failed"] == [{"recipe": "infonce_4th", "seed": 0, "error": "out of luck"}]
    assert {recipe["name"]: len(recipe["runs"]) for recipe in result["recipes"]} == {"infonce_4th": 1, "moco_4th": 2}
    mended = Runner()
    assert compare(recipes, tmp_path, seeds=2, console=QUIET, execute=mended)["failed"] == []
    assert [(recipe.name, recipe.seed) for recipe in mended.seen] == [("infonce_4th", 0)]


def test_when_all_runs_fail_there_is_still_a_report(small: dict[str, Any], tmp_path: Path) -> None:
    result = compare([load_recipe("moco_4th", **small)], tmp_path, console=QUIET, execute=Runner(lambda recipe: True))
    assert result["recipes"] == []
    assert "out of luck" in (tmp_path / "compare.html").read_text()


def test_an_interrupted_run_goes_on_to_the_same_weights(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("moco_4th", **small)
    compare([recipe], tmp_path / "whole", console=QUIET, execute=Runner())
    from faap.training import Trainer

    real = Trainer.epoch

    def dies(self: Any, epoch: int, *rest: Any) -> Any:
        if epoch == 1:
            raise KeyboardInterrupt
        return real(self, epoch, *rest)

    monkeypatch.setattr(Trainer, "epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        compare([recipe], tmp_path / "cut", console=QUIET, execute=Runner())
    monkeypatch.setattr(Trainer, "epoch", real)
    runner = Runner()
    compare([recipe], tmp_path / "cut", console=QUIET, execute=runner)
    assert [Path(seen.resume).name for seen in runner.seen] == ["epoch_0000.pth"]
    whole, cut = (
        torch.load(tmp_path / name / "moco_4th/seed_0/checkpoints/epoch_0001.pth", weights_only=True)
        for name in ("whole", "cut")
    )
    assert all(torch.equal(whole["generator"][key], cut["generator"][key]) for key in whole["generator"])
    assert all(torch.equal(whole["objective"][key], cut["objective"][key]) for key in whole["objective"])


def test_a_run_with_other_settings_is_moved_aside(small: dict[str, Any], tmp_path: Path) -> None:
    for rate in (1e-4, 2e-4):
        compare([load_recipe("moco_4th", **small, lr_g=rate)], tmp_path, console=QUIET, execute=Runner())
    kept = tmp_path / "moco_4th" / "seed_0.1" / "config.yaml"
    assert load_recipe(kept).lr_g == 1e-4
    assert load_recipe(tmp_path / "moco_4th" / "seed_0" / "config.yaml").lr_g == 2e-4


def test_a_launcher_of_processes_is_refused(small: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FaapError, match="not under torchrun"):
        compare([load_recipe("moco_4th", **small)], tmp_path, console=QUIET)


def test_runs_of_different_baselines_are_not_compared(finished: dict[str, Any], tmp_path: Path) -> None:
    runs = []
    for name in ("infonce_4th", "wgan_7th"):
        folder = tmp_path / name
        folder.mkdir()
        source = finished["root"] / name / "seed_0"
        for file in ("config.yaml", "train_log.jsonl", "metrics.json"):
            (folder / file).write_text((source / file).read_text())
        runs.append(load_recipe(folder / "config.yaml", output_dir=folder))
    gather(runs, {})
    metrics = json.loads((tmp_path / "wgan_7th" / "metrics.json").read_text())
    metrics["baseline"]["male"]["AP"] += 1e-6  # by rounding, on another device
    (tmp_path / "wgan_7th" / "metrics.json").write_text(json.dumps(metrics))
    gather(runs, {})
    metrics["baseline"]["male"]["AP"] += 0.01
    (tmp_path / "wgan_7th" / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(FaapError, match="other data or another detector"):
        gather(runs, {})


def test_recipes_for_different_groups_are_not_compared(small: dict[str, Any], tmp_path: Path) -> None:
    other = load_recipe("wgan_7th", **small, anchor_group="male", reference_group="female")
    with pytest.raises(FaapError, match="wgan_7th has anchor_group male, moco_4th has female"):
        compare([load_recipe("moco_4th", **small), other], tmp_path, console=QUIET, execute=Runner())


def test_what_is_compared(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("base: infonce_4th\n")
    assert [r.name for r in recipes_to_compare([str(tmp_path), "moco_4th"], epochs=3)] == ["one", "two", "moco_4th"]
    ablation = recipes_to_compare(["infonce_4th"], ablate=True)
    assert len(ablation) == 15
    assert ablation[0].name == "infonce_4th"
    with pytest.raises(FaapError, match=r"moco_4th: has no ablation; there is one of infonce_4th"):
        recipes_to_compare(["moco_4th"], ablate=True)
    with pytest.raises(FaapError, match="2 recipes are named 'moco_4th'"):
        recipes_to_compare(["moco_4th", "moco_4th"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FaapError, match="no recipe"):
        recipes_to_compare([str(tmp_path / "empty")])
    with pytest.raises(FaapError, match="becomes the name of a folder"):
        load_recipe("moco_4th", name="../moco")


def test_ablation_files_are_shipped() -> None:
    assert all(path.is_relative_to(Path(faap.__file__).parent) for path in RECIPES.glob("ablations/*/*.yaml"))


def test_a_run_in_its_own_process(
    small: dict[str, Any], finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    recipe = replace(finished["recipes"][0], output_dir=str(tmp_path / "run"))
    run_in_process(recipe, tmp_path / "logs" / "run.log", 1)
    same = finished["root"] / "infonce_4th" / "seed_0"
    first, second = (
        torch.load(run / "checkpoints" / "epoch_0001.pth", weights_only=True)["generator"]
        for run in (same, tmp_path / "run")
    )
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)
    assert "validation AP gap" in (tmp_path / "logs" / "run.log").read_text()
    with pytest.raises(FaapError, match=r"^detector nowhere .* \(exit status 2, log .*bad\.log\)"):
        run_in_process(replace(recipe, detr_checkpoint="nowhere"), tmp_path / "logs" / "bad.log", 1)


def test_a_process_for_which_nobody_waits_ends(finished: dict[str, Any], tmp_path: Path) -> None:
    recipe = replace(finished["recipes"][0], output_dir=str(tmp_path / "run"), epochs=100_000)
    process = subprocess.Popen([sys.executable, "-m", "faap.compare"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps(recipe.to_dict()).encode() + b"\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 1


def test_an_interrupt_ends_the_processes(finished: dict[str, Any], tmp_path: Path) -> None:
    recipe = replace(finished["recipes"][0], epochs=100_000)
    script = "import json, sys; from faap.compare import *; from faap.config import Recipe; "
    script += "compare([Recipe(**json.loads(sys.argv[1]))], sys.argv[2])"
    arguments = [sys.executable, "-c", script, json.dumps(recipe.to_dict()), str(tmp_path)]
    process = subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.PIPE)
    checkpoints = tmp_path / "infonce_4th" / "seed_0" / "checkpoints"
    for _ in range(600):
        if any(checkpoints.glob("epoch_*.pth")):
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)  # to the parent alone
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_an_interrupt_starts_no_further_run(small: dict[str, Any], tmp_path: Path) -> None:
    ended, seen = threading.Event(), []

    def end() -> None:
        ended.set()
        time.sleep(0.5)  # long enough for the worker to take up the next run

    def execute(recipe: Recipe, log: Path, threads: int) -> None:
        seen.append(recipe.seed)
        module.RUNNING.add(end)
        assert ended.wait(30)
        raise FaapError("ended")

    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            compare([load_recipe("moco_4th", **small)], tmp_path, seeds=3, console=QUIET, execute=execute)
    finally:
        timer.cancel()
        module.RUNNING.clear()
    assert seen == [0]


def test_threads_are_shared_by_the_jobs(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 8)
    seen = []

    def execute(recipe: Recipe, log: Path, threads: int) -> None:
        seen.append((log.name, threads))
        raise FaapError("enough")

    compare([load_recipe("moco_4th", **small)], tmp_path, seeds=2, jobs=3, console=QUIET, execute=execute)
    assert sorted(seen) == [("moco_4th_0.log", 2), ("moco_4th_1.log", 2)]


def test_a_missing_data_set_is_one_error(small: dict[str, Any], tmp_path: Path) -> None:
    recipes = recipes_to_compare(["moco_4th", "wgan_7th"], **small | {"dataset_root": "/nowhere"})
    with pytest.raises(FaapError, match="/nowhere"):
        compare(recipes, tmp_path, console=QUIET, execute=Runner(lambda recipe: pytest.fail("trained")))


def test_runs_spread_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    together = threading.Barrier(3, timeout=30)

    class Process:
        def __init__(self, words: list[str], env: dict[str, str], **rest: Any) -> None:
            self.stdin, self.terminate = io.BytesIO(), lambda: None
            asked.append(env.get("CUDA_VISIBLE_DEVICES"))

        def wait(self) -> int:
            together.wait()
            return 0

    def run_three(device: str) -> list[str | None]:
        asked.clear()
        recipe = load_recipe("moco_4th", device=device)
        with ThreadPoolExecutor(3) as pool:
            made = [pool.submit(run_in_process, recipe, tmp_path / str(n), 1) for n in range(3)]
        assert [each.exception() for each in made] == [None] * 3
        return sorted(asked, key=str)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run_three("auto") in (["0", "0", "1"], ["0", "1", "1"])
    assert run_three("cuda:1") == [None] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert set(run_three("cuda")) == {"5", "7"}
