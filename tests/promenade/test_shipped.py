"""The generator that ships with the package: what it says of itself, and that it does what it says."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import faap
from faap.config import run_recipe
from faap.evaluation import best_epoch, detect, group_metrics
from faap.evaluation.gaps import headline
from faap.promenade import build, build_promenade, shipped_run
from faap.runs import Run, differences
from faap.weights import tensors_sha256

SHIPPED = Run(shipped_run())
TEST = {"train": 1, "val": 1, "test": build.SCENES["test"]}


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    return SHIPPED.read_metrics()


def test_it_is_small_and_says_where_it_comes_from(said: dict[str, Any]) -> None:
    files = [path for path in SHIPPED.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert {value.dtype for value in load_file(SHIPPED.generator / "model.safetensors").values()} == {torch.float16}
    generator = faap.load_generator("promenade")
    assert {value.dtype for value in generator.state_dict().values()} == {torch.float32}
    assert not generator.training
    assert said["provenance"]["generator"]["sha256"] == tensors_sha256(generator.state_dict())
    assert said["detector_sha256"] == faap.load_detector("promenade").tensors_sha256()
    assert not any("/" in str(value) for value in (said["provenance"]["dataset"], run_recipe(SHIPPED).output_dir))
    assert faap.load_generator("promenade", epsilon=0.05).epsilon == 0.05


def test_it_is_what_the_recipe_leaves(said: dict[str, Any]) -> None:
    recipe, log = run_recipe(SHIPPED), SHIPPED.read_log()
    assert differences(recipe.to_dict(), faap.load_recipe("equal", seed=recipe.seed), "run") == []
    assert len(log) == recipe.epochs
    seeds = json.loads((SHIPPED.path / "seeds.json").read_text())
    (row,) = [each for each in seeds["runs"] if each["seed"] == recipe.seed]
    assert row["epoch"] == best_epoch(log)
    # half precision changes next to nothing
    assert row["gap"]["AP"]["perturbed"] == pytest.approx(said["gap"]["AP"]["perturbed"], abs=1e-3)


def test_it_does_what_it_says(said: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    split = faap.load_dataset(build_promenade(tmp_path_factory.mktemp("promenade"), TEST)).split("test")
    assert split.fingerprint() == said["provenance"]["split_sha256"]
    found = group_metrics(split, detect(faap.load_detector("promenade"), split, faap.load_generator("promenade")))
    for group, values in found.items():
        for name in ("AP", "AR100"):
            assert values[name] == pytest.approx(said["perturbed"][group][name], abs=1e-3)
    before = headline(said["baseline"], "female", "male")
    after = headline(found, "female", "male")
    assert abs(after["ap_gap"]) < 0.3 * before["ap_gap"]
    assert after["anchor_ap"] > before["anchor_ap"] + 0.04
