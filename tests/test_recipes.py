"""The shipped recipes against docs/recipes.md, cell by cell."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import faap.config
from faap.config import Recipe, load_recipe, recipe_names
from faap.training.objective import Objective

NAMES = ("contrastive_1st", "infonce_3rd", "infonce_3rd_fix2", "infonce_4th", "wgan_7th", "moco_4th")
ABLATIONS = Path(faap.config.__file__).parent / "recipes" / "ablations" / "infonce_4th"

# "The table" and "Terms", columns in the order of NAMES; None where a recipe has no use for the field
_ = None
TABLE: dict[str, tuple[Any, ...]] = {
    # total loss
    "contrastive": ("similarity", "infonce", "infonce", "infonce", _, "momentum"),
    "lambda_contrastive": (1.0, 1.0, 1.0, 1.0, 0.0, 1.0),
    "lambda_align": (0.5, 0.0, 0.0, 0.3, 0.0, 0.0),
    "lambda_var": (0.1, 0.0, 0.0, 0.0, 0.0, 0.0),
    "lambda_score": (0.3, 0.0, 0.0, 0.0, 0.0, 0.0),
    "lambda_wass": (0.0, 0.2, 0.2, 0.2, 0.2, 0.2),
    "wass_scores": (_, "image", "image", "image", "matched", "image"),
    "lambda_score_gap": (0.0, 0.0, 0.5, 0.0, 0.0, 0.0),
    "lambda_adv": (0.0, 0.0, 0.0, 0.0, 2.0, 0.0),
    "adv_steps": (_, _, _, _, 4, _),
    "lr_d": (_, _, _, _, 1e-4, _),
    "adv_entropy_weight": (_, _, _, _, 0.2, _),
    "adv_reference_weight": (_, _, _, _, 0.5, _),
    # temperature
    "temperature": (0.1, 0.07, 0.07, 0.1, _, 0.07),
    # epsilon
    "epsilon_start": (0.08, 0.10, 0.10, 0.05, 0.05, 0.10),
    "epsilon_peak": (0.08, 0.10, 0.10, 0.10, 0.10, 0.10),
    "epsilon_final": (0.08, 0.10, 0.10, 0.09, 0.09, 0.10),
    # males detached: in InfoNCE and mean alignment; elsewhere it is a property of the term
    "detach_reference": (False, False, True, True, _, _),
    # both directions
    "f2m_weight": (1.0, 1.5, 1.0, 1.0, _, 1.5),
    "m2f_weight": (0.0, 0.5, 0.0, 0.0, _, 0.5),
    # score weighting
    "score_weighting": ("none", "sigmoid", "softmax", "none", _, "sigmoid"),
    "score_alpha": (_, 1.0, _, _, _, 1.0),
    "queue_size": (_, _, _, _, _, 2048),
    "centroid_momentum": (_, _, _, _, _, 0.99),
    "score_top_k": (10, 10, 10, 10, 10, 10),
    # head
    "head": ("layernorm", "plain", "plain", "stabilized", "none", "plain"),
    "proj_dim": (128, 128, 128, 128, _, 128),
    "proj_dropout": (_, _, _, 0.1, _, _),
    # beta
    "beta": (0.6, 0.5, 0.5, 0.5, 0.5, 0.5),
    "beta_final": (0.6, 0.6, 0.6, 0.6, 0.6, 0.6),
    # learning rate
    "lr_g": (1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4),
    "lr_schedule": ("constant", "constant", "constant", "cosine", "constant", "constant"),
    "lr_min": (_, _, _, 1e-6, _, _),
    "optimizer": ("adam", "adamw", "adamw", "adamw", "adam", "adamw"),
    "weight_decay": (0.0, 0.01, 0.01, 0.01, 0.0, 0.01),
    # augmentation, gradient clip, batch, epochs
    "aug_strength": ("none", "medium", "medium", "weak", "none", "medium"),
    "max_norm": (0.1, 0.1, 0.1, 0.5, 0.1, 0.1),
    "clip_apart": (True, False, False, False, False, False),
    "batch_size": (4, 8, 8, 8, 4, 8),
    "epochs": (30, 24, 10, 24, 24, 24),
    "images_per_epoch": (0, 0, 0, 0, 0, 0),
}

# what each ablation of infonce_4th changes
CHANGED: dict[str, dict[str, Any]] = {
    "adaptive_weighting": {"score_weighting": "sigmoid"},
    "clip_0.1": {"max_norm": 0.1},
    "constant_lr": {"lr_schedule": "constant"},
    "epsilon_fixed": {"epsilon_start": 0.10, "epsilon_final": 0.10},
    "m2f": {"m2f_weight": 0.5},
    "males_not_detached": {"detach_reference": False},
    "medium_augmentation": {"aug_strength": "medium"},
    "no_contrastive": {"lambda_contrastive": 0.0},
    "no_dropout": {"proj_dropout": 0.0},
    "no_mean_alignment": {"lambda_align": 0.0},
    "no_warmup": {"contrastive_warmup_epochs": 0},
    "no_wasserstein": {"lambda_wass": 0.0},
    "plain_head": {"head": "plain"},
    "temperature_0.07": {"temperature": 0.07},
}


def test_each_cell_of_the_table() -> None:
    recipes = [load_recipe(name) for name in NAMES]
    wrong = [
        (recipe.name, field, found, value)
        for field, row in TABLE.items()
        for recipe, value in zip(recipes, row, strict=True)
        if value is not None and ((found := getattr(recipe, field)) != value or type(found) is not type(value))
    ]
    assert wrong == []


def test_a_recipe_says_who_it_is_and_leaves_the_rest_to_the_defaults() -> None:
    untouched = {
        "dataset_root", "detr_checkpoint", "output_dir", "resume", "device", "num_workers", "seed", "anchor_group",
        "reference_group", "arch", "widths", "train_edges", "precision", "compile", "terms",
    }  # fmt: skip
    for name in NAMES:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        changed = {field for field in untouched if getattr(recipe, field) != getattr(Recipe(), field)}
        assert not changed, name


def test_there_are_six_that_were_published_and_equal() -> None:
    assert set(recipe_names()) == {*NAMES, "equal"}


def test_the_published_recipes_have_the_detectors_own_no_object_weight() -> None:
    assert {load_recipe(name).no_object_weight for name in NAMES} == {0.0}


def test_equal_is_the_detection_loss_alone() -> None:
    recipe = load_recipe("equal")
    assert [term.name for term in Objective(recipe, 8).terms] == ["detection"]
    assert recipe.schedules()["beta"] == [1.0] * recipe.epochs
    assert recipe.schedules()["epsilon"] == [0.1] * recipe.epochs
    assert recipe.no_object_weight == 0.3
    assert recipe.images_per_epoch % recipe.batch_size == 0  # no smaller batch at the end
    assert recipe.epochs * recipe.images_per_epoch == 100_352


def test_the_defaults_are_those_of_infonce_4th_on_the_embedded_benchmark() -> None:
    assert replace(load_recipe("infonce_4th"), name="custom", description="") == Recipe()
    assert Recipe().dataset_root == Recipe().detr_checkpoint == "promenade"


def linear(first: float, last: float, epochs: int) -> list[float]:
    return [first + (last - first) * epoch / (epochs - 1) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("name", "epsilon", "beta", "contrastive"),
    [
        ("contrastive_1st", [0.08] * 30, [0.6] * 30, [1.0] * 30),
        ("infonce_3rd", [0.10] * 24, linear(0.5, 0.6, 24), [1.0] * 24),
        ("infonce_3rd_fix2", [0.10] * 10, linear(0.5, 0.6, 10), [1.0] * 10),
        (
            "infonce_4th",
            [0.05 + 0.05 * e / 6 for e in range(6)] + [0.10] * 6 + [0.10 - 0.01 * (e - 12) / 12 for e in range(12, 24)],
            linear(0.5, 0.6, 24),
            [0.25, 0.5, 0.75] + [1.0] * 21,
        ),
        (
            "wgan_7th",
            [0.05 + 0.05 * e / 7 for e in range(7)] + [0.10] * 6 + [0.10 - 0.01 * (e - 13) / 10 for e in range(13, 24)],
            linear(0.5, 0.6, 24),
            [0.0] * 24,
        ),
        ("moco_4th", [0.10] * 24, linear(0.5, 0.6, 24), [0.5] + [1.0] * 23),
    ],
)
def test_the_schedules(name: str, epsilon: list[float], beta: list[float], contrastive: list[float]) -> None:
    schedules = load_recipe(name).schedules()
    assert schedules["epsilon"] == pytest.approx(epsilon, rel=1e-12)
    assert schedules["beta"] == pytest.approx(beta, rel=1e-12)
    assert schedules["contrastive_weight"] == pytest.approx(contrastive, rel=1e-12)
    assert {len(values) for values in schedules.values()} == {len(beta)}
    if name != "infonce_4th":
        assert schedules["learning_rate"] == [1e-4] * len(beta)


def test_the_learning_rate_of_infonce_4th_warms_up_and_follows_half_a_cosine() -> None:
    rate = load_recipe("infonce_4th").schedules()["learning_rate"]
    assert rate[:3] == pytest.approx([1e-4 / 3, 2e-4 / 3, 1e-4])
    assert rate[13] == pytest.approx((1e-4 + 1e-6) / 2)  # half of the way down the cosine
    assert rate[23] == pytest.approx(1e-6 + 99e-6 * math.cos(math.pi * 21 / 44) ** 2)
    assert rate[2:] == sorted(rate[2:], reverse=True)


def test_the_epsilon_of_wgan_7th_stays_where_its_fall_ends() -> None:
    epsilon = load_recipe("wgan_7th", epochs=40).schedules()["epsilon"]
    assert epsilon[:24] == load_recipe("wgan_7th").schedules()["epsilon"]
    assert epsilon[23:] == pytest.approx([0.09] * 17)


def test_the_ablations_are_those_of_the_list() -> None:
    assert {path.stem for path in ABLATIONS.iterdir()} == set(CHANGED)
    assert len(CHANGED) == 14


def test_an_ablation_changes_what_it_names_and_nothing_else() -> None:
    whole = load_recipe("infonce_4th").to_dict()
    for name, expected in CHANGED.items():
        ablation = load_recipe(ABLATIONS / f"{name}.yaml").to_dict()
        changed = {field: value for field, value in ablation.items() if value != whole[field]}
        assert changed.pop("name") == name
        assert changed.pop("description")
        assert changed == expected, name
