import itertools
import math
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml

from faap.config import Recipe, load_recipe, recipe_names
from faap.errors import FaapError

# spec/recipes.md, "The table", "Heads", "Notation"
INFONCE_4TH = {
    "temperature": 0.1,
    "head": "stabilized",
    "proj_dim": 128,
    "proj_dropout": 0.1,
    "beta": 0.5,
    "beta_final": 0.6,
    "epsilon_start": 0.05,
    "epsilon_peak": 0.10,
    "epsilon_final": 0.09,
    "lr_g": 1e-4,
    "lr_min": 1e-6,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "aug_strength": "weak",
    "max_norm": 0.5,
    "batch_size": 8,
    "epochs": 24,
    "lambda_contrastive": 1.0,
    "lambda_align": 0.3,
    "lambda_wass": 0.2,
    "score_top_k": 10,
}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_infonce_4th_is_the_spec() -> None:
    recipe = load_recipe("infonce_4th").to_dict()
    assert {key: recipe[key] for key in INFONCE_4TH} == INFONCE_4TH
    assert recipe["name"] == "infonce_4th"
    assert recipe["description"]
    assert recipe["dataset_root"] == recipe["detr_checkpoint"] == "promenade"


def test_the_schedules_of_infonce_4th_are_the_spec() -> None:
    schedules = load_recipe("infonce_4th").schedules()
    assert all(len(values) == 24 for values in schedules.values())
    epsilon, beta = schedules["epsilon"], schedules["beta"]
    assert epsilon[0] == pytest.approx(0.05)
    assert epsilon[3] == pytest.approx(0.075)
    assert epsilon[5] == pytest.approx(0.05 + 0.05 * 5 / 6)
    assert epsilon[6:13] == pytest.approx([0.10] * 7)
    assert epsilon[18] == pytest.approx(0.095)
    assert epsilon[23] == pytest.approx(0.10 - 0.01 * 11 / 12)
    assert beta[0] == pytest.approx(0.5)
    assert beta[23] == pytest.approx(0.6)
    assert {round(later - earlier, 12) for earlier, later in itertools.pairwise(beta)} == {round(0.1 / 23, 12)}
    assert schedules["contrastive_weight"] == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 21)
    rate = schedules["learning_rate"]
    assert rate[:3] == pytest.approx([1e-4 / 3, 2e-4 / 3, 1e-4])
    assert rate[13] == pytest.approx((1e-4 + 1e-6) / 2)  # half of the way down the cosine
    assert rate[23] == pytest.approx(1e-6 + 99e-6 * math.cos(math.pi * 21 / 44) ** 2)
    assert rate[2:] == sorted(rate[2:], reverse=True)


def test_a_constant_rate_and_no_warm_ups() -> None:
    schedules = Recipe(
        lr_schedule="constant",
        lr_g=3e-4,
        epochs=4,
        contrastive_warmup_epochs=0,
        lambda_contrastive=2,
        epsilon_warmup_epochs=0,
        epsilon_hold_epochs=2,
    ).schedules()
    assert schedules["learning_rate"] == [3e-4] * 4
    assert schedules["contrastive_weight"] == [2.0] * 4
    assert schedules["epsilon"] == pytest.approx([0.10, 0.10, 0.10, 0.095])


@pytest.mark.parametrize("epochs", [1, 2, 6, 12, 13])
def test_short_trainings_have_finite_schedules(epochs: int) -> None:
    schedules = Recipe(epochs=epochs).schedules()
    assert all(len(values) == epochs for values in schedules.values())
    assert all(math.isfinite(value) for values in schedules.values() for value in values)
    assert schedules["beta"][0] == 0.5


def test_every_field_says_what_it_is() -> None:
    assert all(field.metadata["help"] for field in fields(Recipe))


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe().seed = 3  # type: ignore[misc]


def test_text_becomes_the_type_of_its_field() -> None:
    recipe = load_recipe("infonce_4th", lr_g="3e-4", epochs="5", batch_size=4.0, temperature=1, dataset_root=Path("a"))
    assert (recipe.lr_g, recipe.epochs, recipe.batch_size, recipe.temperature) == (3e-4, 5, 4, 1.0)
    assert [type(v) for v in (recipe.lr_g, recipe.epochs, recipe.batch_size, recipe.temperature)] == [
        float,
        int,
        int,
        float,
    ]
    assert recipe.dataset_root == "a"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("temperature", 0, "above 0"),
        ("temperature", "warm", "'warm'; it must be a number"),
        ("temperature", math.nan, "must be a number"),
        ("temperature", "inf", "must be a number"),
        ("temperature", None, "must be a number"),
        ("batch_size", 7, "even"),
        ("batch_size", 0, "at least 2"),
        ("batch_size", "8.5", "whole number"),
        ("batch_size", 8.5, "whole number"),
        ("seed", True, "whole number"),
        ("seed", -1, "at least 0 and below"),
        ("epochs", "1" + "0" * 400, "whole number"),
        ("proj_dropout", 1, "at least 0 and below 1"),
        ("epsilon_peak", 8, "at least 0 and at most 1"),
        ("lr_min", 1e-3, "must not exceed lr_g"),
        ("head", "stabilised", "Did you mean 'stabilized'"),
        ("aug_strength", "wek", "Did you mean 'weak'"),
        ("precision", False, "must be text"),
        ("arch", 3, "must be text"),
        ("reference_group", "female", "must differ"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(field: str, value: object, said: str) -> None:
    with pytest.raises(FaapError, match=field) as caught:
        load_recipe("infonce_4th", **{field: value})
    assert said in str(caught.value)


def test_an_unknown_field_or_recipe_names_the_nearest() -> None:
    with pytest.raises(FaapError, match=r"unknown field 'lamda_align'. Did you mean 'lambda_align'\?"):
        load_recipe("infonce_4th", lamda_align=0.5)
    with pytest.raises(FaapError, match=r"Did you mean 'infonce_4th'\?"):
        load_recipe("infonce_fourth")


def test_a_users_file_looks_like_ours(tmp_path: Path) -> None:
    path = write(tmp_path, "base: infonce_4th\ntemperature: 0.07\nlr_g: 2e-4\nprecision: no\nresume:\n")
    recipe = load_recipe(path, epochs=3)
    assert (recipe.temperature, recipe.lr_g, recipe.precision, recipe.resume) == (0.07, 2e-4, "no", "")
    assert recipe.name == "mine"
    assert recipe.epochs == 3
    assert recipe.description == load_recipe("infonce_4th").description


def test_a_file_without_a_base_starts_from_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(str(write(tmp_path, "seed: 4\nname: other\n")))
    assert recipe == Recipe(seed=4, name="other")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature: 1", "unknown field 'temprature'. Did you mean 'temperature'?"),
        ("base: infonce_5th", "base is 'infonce_5th'; it must be one of infonce_4th"),
        ("base: [a]", "base is ['a']"),
        ("- a\n- b", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("temperature: [1]", "must be a number"),
        ("name: {a: b}", "must be text"),
        ("? [a]\n: b", ""),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FaapError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FaapError, match=r"gone\.yaml: cannot be read"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(FaapError, match=r"binary\.yaml: "):
        load_recipe(tmp_path / "binary.yaml")


def test_a_saved_recipe_comes_back_equal(tmp_path: Path) -> None:
    recipe = Recipe(name="ünï", lr_g=1e-5, precision="no", output_dir="a b", seed=12, description="no: yes")
    recipe.save(tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    # other readers of YAML see the same types
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) | {"lr_g": 1e-5} == recipe.to_dict()


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    Recipe(seed=1).save(path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("faap.config.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Recipe(seed=2).save(path)
    assert load_recipe(path).seed == 1


def test_the_names_are_those_of_the_files() -> None:
    assert "infonce_4th" in recipe_names()
    for name in recipe_names():
        assert load_recipe(name).name == name
