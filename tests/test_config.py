import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from faap.config import Recipe, fields_of, load_recipe
from faap.errors import FaapError
from faap.settings import SECTIONS


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


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


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (0, [0.05, 0.075, 0.10, 0.10, 0.095, 0.09, 0.085]),  # 4 epochs remain, at whose end the last bound lies
        (1, [0.05, 0.075, 0.10, 0.10, 0.08, 0.08, 0.08]),
        (2, [0.05, 0.075, 0.10, 0.10, 0.09, 0.08, 0.08]),
        (10, [0.05, 0.075, 0.10, 0.10, 0.098, 0.096, 0.094]),
    ],
)
def test_epsilon_falls_over_its_decay_and_stays(decay: int, expected: list[float]) -> None:
    recipe = Recipe(
        epochs=7, epsilon_final=0.08, epsilon_warmup_epochs=2, epsilon_hold_epochs=1, epsilon_decay_epochs=decay
    )
    assert recipe.schedules()["epsilon"] == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [1, 2, 6, 12, 13])
def test_short_trainings_have_finite_schedules(epochs: int) -> None:
    schedules = Recipe(epochs=epochs).schedules()
    assert all(len(values) == epochs for values in schedules.values())
    assert all(math.isfinite(value) for values in schedules.values() for value in values)
    assert schedules["beta"][0] == 0.5


def test_the_sections_have_the_fields_that_other_rooms_take_them_for() -> None:
    assert fields_of("run") == (
        "name", "description", "output_dir", "resume", "fresh", "device", "num_workers", "save_steps", "save_minutes",
        "keep", "log_format", "log_with", "memory",
    )  # fmt: skip
    assert fields_of("data") == (
        "dataset_root", "annotations", "images_dir", "group_field", "group_csv", "skip_bad", "scenes",
        "detr_checkpoint",
    )  # fmt: skip
    assert fields_of("groups") == ("anchor_group", "reference_group")
    assert fields_of("generator") == ("arch", "widths")
    assert fields_of("training")[:3] == ("epochs", "seed", "batch_size")
    assert {"beta", "epsilon_start", "lr_g"} < set(fields_of("schedule"))
    assert {"terms", "head", "temperature", "lambda_wass"} < set(fields_of("objective"))
    everything = fields_of(*SECTIONS)
    assert len(everything) == len(set(everything)) == len(fields(Recipe)) == 84
    assert list(Recipe().to_dict()) == list(everything)
    assert Recipe(annotations="a", anchor_group="f", dataset_root="d").data() == {
        "root": "d", "anchor": "f", "reference": "male", "annotations": "a", "images_dir": "", "group_field": "",
        "group_csv": "", "skip_bad": False, "scenes": 0,
    }  # fmt: skip


def test_several_numbers_are_written_as_text_with_commas(tmp_path: Path) -> None:
    for given in ("96, 128,160", [96, 128, 160], ("96", "128", "160"), (96, 128.0, 160)):
        recipe = load_recipe("infonce_4th", train_edges=given, widths="8,16,24")
        assert (recipe.train_edges, recipe.widths) == ((96, 128, 160), (8, 16, 24))
    assert (recipe.to_dict()["train_edges"], recipe.to_dict()["widths"]) == ("96,128,160", "8,16,24")
    assert (Recipe().widths, Recipe().to_dict()["widths"]) == ((), "")
    assert Recipe().to_dict()["train_edges"] == "480,512,544,576,608,640,672,704,736,768,800"
    recipe.save(tmp_path / "saved.yaml")
    assert "train_edges: 96,128,160\n" in (tmp_path / "saved.yaml").read_text()
    assert load_recipe(tmp_path / "saved.yaml", name="infonce_4th") == recipe


def test_a_wrong_recipe_is_said_without_torch(tmp_path: Path) -> None:
    script = """
import sys
from faap.errors import FaapError
from faap.recipes import find, read, recipe_names
assert read(find("infonce_4th"))["description"] and "moco_4th" in recipe_names()
try:
    find("infonce_5th")
except FaapError as error:
    print(error, "torch" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("infonce_5th: no recipe of this name, and no file. Did you mean 'infonce_4th'?")
    assert said.endswith("False\n")


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe().seed = 3  # type: ignore[misc]


def test_text_becomes_the_type_of_its_field() -> None:
    recipe = load_recipe("infonce_4th", lr_g="3e-4", epochs="5", batch_size=4.0, temperature=1, output_dir=Path("a"))
    assert (recipe.lr_g, recipe.epochs, recipe.batch_size, recipe.temperature) == (3e-4, 5, 4, 1.0)
    assert [type(v) for v in (recipe.lr_g, recipe.epochs, recipe.batch_size, recipe.temperature)] == [
        float,
        int,
        int,
        float,
    ]
    assert recipe.output_dir == "a"


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
        ("epochs", 1_000_001, "at least 1 and at most 1000000"),
        ("num_workers", 1025, "at most 1024"),
        ("queue_size", 10**12, "at most 1000000"),
        ("name", "a/b", "name of a folder"),
        ("name", "a\\b", "name of a folder"),
        ("name", "..", "name of a folder"),
        ("name", ".", "name of a folder"),
        ("name", "", "name of a folder"),
        ("name", "a\nb", "name of a folder"),
        ("name", "é" * 101, "name of a folder"),
        ("name", "a\0b", "without control characters"),
        ("name", "\ud800", "valid Unicode"),
        ("dataset_root", "\x1b[2J", "without control characters"),
        ("train_edges", "480,large", "'large'; it must be a whole number"),
        ("train_edges", "", "whole numbers of pixels"),
        ("train_edges", 480, "with commas between them"),
        ("train_edges", "0", "at least 1"),
        ("widths", "16,48", "three multiples of 8"),
        ("widths", (12, 48, 96), "three multiples of 8"),
        ("proj_dropout", 1, "at least 0 and below 1"),
        ("epsilon_peak", 8, "at least 0 and at most 1"),
        ("lr_min", 1e-3, "must not exceed lr_g"),
        ("head", "stabilised", "Did you mean 'stabilized'"),
        ("aug_strength", "wek", "Did you mean 'weak'"),
        ("precision", False, "must be text"),
        ("arch", 3, "must be text"),
        ("reference_group", "female", "must differ"),
        ("contrastive", "infonse", "Did you mean 'infonce'"),
        ("head", "nothing", "none, plain, layernorm, stabilized"),
        ("score_weighting", "sigmoide", "Did you mean 'sigmoid'"),
        ("wass_scores", "images", "Did you mean 'image'"),
        ("f2m_weight", -1, "at least 0"),
        ("m2f_weight", -0.5, "at least 0"),
        ("queue_size", 0, "at least 1"),
        ("centroid_momentum", 1, "at least 0 and below 1"),
        ("adv_steps", 0, "at least 1"),
        ("lr_d", 0, "above 0"),
        ("epsilon_decay_epochs", 2.5, "whole number"),
        ("detach_reference", "maybe", "'maybe'; it must be true or false"),
        ("detach_reference", "", "''; it must be true or false"),
        ("detach_reference", None, "None; it must be true or false"),
        ("clip_apart", 1, "1; it must be true or false"),
        ("clip_apart", "0", "'0'; it must be true or false"),
        ("clip_apart", [True], "[True]; it must be true or false"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(field: str, value: object, said: str) -> None:
    with pytest.raises(FaapError, match=field) as caught:
        load_recipe("infonce_4th", **{field: value})
    assert said in str(caught.value)


@pytest.mark.parametrize("field", ["detach_reference", "clip_apart"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("yes", True), ("True", True), ("YES", True),
        ("false", False), ("no", False), ("False", False), ("No", False),
    ],
)  # fmt: skip
def test_a_yes_or_no_is_read_from_text_and_from_files(tmp_path: Path, field: str, text: str, value: bool) -> None:
    assert getattr(load_recipe("infonce_4th", **{field: text}), field) is value
    assert getattr(load_recipe("infonce_4th", **{field: value}), field) is value
    path = write(tmp_path, f"base: infonce_4th\n{field}: {text}\n")
    assert getattr(load_recipe(path), field) is value
    load_recipe(path).save(tmp_path / "saved.yaml")
    assert getattr(load_recipe(tmp_path / "saved.yaml"), field) is value
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text(encoding="utf-8"))[field] is value


@pytest.mark.parametrize(
    ("contrastive", "allowed"),
    [("infonce", {"none", "sigmoid", "softmax"}), ("momentum", {"none", "sigmoid"}), ("similarity", {"none"})],
)
@pytest.mark.parametrize("weighting", ["none", "sigmoid", "softmax"])
def test_a_weighting_without_a_meaning_is_refused(contrastive: str, allowed: set[str], weighting: str) -> None:
    if weighting in allowed:
        assert Recipe(contrastive=contrastive, score_weighting=weighting).score_weighting == weighting
    else:
        with pytest.raises(FaapError, match=f"score_weighting is '{weighting}'; with contrastive '{contrastive}'"):
            Recipe(contrastive=contrastive, score_weighting=weighting)


def test_a_training_starts_anew_or_goes_on() -> None:
    with pytest.raises(FaapError, match=r"fresh starts anew, and resume goes on, from 'run'; give one of them"):
        load_recipe("infonce_4th", fresh=True, resume="run")
    assert load_recipe("infonce_4th", fresh=True, resume="auto").fresh


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


@pytest.mark.parametrize(("one", "other"), [("dataset_root", "detr_checkpoint"), ("detr_checkpoint", "dataset_root")])
def test_ones_own_data_or_detector_alone_asks_for_the_other(tmp_path: Path, one: str, other: str) -> None:
    path = write(tmp_path, f"base: infonce_4th\n{one}: mine\n")
    for name, given in (("infonce_4th", {one: "mine"}), (path, {})):
        with pytest.raises(FaapError, match=f"{one} is 'mine', and no {other} is given: say which with --{other}"):
            load_recipe(name, **given)
        for value in ("promenade", "yours"):
            assert getattr(load_recipe(name, **given, **{other: value}), other) == value


def test_a_file_without_a_base_starts_from_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(str(write(tmp_path, "seed: 4\nname: other\n")))
    assert recipe == Recipe(seed=4, name="other")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature: 1", "unknown field 'temprature'. Did you mean 'temperature'?"),
        ("base: infonce_5th", "base is 'infonce_5th'; it must be one of contrastive_1st, "),
        ("base: [a]", "line 1: base is a sequence; it must be a single value"),
        ("- a\n- b", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("seed: 1\ntemperature: [1]", "line 2: temperature is a sequence; it must be a single value"),
        ("name: {a: b}", "line 1: name is a mapping; it must be a single value"),
        ("? [a]\n: b", "a sequence stands where a field's name should"),
        ("seed: 1\nlr_g: 1\nseed: 2", "line 3: seed stands there for the second time"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FaapError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FaapError, match=r"gone\.yaml: no recipe of this name, and no file"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\x81\xfe\x00\x81")
    with pytest.raises(FaapError, match=r"binary\.yaml: is no text in UTF-8"):
        load_recipe(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * 200_000)
    with pytest.raises(FaapError, match=r"large\.yaml: has more than 100,000 characters"):
        load_recipe(tmp_path / "large.yaml")


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

    monkeypatch.setattr("faap.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Recipe(seed=2).save(path)
    assert load_recipe(path).seed == 1


VALUES = [
    "", "0", "-1", "1e999", "nan", ".inf", "-.inf", "~", "9" * 30, "9" * 5000, "1e308", "[]", "{}", "[1, 2]", "{a: b}",
    "!!python/object/apply:os.system [exit 3]", "!!binary aGFsbG8=", "!!int x", "&a [*a]", "&a {b: *a}", "*nowhere",
    '"\\0"', '"\\e[2J"', '"\\ud800"', '"\\UFFFFFFFF"', '"\\x7f"', '"a\\nb"', "|\n  a\n  b", "'", '"', "@", "`", "%",
    "\t", "\x00", "\x1b", "\ufeff", "é" * 300, "a" * 9000, "..", ".", "/", "../../x", "a/b", "a\\b", "C:\\x", "--x",
    "<<", "0x10", "0o17", "1_000", "١٢", "1:30", "2001-01-01", "on", "yes", "TRUE", "none", "None", "[" * 400,
    "{" * 400, "- " * 3000, "? " * 3000, "{" + "a: " * 500, "os", "os:system", "mine", "480,,640",
    "480," * 5000, ",", "8,8,8",
]  # fmt: skip
LINES = [
    "<<: *a", "<<: {seed: 1}", "? [a, b]\n: c", "? {a: b}\n: c", "3: 4", "~: 1", ": 1", "---", "...", "%YAML 1.1",
    "%YAML " + "9" * 5000 + ".1", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]", "seed: 1\nseed: 2",
    "base: infonce_4th", "base: ../infonce_4th", "base:", "- a", "a", "#", "!!set {a}", "\t", "\x00", "name:", "  x: 1",
    "[" * 3000,
]  # fmt: skip


def mutants(count: int) -> Iterator[str]:
    """A recipe's file with all of its fields, and what a slip, a merge or malice makes of it."""
    random = Random(0)
    whole = [f"{key}: {value}" for key, value in Recipe().to_dict().items()]
    for _ in range(count):
        lines = random.sample(whole, random.randint(1, 8))
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(lines))
            kind = random.randrange(4)
            if kind == 0:
                lines[at] = f"{lines[at].partition(':')[0]}: {random.choice(VALUES)}"
            elif kind == 1:
                lines.insert(at, random.choice(LINES))
            elif kind == 2:
                text, place = lines[at], random.randint(0, len(lines[at]))
                lines[at] = text[:place] + random.choice(VALUES)[:40] + text[place + random.randint(0, 3) :]
            else:
                lines[at] = f"{random.choice(VALUES)[:99]}: {lines[at].partition(':')[2]}"
        yield "\n".join(lines)


def test_a_mutant_of_a_recipe_loads_or_is_an_error_in_a_few_words(tmp_path: Path) -> None:
    path, loaded = tmp_path / "mine.yaml", 0
    random = Random(1)
    single = [f"{field.name}: {value}" for field in fields(Recipe) for value in random.sample(VALUES, 4)]
    texts = [*mutants(200), *single]
    for text in texts:
        path.write_bytes(text.encode("utf-8"))
        said = None
        try:
            recipe = load_recipe(path)
        except FaapError as error:
            said = str(error)
        if said is not None:
            assert str(path) in said, text
            assert len(said) < len(str(path)) + 600, text
        else:
            loaded += 1
            assert all(math.isfinite(v) for v in recipe.to_dict().values() if isinstance(v, float)), text
            assert not set(recipe.name) & set("/\\\0"), text
            assert recipe.name not in ("", ".", ".."), text
            if recipe.epochs < 100:
                recipe.schedules()
            if loaded % 10 == 0:
                recipe.save(tmp_path / "saved.yaml")
                assert load_recipe(tmp_path / "saved.yaml") == recipe, text
    assert 30 < loaded < len(texts) - 150


def test_values_from_python_or_a_checkpoint_are_shown_in_a_few_words() -> None:
    deep: Any = []
    for _ in range(60):
        deep = [deep, deep]  # would be 2 ** 60 brackets
    for value in (
        deep,
        10**5000,
        "9" * 10**6,
        {"a": deep},
        object(),
        b"x",
        1j,
        [None] * 10**6,
        float("inf"),
        Path("\0"),
    ):
        for name in ("epochs", "lr_g", "arch", "clip_apart", "train_edges", "name", "terms", "no_such_field"):
            with pytest.raises(FaapError) as caught:
                load_recipe("infonce_4th", **{name: value})
            assert len(str(caught.value)) < 600
