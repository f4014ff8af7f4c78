import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from faap import bench, cli

CPU = torch.device("cpu")


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


def test_the_command_measures_everything_and_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "stock_detector", small_detector)
    monkeypatch.setattr(bench, "SIZE", (64, 80))
    monkeypatch.setattr(bench, "LARGE", (96, 130))
    threads, weights = torch.get_num_threads(), torch.random.get_rng_state()
    out = tmp_path / "new" / "out.json"
    assert cli.main(["bench", "--json", str(out), "--repeats", "1", "--threads", "1", "--device", "cpu"]) == 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), weights)
    result = json.loads(out.read_text())
    for name in bench.MEANING:
        assert result[name] > 0, name
    assert set(bench.TARGETS) <= set(bench.MEANING)
    for name, (low, high) in result["ranges"].items():
        assert low <= result[name] <= high
    assert result["padding_waste"] <= bench.TARGETS["padding_waste"] < result["padding_waste_random"] < 1
    assert sum(result["profile"].values()) == pytest.approx(1)
    assert min(result["profile"].values()) > 0
    for grown in result["growth"].values():
        assert len(grown["values"]) == len(grown["seconds"]) == len(grown["bytes"])
    assert sum(result["loader"]["shares"].values()) == pytest.approx(1)
    assert result["loader"]["bound"] in result["loader"]["shares"]
    said = capsys.readouterr().out
    assert "step_over_floor" in said
    assert "≤ 0.85" in said
    for picture in ("out_growth.png", "out_profile.png"):
        with Image.open(out.with_name(picture)) as image:
            assert image.width > 500


def test_jobs_take_turns_and_the_first_is_a_warm_up() -> None:
    order: list[str] = []

    def fast() -> None:
        order.append("fast")
        time.sleep(0.5 if len(order) < 3 else 0.001)

    def slow() -> None:
        order.append("slow")
        time.sleep(0.03)

    seconds = bench.take_turns({"fast": fast, "slow": slow}, 3, CPU)
    assert order == ["fast", "slow"] * 4
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert max(seconds["fast"]) < 0.5
    result: dict[str, Any] = {"ranges": {}, "seconds": {}}
    bench._note(result, {"a": [1.0, 6.0, 2.0], "b": [1.0, 2.0, 4.0]}, ratio=("a", "b"))
    assert result == {"ranges": {"ratio": [0.5, 3.0]}, "seconds": {"a": 2.0, "b": 2.0}, "ratio": 1.0}


def test_where_the_system_does_not_tell_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert bench.peak_memory(lambda: None, CPU) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")
@pytest.mark.parametrize("megabytes", [32, 200])
def test_peak_memory_is_what_a_job_takes_for_a_while(megabytes: int) -> None:
    def job() -> None:
        torch.ones(megabytes * 2**18).sum()

    job()
    peak = bench.peak_memory(job, CPU)
    assert peak is not None
    assert 0.9 * megabytes < peak / 2**20 < megabytes + 8
