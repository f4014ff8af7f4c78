import io
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import faap
from faap.compare import compare, gather, recipes_to_compare
from faap.compare.standing import standing
from faap.config import Recipe, load_recipe
from faap.errors import FaapError
from faap.runs import Run
from faap.training.checkpoints import read_checkpoint, save_checkpoint

QUIET = Console(quiet=True)


def no_run(recipe: Recipe) -> bool:
    pytest.fail("trained")


@pytest.fixture
def copied(finished: Any, tmp_path: Path) -> Callable[..., Recipe]:
    """Copies a finished run; returns its recipe."""

    def copy(number: int = 0, **changes: Any) -> Recipe:
        recipe = finished.recipes[number]
        target = tmp_path / recipe.name / "seed_0"
        shutil.copytree(finished.root / recipe.name / "seed_0", target)
        return replace(recipe, output_dir=str(target), **changes)

    return copy


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def test_every_run_is_an_ordinary_one(finished: Any, tmp_path: Path) -> None:
    root = finished.root
    assert sorted(str(path.parent.relative_to(root)) for path in root.glob("*/*/metrics.json")) == [
        "infonce_4th/seed_0",
        "infonce_4th/seed_1",
        "wgan_7th/seed_0",
        "wgan_7th/seed_1",
    ]
    alone = faap.train(replace(finished.recipes[1], seed=1, output_dir=str(tmp_path / "alone")), console=QUIET)
    there = Run(root / "wgan_7th" / "seed_1").read_metrics()
    for metrics in (there, alone.metrics):
        metrics.get("provenance", {}).pop("date", None)
    assert there == alone.metrics


def test_numbers_are_those_of_the_runs(finished: Any) -> None:
    result, root = finished.result, finished.root
    assert json.loads((root / "compare.json").read_text()) == result
    assert [recipe["name"] for recipe in result["recipes"]] == ["infonce_4th", "wgan_7th"]
    for recipe in result["recipes"]:
        metrics = [json.loads((root / recipe["name"] / f"seed_{s}" / "metrics.json").read_text()) for s in (0, 1)]
        logs = [
            [json.loads(line) for line in (root / recipe["name"] / f"seed_{s}" / "train_log.jsonl").open()]
            for s in (0, 1)
        ]
        for each in metrics:
            assert result["provenance"].items() <= each["provenance"].items()
            assert result["provenance"].keys() == {"dataset", "split_sha256", "detector", "versions"}
        gaps = [m["perturbed"]["male"]["AP"] - m["perturbed"]["female"]["AP"] for m in metrics]
        before = metrics[0]["baseline"]["male"]["AP"] - metrics[0]["baseline"]["female"]["AP"]
        summary = recipe["summary"]
        assert summary["ap_gap"]["mean"] == pytest.approx(sum(gaps) / 2)
        assert summary["ap_gap"]["std"] == pytest.approx(statistics.stdev(gaps))
        for key, of in (
            ("ap_gap", lambda m: m["gap"]["AP"]),
            ("ar_gap", lambda m: m["gap"]["AR"]),
            ("anchor_ap", lambda m: m["changes"]["female"]["AP"]),
            ("reference_ap", lambda m: m["changes"]["male"]["AP"]),
        ):
            errors = [of(m)["standard_error"] for m in metrics]
            assert summary[key]["images_error"] == pytest.approx(sum(errors) / 2)
        assert summary["ap_gap"]["change"] == pytest.approx(sum(gaps) / 2 - before)
        assert summary["anchor_ap"]["mean"] == pytest.approx(sum(m["perturbed"]["female"]["AP"] for m in metrics) / 2)
        recalls = [m["perturbed"]["male"]["AR100"] - m["perturbed"]["female"]["AR100"] for m in metrics]
        assert summary["ar_gap"]["mean"] == pytest.approx(sum(recalls) / 2)
        for criterion, counts in recipe["verdicts"].items():
            assert list(counts) == ["met", "not met", "cannot be told"]
            assert sum(counts.values()) == 2
            assert recipe["success"][criterion] == counts["met"]
        # two epochs of four images
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


def test_finished_runs_are_not_repeated_and_a_failed_one_does_not_stop_the_others(finished: Any, here: Any) -> None:
    again = compare(finished.recipes, finished.root, seeds=2, console=QUIET, runner=here(no_run))
    assert again == finished.result
    unlucky = here(lambda recipe: True)
    more = compare(finished.recipes, finished.root, seeds=3, console=QUIET, runner=unlucky)
    assert [(recipe.name, recipe.seed) for recipe in unlucky.seen] == [("infonce_4th", 2), ("wgan_7th", 2)]
    assert more["failed"] == [
        {"recipe": name, "seed": 2, "error": "out of luck"} for name in ("infonce_4th", "wgan_7th")
    ]
    assert more["recipes"] == finished.result["recipes"]


def test_what_was_measured_on_other_test_images_is_measured_again(
    finished: Any, copied: Any, here: Any, tmp_path: Path
) -> None:
    run, runner = Run(copied(0).output_dir), here()
    sha256 = run.read_metrics()["provenance"]["split_sha256"]
    change(run.metrics, lambda content: content["provenance"].update(split_sha256="0" * 64))
    out = Console(file=io.StringIO(), width=300)
    compare([finished.recipes[0]], tmp_path, console=out, runner=runner)
    assert [seen.name for seen in runner.seen] == ["infonce_4th"]
    assert "was measured on other test images. It is measured again" in out.file.getvalue()
    assert run.read_metrics()["provenance"]["split_sha256"] == sha256


def test_fresh_trains_what_is_finished_anew(finished: Any, copied: Any, here: Any, tmp_path: Path) -> None:
    recipe = copied(0)
    runner = here(lambda recipe: True)
    compare([replace(finished.recipes[0], fresh=True)], tmp_path, console=QUIET, runner=runner)
    # once: made again by the runner, it goes on
    assert [(seen.fresh, seen.output_dir) for seen in runner.seen] == [(False, recipe.output_dir)]
    assert not Path(recipe.output_dir).exists()
    assert Run(f"{recipe.output_dir}.1").is_trained_with(recipe)


def test_when_all_runs_fail_there_is_still_a_report(small: dict[str, Any], here: Any, tmp_path: Path) -> None:
    result = compare([load_recipe("moco_4th", **small)], tmp_path, console=QUIET, runner=here(lambda recipe: True))
    assert result["recipes"] == []
    assert "out of luck" in (tmp_path / "compare.html").read_text()


def test_an_interrupted_run_goes_on_and_one_with_other_settings_is_moved_aside(
    finished: Any, copied: Any, here: Any, tmp_path: Path
) -> None:
    cut, other = Run(copied(0).output_dir), Run(copied(1).output_dir)
    for path in (cut.metrics, cut.checkpoint(1), other.report):
        path.unlink()
    cut.write_log(cut.read_log()[:1])
    runner = here()
    recipes = [finished.recipes[0], replace(finished.recipes[1], lr_g=2e-4)]
    compare(recipes, tmp_path, console=QUIET, runner=runner)
    assert [(seen.resume, seen.fresh) for seen in runner.seen] == [("auto", False), ("auto", False)]
    whole, continued = (
        torch.load(run.checkpoint(1), weights_only=True) for run in (Run(finished.root / "infonce_4th" / "seed_0"), cut)
    )
    assert all(torch.equal(whole["generator"][key], continued["generator"][key]) for key in whole["generator"])
    assert load_recipe(tmp_path / "wgan_7th" / "seed_0.1" / "config.yaml").lr_g == finished.recipes[1].lr_g
    assert load_recipe(other.config).lr_g == 2e-4


BROKEN = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[1]\n",
    "a number": lambda text: "3\n",
    "deep": lambda text: "[" * 100_000,
    "another": lambda text: '{"images": 3, "epoch": "one"}\n',
    "null": lambda text: text.replace('"AP": 0', '"AP": "none", "was": 0'),
    "no text": lambda text: "\udcff",
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", ["metrics.json", "train_log.jsonl", "config.yaml"])
def test_a_run_that_cannot_be_read_is_made_again(name: str, how: str, copied: Any, tmp_path: Path) -> None:
    recipe = copied()
    path = Path(recipe.output_dir, name)
    text = path.read_text()
    changed = BROKEN[how](text)
    path.write_text(changed, errors="surrogateescape")
    found = standing(recipe)
    same = changed == text  # "null" finds nothing in config.yaml
    assert found.finished is same
    assert same or str(tmp_path) in found.note
    assert found.recipe.fresh is (not same and name == "config.yaml")
    if not same and name != "config.yaml":  # it is there, and would be taken for finished
        assert found.recipe.resume == recipe.output_dir
    path.unlink()
    path.mkdir()
    assert not standing(recipe).finished


def test_a_run_of_other_data_detector_or_code_is_made_again(
    finished: Any, copied: Any, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, runner, out = copied(0), here(), Console(file=io.StringIO(), width=300)
    state = read_checkpoint(Run(recipe.output_dir).best)
    origin = {key: state[key] for key in ("data_sha256", "detector_file_sha256")}
    assert standing(recipe, "", origin).finished
    for key in (*origin, "terms_sha256"):
        state["terms_sha256"] = "1" * 64
        save_checkpoint(Run(recipe.output_dir).checkpoint(1), state)
        assert standing(recipe, "", origin | {key: "0" * 64}).recipe.fresh
    other = SimpleNamespace(file_sha256="0" * 64)
    monkeypatch.setattr(sys.modules["faap.compare.compare"], "load_detector", lambda name: other)
    compare([finished.recipes[0]], tmp_path, console=out, runner=runner)
    assert [seen.name for seen in runner.seen] == ["infonce_4th"]
    assert "of other data, detector or code, or one that cannot be read; it is moved aside" in out.file.getvalue()


def test_runs_of_different_baselines_are_not_compared(copied: Any) -> None:
    runs = [copied(0), copied(1)]
    metrics = Run(runs[1].output_dir).metrics
    gather(runs, {})
    change(metrics, lambda content: content["baseline"]["male"].update(AP=content["baseline"]["male"]["AP"] + 1e-6))
    gather(runs, {})  # by rounding, on another device
    before = metrics.read_text()
    for key in ("images", "baseline", "detector_sha256"):
        other: dict[str, Any] = {"images": {"female": 9, "male": 9}, "detector_sha256": "f"}
        other["baseline"] = {group: {"AP": 0.9, "AR100": 0.9} for group in ("female", "male")}
        change(metrics, lambda content, key=key, other=other: content.update({key: other[key]}))
        with pytest.raises(FaapError, match="other data or another detector"):
            gather(runs, {})
        metrics.write_text(before)
    for number, run in enumerate(runs):
        change(
            Run(run.output_dir).metrics,
            lambda content, n=number: content.setdefault("provenance", {}).update(split_sha256=f"{n}"),
        )
    with pytest.raises(FaapError, match="other data or another detector"):
        gather(runs, {})


def test_verdicts_have_three_states_and_warnings_are_passed_on(copied: Any) -> None:
    runs = [copied(0), copied(1)]

    def judge(content: dict[str, Any], verdict: str | None, *warnings: str) -> None:
        for entry in content["success"].values():
            entry.pop("verdict", None)
            entry["met"] = verdict in ("met", None)
            if verdict is not None:
                entry["verdict"] = verdict
        content["warnings"] = list(warnings)
        for metrics in (content["baseline"], content["perturbed"]):
            for group in ("female", "male"):
                metrics[group] |= {"AP": 0.4, "AR100": 0.5}

    def told(*verdicts: str | None) -> dict[str, Any]:
        for run, verdict in zip(runs, verdicts, strict=True):
            warnings = ["finds nobody"] + ["in one"] * (verdict is None)
            change(Run(run.output_dir).metrics, lambda content, v=verdict, w=warnings: judge(content, v, *w))
        return gather(runs, {})

    result = told("cannot be told", None)  # as an earlier faap wrote it
    first, second = result["recipes"]
    assert first["verdicts"]["ap_gap"] == {"met": 0, "not met": 0, "cannot be told": 1}
    assert first["success"] == dict.fromkeys(first["success"], 0)
    assert first["runs"][0]["success"]["ap_gap"] is False
    assert second["verdicts"]["ap_gap"] == {"met": 1, "not met": 0, "cannot be told": 0}
    assert second["success"]["ap_gap"] == 1
    assert result["warnings"] == ["finds nobody", "wgan_7th, seed 0: in one"]

    def forget(content: dict[str, Any]) -> None:
        content.pop("warnings")
        for group in ("female", "male"):
            content["perturbed"][group] |= {"AP": 0.0, "AR100": 0.0}

    change(Run(runs[1].output_dir).metrics, forget)
    result = gather(runs, {})
    assert result["recipes"][1]["verdicts"]["ap_gap"] == {"met": 0, "not met": 0, "cannot be told": 1}
    assert result["warnings"][-1].startswith("wgan_7th, seed 0: The detector finds nobody")


@pytest.mark.parametrize(
    ("changes", "seeds", "said"),
    [
        ({"anchor_group": "male", "reference_group": "female"}, 1, "has anchor_group male, moco_4th has female"),
        ({"skip_bad": True}, 1, "has skip_bad True, moco_4th has False"),
        ({}, 0, "nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    changes: dict[str, Any], seeds: int, said: str, small: dict[str, Any], here: Any, tmp_path: Path
) -> None:
    recipes = [load_recipe("moco_4th", **small), load_recipe("wgan_7th", **small, **changes)]
    with pytest.raises(FaapError, match=said):
        compare(recipes, tmp_path, seeds=seeds, console=QUIET, runner=here(no_run))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "logs", "compare.json"])
def test_a_recipe_stays_in_its_folder(name: str, small: dict[str, Any], here: Any, tmp_path: Path) -> None:
    recipe = load_recipe("moco_4th", **small)
    object.__setattr__(recipe, "name", name)  # whatever a recipe itself lets through
    with pytest.raises(FaapError, match="Give it another"):
        compare([recipe], tmp_path / "out", console=QUIET, runner=here(no_run))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/out", "/proc/faap"])
def test_a_folder_that_cannot_be_made_is_one_error(
    place: str, small: dict[str, Any], here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(FaapError, match=r"cannot be made or written to .*--output_dir"):
        compare([load_recipe("moco_4th", **small)], place, console=QUIET, runner=here(no_run))


def test_what_is_compared(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("base: infonce_4th\n")
    assert [r.name for r in recipes_to_compare([str(tmp_path), "moco_4th"], epochs=3)] == ["one", "two", "moco_4th"]
    ablation = recipes_to_compare(["infonce_4th"], ablate=True)
    assert len(ablation) == 15
    assert ablation[0].name == "infonce_4th"
    typed = {"temperature": 0.2, "lambda_wass": 0.5, "epsilon_peak": 0.05, "seed": 3}
    found = {recipe.name: recipe for recipe in recipes_to_compare(["infonce_4th"], ablate=True, **typed)}
    base = found["infonce_4th"].to_dict()
    assert base | typed == base
    own = {"temperature_0.07": {"temperature": 0.07}, "no_wasserstein": {"lambda_wass": 0.0}}
    own |= {
        "epsilon_fixed": dict.fromkeys(("epsilon_start", "epsilon_peak", "epsilon_final"), 0.1),
        "m2f": {"m2f_weight": 0.5},
    }
    for name, reverted in own.items():
        said = {"name": name, "description": found[name].description}
        assert found[name].to_dict() == base | reverted | said
    with pytest.raises(FaapError, match=r"moco_4th: has no ablation; there is one of infonce_4th"):
        recipes_to_compare(["moco_4th"], ablate=True)
    with pytest.raises(FaapError, match="2 recipes are named 'moco_4th'"):
        recipes_to_compare(["moco_4th", "moco_4th"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FaapError, match="no recipe"):
        recipes_to_compare([str(tmp_path / "empty")])
    with pytest.raises(FaapError, match="becomes the name of a folder"):
        load_recipe("moco_4th", name="../moco")


@pytest.mark.parametrize(("processes", "refused"), [("2", True), ("1", False), ("", False)])
def test_a_launcher_of_processes_is_refused(
    processes: str, refused: bool, small: dict[str, Any], here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    runner = here(lambda recipe: True)
    if refused:
        with pytest.raises(FaapError, match="not under torchrun"):
            compare([load_recipe("moco_4th", **small)], tmp_path, console=QUIET, runner=runner)
    else:
        compare([load_recipe("moco_4th", **small)], tmp_path, console=QUIET, runner=runner)
    assert bool(runner.seen) is not refused


@pytest.mark.parametrize("jobs", [1, 2, 1000])
def test_threads_are_shared_by_the_jobs(
    jobs: int, small: dict[str, Any], here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Sees(here):
        def train(self, recipe: Recipe, log: Path, threads: int) -> None:
            seen.append((log.name, threads))
            raise FaapError("enough")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # of which Slurm has given some
    compare([load_recipe("moco_4th", **small)], tmp_path, seeds=2, jobs=jobs, console=QUIET, runner=Sees())
    threads = max(1, 6 // jobs)
    assert sorted(seen) == [("moco_4th_0.log", threads), ("moco_4th_1.log", threads)]


def test_a_missing_data_set_is_one_error(small: dict[str, Any], here: Any, tmp_path: Path) -> None:
    recipes = recipes_to_compare(["moco_4th", "wgan_7th"], **small | {"dataset_root": "/nowhere"})
    with pytest.raises(FaapError, match="/nowhere"):
        compare(recipes, tmp_path, console=QUIET, runner=here(no_run))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("docs/results/*.json")), ids=lambda p: p.stem)
def test_earlier_comparisons_have_a_table(path: Path) -> None:
    from faap.report import comparison_table

    comparison_table(json.loads(path.read_text()), 120)
