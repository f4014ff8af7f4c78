"""Several processes with their share of a batch each against one with the whole, started as a user starts them."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import faap
from faap import cli
from faap.errors import FaapError
from faap.perturbation import build_generator, save_generator
from faap.runs import Run
from faap.training import Trainer

RECIPES = ("infonce_4th", "contrastive_1st", "infonce_3rd_fix2", "wgan_7th", "moco_4th")  # as in the script
NAMES = ("whole", "stop", "again")
SCRIPT = Path(__file__).with_name("shared_training.py")


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def places(tiny_promenade: Path, tiny_detector: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a detector for which images are resized, so that those of a batch differ in size and are padded."""
    directory = shutil.copytree(tiny_detector, tmp_path_factory.mktemp("resizing") / "detector")
    (directory / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 64, "longest_edge": 96}}')
    return {"dataset_root": str(tiny_promenade), "detr_checkpoint": str(directory)}


@pytest.fixture(scope="module")
def out(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one, two and three processes leave that train and measure."""
    out = tmp_path_factory.mktemp("shared")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        generator = build_generator("light", 0.1)
    torch.save(generator.state_dict(), out / "generator.pth")
    save_generator(generator, out / "generator")
    command = [sys.executable, str(SCRIPT), json.dumps(places), str(out)]
    environment = ENVIRONMENT | {"FAAP_CACHE_DIR": str(out / "cache")}
    subprocess.run(command, cwd=out, env=environment, check=True, capture_output=True, timeout=300)
    for status in out.glob("[te]*.status"):
        assert status.read_text() == "0", status.with_suffix(".err").read_text()
    return out


@pytest.fixture(scope="module")
def trained(out: Path) -> dict[str, Any]:
    return {path.stem: torch.load(path, weights_only=True) for path in out.glob("?_?.pth")}


def close(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or one == pytest.approx(other, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("recipe", "processes"), [*((recipe, 2) for recipe in RECIPES), (RECIPES[0], 3)])
def test_several_processes_train_what_one_does(trained: dict[str, Any], recipe: str, processes: int) -> None:
    """In double precision, so that what differs is not rounding that grows from step to step."""
    alone, shared = trained["1_0"][recipe], trained[f"{processes}_0"][recipe]
    assert len(set(alone["shapes"])) == 2
    assert shared["shapes"] == alone["shapes"]
    for number, (one, other) in enumerate(zip(alone["steps"], shared["steps"], strict=True)):
        assert one.keys() == other.keys()
        different = {key: (one[key], other[key]) for key in one if not close(one[key], other[key])}
        assert not different, number
    for one, other in zip(alone["gradients"], shared["gradients"], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(one.abs().max()))
    rows = [json.loads(run["row"]) for run in (alone, shared)]
    assert [row["images"] for row in rows] == [12, 12]


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_processes_end_with_the_same_to_the_bit(trained: dict[str, Any], recipe: str) -> None:
    one, other = trained["2_0"][recipe], trained["2_1"][recipe]
    for part in ("generator", "objective"):
        for key, value in one[part].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[part][key]), key


def test_a_run_in_two_processes_is_one_run(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the two, which are started as a user starts them, only the first writes and prints."""
    flags = [f"--{key}={value}" for key, value in places.items()]
    flags += ["--epochs=2", "--batch_size=4", "--images_per_epoch=10", "--device=cpu"]
    command = ["train", "infonce_4th", *flags, "--output_dir=run"]
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
    monkeypatch.chdir(tmp_path / "1")
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "1" / "cache"))
    assert cli.main(command) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "faap"]
    where = tmp_path / "2"
    environment = ENVIRONMENT | {"FAAP_CACHE_DIR": str(where / "cache")}
    done = subprocess.run(
        [*launcher, *command], cwd=where, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    metrics, logs = {}, {}
    for processes, shown in ((1, capsys.readouterr().out), (2, done.stdout)):
        where = tmp_path / str(processes)
        assert shown.count("run directory") == 1
        assert {path.name for path in where.iterdir()} == {"run", "cache"}
        names = {str(path.relative_to(where / "run")) for path in (where / "run").rglob("*") if path.is_file()}
        assert {"metrics.json", "report.html", "config.yaml", "checkpoints/best.pth"} < names
        assert len([name for name in names if name.startswith("tensorboard")]) == 1
        metrics[processes] = json.loads((where / "run" / "metrics.json").read_text())
        logs[processes] = [json.loads(line) for line in (where / "run" / "train_log.jsonl").read_text().splitlines()]
    assert metrics[2]["images"] == {"female": 4, "male": 4}
    assert metrics[1]["baseline"] == metrics[2]["baseline"]
    assert metrics[1]["detector_sha256"] == metrics[2]["detector_sha256"]
    for one, other in zip(logs[1], logs[2], strict=True):
        assert one["train"] == pytest.approx(other["train"], rel=1e-3, abs=1e-5)
        assert one["validation"]["baseline"] == other["validation"]["baseline"]


def test_a_generator_is_measured_alike_by_one_process_and_by_two(out: Path) -> None:
    """The second of the two finds the detector's own detections in the cache."""
    measured = [json.loads((out / f"measured_{n}" / "metrics.json").read_text()) for n in (1, 2)]
    for each in measured:
        del each["provenance"]["date"]
    assert measured[0] == measured[1]


def test_detections_are_shared_and_merged_exactly(trained: dict[str, Any]) -> None:
    alone = trained["1_0"]["detections"]
    for process in ("2_0", "2_1", "3_2"):
        shared = trained[process]["detections"]
        assert shared["image_ids"] == alone["image_ids"]
        assert shared["quality"] == alone["quality"]
        for name in ("scores", "boxes"):
            assert all(torch.equal(one, other) for one, other in zip(alone[name], shared[name], strict=True))


def test_the_original_network_is_refused_where_its_batch_norm_would_see_half_a_batch(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faap.distributed.world", lambda: 2)
    monkeypatch.setattr("faap.distributed.rank", lambda: 0)
    recipe = faap.load_recipe("infonce_4th", **places, arch="unet")
    detector = faap.load_detector(recipe.detr_checkpoint)
    with pytest.raises(FaapError, match="arch is 'unet'"):
        Trainer(recipe, torch.device("cpu"), detector, faap.load_dataset(recipe.dataset_root).split("train"))


def test_more_processes_than_images_of_a_batch_are_refused(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faap.distributed.world", lambda: 5)
    monkeypatch.setattr("faap.distributed.rank", lambda: 4)
    recipe = faap.load_recipe("infonce_4th", **places, batch_size=4)
    detector = faap.load_detector(recipe.detr_checkpoint)
    with pytest.raises(FaapError, match="batch_size is 4, and 5 processes"):
        Trainer(recipe, torch.device("cpu"), detector, faap.load_dataset(recipe.dataset_root).split("train"))


def test_an_error_of_all_processes_is_an_error_and_no_traceback(out: Path) -> None:
    for rank in (0, 1):
        assert (out / f"wrong_2_{rank}.status").read_text() == "2"
        said = (out / f"wrong_2_{rank}.err").read_text()
        assert "error: data set /nowhere: " in said
        assert f'File "{Path(faap.__file__).parent}' not in said
        assert "peer" not in said


def test_all_processes_stop_after_the_step_in_which_one_is_told_to_and_go_on_from_there(out: Path) -> None:
    statuses = {name: [(out / f"{name}_2_{rank}.status").read_text() for rank in (0, 1)] for name in NAMES}
    assert statuses == {"whole": ["0", "0"], "stop": ["143", "143"], "again": ["0", "0"]}
    whole, cut = Run(out / "whole"), Run(out / "cut")
    assert (cut.generator / "model.safetensors").read_bytes() == (whole.generator / "model.safetensors").read_bytes()
    rows = [[{**row, "seconds": 0} for row in run.read_log()] for run in (whole, cut)]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[1]] == [0, 1]
