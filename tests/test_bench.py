import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

import faap
from faap import bench, cli
from faap.evaluation import METRICS

CPU = torch.device("cpu")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def small_detector(device: torch.device, queries: int = 100) -> DetrForObjectDetection:
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    shape: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 6, "encoder_ffn_dim": 32}
    shape |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    labels = {0: "person"} | {number: f"class {number}" for number in range(1, 91)}
    config = DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, num_queries=queries, id2label=labels, **shape
    )
    return DetrForObjectDetection(config).eval()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "stock_detector", small_detector)
    monkeypatch.setattr(bench, "SIZE", (64, 80))
    monkeypatch.setattr(bench, "LARGE", (96, 130))
    monkeypatch.setattr(bench, "IMAGES", 60)
    monkeypatch.setattr(bench, "SAMPLES", 20)


def test_the_command_measures_what_is_promised_and_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    out = tmp_path / "new" / "out.json"
    assert cli.main(["bench", "--json", str(out), "--repeats", "1", "--threads", "1", "--device", "cpu"]) == 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    result = json.loads(out.read_text())
    said = capsys.readouterr().out
    for name, (target, _) in bench.FIGURES.items():
        assert result[name] > 0
        assert name in said
        assert f"≤ {target}" in said
    assert result["ranges"].keys() == set(bench.RATIOS)
    for name, (low, high) in result["ranges"].items():
        assert low <= result[name] <= high
    assert result["padding_waste"] == pytest.approx(0.030, abs=0.002)


@pytest.mark.parametrize(("place", "trouble"), [("", "is a folder; --json names a file"), ("file/out.json", "--json")])
def test_a_place_that_takes_no_figures_is_refused_before_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, trouble: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(bench, "bench", lambda **_: pytest.fail("measured"))
    assert cli.main(["bench", "--json", str(tmp_path / place)]) == 2
    assert trouble in " ".join(capsys.readouterr().err.split())


def test_a_turn_is_every_job_once_and_the_first_is_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def job(name: str, *seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def work() -> None:
            order.append(name)
            clock[0] += next(left)

        return work

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    jobs = {"fast": job("fast", 9.0, 1.0, 6.0, 2.0), "slow": job("slow", 9.0, 1.0, 2.0, 4.0)}
    seconds = bench.take_turns(jobs, 3, CPU)
    assert order == ["fast", "slow"] * 4
    assert seconds == {"fast": [1.0, 6.0, 2.0], "slow": [1.0, 2.0, 4.0]}
    assert bench.ratios(seconds, {"ratio": ("fast", "slow")}) == {
        "ranges": {"ratio": [0.5, 3.0]},
        "seconds": {"fast": 2.0, "slow": 2.0},
        "ratio": 1.0,
    }


@pytest.fixture
def run(
    tiny_promenade: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Runs a script of benchmarks/ as its users do, on pictures that are there, and returns what it prints."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(bench, "pictures", lambda folder: faap.load_dataset(tiny_promenade))

    def script(name: str, *flags: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", "--threads", "1", "--repeats", "1", *flags])
        try:
            runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return printed

    return script


def test_bootstrap(run: Any) -> None:
    result = run("bootstrap", "--images", "12", "--samples", "20", "--metrics", "AP")
    assert (result["images"], result["samples"], result["metrics"]) == (12, 20, "AP")
    assert result["bootstrap_seconds"] > 0 < result["bootstrap_gib"]


def test_the_bootstrap_is_of_as_many_images_and_replicates_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    frame = bench.MetricFrame

    def recorded(split: Any, *found: Any, **options: Any) -> Any:
        made.update(images=len(split.records), boxes={len(each.boxes) for side in found for each in side}, **options)
        return frame(split, *found, **options)

    monkeypatch.setattr(bench, "MetricFrame", recorded)
    bench.bootstrap(14, 21)
    assert made == {"images": 14, "boxes": {100}, "samples": 21, "metrics": METRICS}


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**20), ("darwin", 2**30)])
def test_memory_is_told_in_the_same_unit_everywhere(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts it in KiB, macOS in bytes."""
    monkeypatch.setattr(bench, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(bench.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * unit))
    assert bench.bootstrap(8, 2, ["AP"])["bootstrap_gib"] == 3


def test_detector(run: Any) -> None:
    result = run("detector", "--size", "64x80", "--batch", "2")
    for name, (low, high) in result["ranges"].items():
        assert 0 < low <= result[name] <= high
    assert {"prepared_over_stock", "step_over_floor", "unet_over_detector"} <= result["ranges"].keys()


def test_gpu(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where nothing is recorded: that it runs, and writes what it prints."""
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("faap.promenade.build.SCENES", {"train": 8, "val": 2, "test": 3})
    result = run("gpu", "--scenes", "8", "--out", str(tmp_path / "gpu.json"))
    assert json.loads((tmp_path / "gpu.json").read_text()) == result
    assert result["device"] == "CPU"
    rates = result["equal on Promenade, images a second"]
    assert {"batch 64", "batch 128, recorded", "evaluation, batch 16"} < rates.keys()
    assert min(rates.values()) > 0
    assert result["DETR-R50 64x96, batch 2, float32"]["step_over_floor"] > 0


def test_growth(run: Any, tmp_path: Path) -> None:
    result = run("growth", "--size", "48x64", "--out", str(tmp_path / "growth.png"))
    assert {name: len(grown["values"]) for name, grown in result.items()} == {
        "images in a batch": 3,
        "pixels of an image": 4,
        "queries": 4,
    }
    for grown in result.values():
        assert len(grown["time"]) == len(grown["values"])
        assert grown["time"][0] == 1
    with Image.open(tmp_path / "growth.png") as image:
        assert image.width > 500


def test_step(run: Any, tmp_path: Path) -> None:
    shares = run("step", "--size", "64x80", "--batch", "2", "--out", str(tmp_path / "step.png"))
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0
    assert len(shares) == 6
    with Image.open(tmp_path / "step.png") as image:
        assert image.width > 500


def test_loader(run: Any) -> None:
    result = run("loader", "--size", "120x160")
    assert result["images_per_second_per_worker"] > 0
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert min(result["shares"].values()) > 0


def test_matching(run: Any) -> None:
    assert 0 < run("matching", "--size", "64x80", "--batch", "2", "--repeats", "3")["matching"] < 1


def test_padding(run: Any) -> None:
    result = run("padding", "--upright", "8")
    # shapes that differ between the groups cost padding
    assert bench.FIGURES["padding_waste"][0] < result["alike"] < result["random"]


def test_recipes(run: Any, tiny_promenade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = faap.load_dataset(tiny_promenade)
    monkeypatch.setattr(faap, "load_dataset", lambda name: dataset)
    monkeypatch.setattr("faap.config.recipe_names", lambda: ["infonce_4th", "moco_4th"])
    assert run("recipes", "--images", "8")["step_over_detector"].keys() == {"infonce_4th", "moco_4th"}


def test_every_script_has_a_test() -> None:
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - {"common"}
    assert {name.removeprefix("test_") for name in globals()} >= scripts


@pytest.fixture
def peak_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "common.py"))["peak_memory"]


def test_where_the_system_does_not_tell_there_is_no_memory(peak_memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert peak_memory(lambda: None, CPU) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")
@pytest.mark.parametrize("megabytes", [32, 200])
def test_peak_memory_is_what_a_job_takes_for_a_while(megabytes: int, peak_memory: Any) -> None:
    def job() -> None:
        torch.ones(megabytes * 2**18).sum()

    job()
    peak = peak_memory(job, CPU)
    assert peak is not None
    assert 0.9 * megabytes < peak / 2**20 < megabytes + 8
