"""Terms of a user's own: what docs/terms.md says, where they are looked for, and what goes wrong in them."""

import contextlib
import io
import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import faap
from faap import cli
from faap.config import load_recipe, recipe_class, resumed_recipe, run_recipe
from faap.detectors import DetectorOutput
from faap.errors import FaapError
from faap.objectives.term import STATISTICS
from faap.report.charts import draw_log
from faap.runs import Run
from faap.training.objective import Objective

PAGE = Path(__file__).parents[2] / "docs" / "terms.md"
SETTINGS = """
from dataclasses import dataclass
from faap.objectives import Term, setting

@dataclass(frozen=True, kw_only=True)
class Settings:
    lambda_mine: float = setting(0.5, "weight of mine", low=0)
"""
TERMS = """
def terms(recipe, feature_dim, projected_dim):
    yield Term("mine", recipe.lambda_mine, lambda view: view.pooled[0].sum() * 0 + 3)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, in which nothing outside may leave a trace."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def write(folder: Path, terms: str, recipe: str = "terms: mine\n", name: str = "mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(terms)
    (folder / "recipe.yaml").write_text(f"base: infonce_4th\n{recipe}")
    return folder / "recipe.yaml"


def tripwire(path: Path) -> str:
    """A module of terms that leaves a file when it is imported."""
    return f"open({str(path)!r}, 'w').close()\n{SETTINGS}{TERMS}"


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_page_does_what_it_says(
    here: Path, tiny_promenade: Path, tiny_detector: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file, snippet), [recipe], [command] = (
        [text for kind, text in blocks() if kind == wanted] for wanted in ("python", "yaml", "sh")
    )
    (here / "dispersion.py").write_text(file)
    (here / "mine.yaml").write_text(recipe)
    places = ["--dataset_root", str(tiny_promenade), "--detr_checkpoint", str(tiny_detector), "--device", "cpu"]
    small = [*places, "--batch_size", "4", "--images_per_epoch", "8", "--output_dir", "run"]
    typed = shlex.split(command)
    assert typed[0] == ".venv/bin/faap"
    assert cli.main([*typed[1:], *small, "--epochs", "1"]) == 0
    [row] = Run("run").read_log()
    assert row["schedule"]["spread_weight"] == 0.5
    assert "spread" in row["losses"]
    assert "sim_f2m" not in row["losses"]
    drawn = draw_log([row], 0, "female", "male")["losses"]
    assert {slug for slug, *_ in drawn} == {f"loss_{name}" for name in row["losses"]}
    terms = row["train"]
    expected = (
        terms["infonce"] * 0.25 + 0.3 * terms["alignment"] + 0.2 * terms["wasserstein"] + 0.5 * terms["detection"]
    )
    assert terms["spread"] < -0.01
    assert terms["total"] == pytest.approx(expected + 0.2 * 0.5 * terms["spread"], rel=1e-5)
    # it goes on where the file is named again, and the setting is the checkpoint's
    last = str(Run("run").checkpoint(Run("run").epochs()[-1]))
    assert cli.main([*typed[1:3], *small, "--epochs", "2", "--resume", last]) == 0
    assert "\nlambda_spread: 0.2\n" in Run("run").config.read_text(encoding="utf-8")
    assert [row["schedule"]["spread_weight"] for row in Run("run").read_log()] == [0.5, 1.0]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "mine.yaml", "--help"])
    assert "--lambda_spread" in capsys.readouterr().out
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(snippet, {})
    assert float(out.getvalue()) == float(snippet.rpartition("# ")[2]) == -0.75


def test_its_settings_are_fields_that_are_checked_like_all(here: Path) -> None:
    path = write(here / "far", SETTINGS + TERMS, "terms: mine\nlambda_mine: 0.3\n")
    recipe = load_recipe(path)
    assert recipe.to_dict() | {"lambda_mine": 0.3, "terms": "mine"} == recipe.to_dict()
    assert load_recipe(path) == recipe != replace(recipe, lambda_mine="0.4")  # type: ignore[call-arg]
    for wrong, said in (
        ({"lambda_mime": 1}, r"unknown field 'lambda_mime'. Did you mean 'lambda_mine'\?"),
        ({"lambda_mine": -1}, "lambda_mine is -1; it must be at least 0"),
        ({"lambda_mine": "much"}, "lambda_mine is 'much'; it must be a number"),
    ):
        with pytest.raises(FaapError, match=said):
            load_recipe(path, **wrong)
    saved = here / "saved.yaml"
    recipe.save(saved)
    assert load_recipe(saved, terms=here / "far" / "mine.py").to_dict()["lambda_mine"] == 0.3
    # text as annotations, and a cross-check
    late = "from __future__ import annotations\n" + SETTINGS + "    much: int = setting(2, 'n')\n"
    late += "    def check(self):\n        if self.much > 3:\n            raise ValueError('too much')\n"
    path = write(here / "late", late + TERMS)
    assert load_recipe(path, much="3").to_dict()["much"] == 3
    with pytest.raises(FaapError, match=r"mine\.py, line 12: ValueError: too much"):
        load_recipe(path, much=4)


def test_where_terms_are_found(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weight(recipe: Any) -> float:
        return float(recipe.lambda_mine)

    def terms(default: float) -> str:
        return (SETTINGS + TERMS).replace("0.5", str(default))

    path = write(tmp_path / "a", terms(1))
    other = write(tmp_path / "b", terms(2))
    before = list(sys.path), set(sys.modules)
    assert (weight(load_recipe(path)), weight(load_recipe(other)), weight(load_recipe(path))) == (1, 2, 1)
    (here / "mine.py").write_text(terms(3))
    assert weight(load_recipe(path)) == 1  # beside the recipe comes first
    assert weight(load_recipe("infonce_4th", terms="mine")) == 3
    assert weight(load_recipe("infonce_4th", terms="mine.py")) == 3
    assert weight(load_recipe("infonce_4th", terms=tmp_path / "b" / "mine.py")) == 2
    assert weight(recipe_class("mine")()) == 3
    assert recipe_class("mine")().terms == "mine"
    (tmp_path / "a" / "mine.py").write_text(terms(4) + "\n# changed\n")
    assert weight(load_recipe(path)) == 4
    assert sys.path == before[0]
    new = [name for name in sys.modules if name not in before[1] and "mine" in name]
    assert len(new) == 3
    assert all(name.startswith("faap_terms_mine_") for name in new)
    assert not list(tmp_path.rglob("__pycache__"))
    package = tmp_path / "packages" / "installed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(terms(5))
    monkeypatch.syspath_prepend(str(package.parent))
    assert weight(load_recipe("infonce_4th", terms="installed.inner")) == 5
    # a helper beside the file
    (tmp_path / "b" / "helper_of_mine.py").write_text("VALUE = 6.0\n")
    (tmp_path / "b" / "mine.py").write_text("import helper_of_mine\n" + terms(6))
    assert weight(load_recipe(other)) == 6


def test_a_file_names_no_code_but_a_file_beside_it(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = tmp_path / "touched"
    for place in ("sub/evil.py", "evil.py"):
        path = tmp_path / "packages" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tripwire(touched))
    (here / "sub").mkdir()
    (here / "sub" / "evil.py").write_text(tripwire(touched))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    for name in (
        "evil", "sub.evil", "sub/evil", "sub/evil.py", "../packages/evil", str(tmp_path / "packages/evil.py"), "os",
        "faap.objectives.alignment", "-", ".", "..", "évil" * 999, "''''", "[1]", "a b",
    ):  # fmt: skip
        path = write(tmp_path / "recipes", "", f"terms: {json.dumps(name, ensure_ascii=False)}\n")
        with pytest.raises(FaapError, match=r"terms is .*must be typed \(--terms\)") as caught:
            load_recipe(path)
        assert len(str(caught.value)) < 900
        assert not touched.exists()
    for name in ("os", "nowhere.to.be.found", "a b", "\0", "x.py"):
        with pytest.raises(FaapError):
            load_recipe("infonce_4th", terms=name)
    load_recipe("infonce_4th", terms="evil")
    assert touched.exists()
    sys.modules.pop("evil")  # other tests ask whether it is there


@pytest.fixture
def run(here: Path, tmp_path: Path) -> tuple[Run, dict[str, Any], Path]:
    """A run folder whose config.yaml names terms and a function, both beside it; its values; what they would leave."""
    touched, folder = tmp_path / "touched", tmp_path / "run"
    write(folder, SETTINGS + TERMS)
    recipe = load_recipe(
        folder / "recipe.yaml", dataset_root="data", detr_checkpoint="mine:build", seed=7, lambda_mine=0.4
    )
    recipe.save(folder / "config.yaml")
    for place in (folder, here):
        (place / "mine.py").write_text(tripwire(touched))
    (folder / "train_log.jsonl").write_text("")
    return Run(folder), recipe.to_dict(), touched


def test_a_runs_word_for_code_is_not_taken(run: tuple[Run, dict[str, Any], Path], here: Path, tmp_path: Path) -> None:
    folder, stored, touched = run
    with pytest.raises(
        FaapError, match=r"config\.yaml: detr_checkpoint is 'mine:build'.* type --detr_checkpoint mine:"
    ):
        run_recipe(folder)
    read = run_recipe(folder, detr_checkpoint="promenade")
    assert (read.seed, read.terms, read.own) == (7, "mine", None)
    with pytest.raises(FaapError, match="say --terms mine"):
        Objective(read, 16)
    named = {"detr_checkpoint": "mine:build", "dataset_root": "data"}
    with pytest.raises(FaapError, match=r"config\.yaml: terms is 'mine'.* type --terms mine\."):
        load_recipe(folder.config, **named)
    with pytest.raises(FaapError, match="type --detr_checkpoint mine:build"):
        load_recipe(folder.config, terms="mine")
    checkpoint = tmp_path / "epoch_0001.pth"
    mine = tmp_path / "plain" / "recipe.yaml"
    mine.parent.mkdir()
    mine.write_text("base: infonce_4th\nname: recipe\n")
    with pytest.raises(FaapError, match=r"epoch_0001\.pth: terms is 'mine'.* type --terms mine\."):
        resumed_recipe(mine, stored, checkpoint, **named)
    with pytest.raises(FaapError, match="type --detr_checkpoint mine:build"):
        resumed_recipe(mine, {key: value for key, value in stored.items() if key != "terms"}, checkpoint)
    for wrong in ({**stored, "seed": [1]}, {**stored, 3: 4}, {**stored, "name": None}, [], {"name": "recipe", "x": 1}):
        with pytest.raises(FaapError, match=r"epoch_0001\.pth: "):
            resumed_recipe(mine, wrong, checkpoint)  # type: ignore[arg-type]
    assert not touched.exists()
    # what the person names is taken: typed, or in the recipe that is asked for
    assert run_recipe(folder, terms="mine", **named).to_dict() == stored
    assert touched.exists()
    again = resumed_recipe(mine, stored, checkpoint, terms="mine", **named)
    assert (again.seed, again.to_dict()["lambda_mine"], again.detr_checkpoint) == (7, 0.4, "mine:build")
    mine.write_text("base: infonce_4th\nname: recipe\nterms: mine\ndetr_checkpoint: mine:build\ndataset_root: d\n")
    assert resumed_recipe(mine, stored, checkpoint).to_dict() == stored
    assert resumed_recipe(mine, stored, checkpoint, seed=8, num_workers=1).to_dict()["seed"] == 8


def test_what_is_wrong_with_a_module_is_said_with_file_and_line(here: Path, tmp_path: Path) -> None:
    before = list(sys.path)
    for text, said in (
        (SETTINGS, "is no module of terms"),
        (TERMS, "is no module of terms"),
        (TERMS + "class Settings: pass\n", "is no module of terms"),
        ("x = 1\n1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("x = 1\ny = (\n", "line 2: SyntaxError"),
        ("import sys\nsys.path.append('/nowhere')\nsys.exit(3)\n", "line 3: SystemExit: 3"),
        ("import not_there_at_all\n", "line 1: ModuleNotFoundError"),
        ("raise ValueError('x' * 9999)\n", "line 1: ValueError: xxx"),
        ("x = '\0'", "null bytes"),
        (SETTINGS.replace("lambda_mine", "seed") + TERMS, "Settings.seed is a name that every recipe has"),
        (SETTINGS.replace("lambda_mine", "save") + TERMS, "Settings.save is a name that every recipe has"),
        (SETTINGS.replace("lambda_mine", "lambda_align") + TERMS, "Settings.lambda_align is a name"),
        (SETTINGS.replace('setting(0.5, "weight of mine", low=0)', "0.5") + TERMS, "Settings.lambda_mine must be"),
        (SETTINGS.replace(": float", ": list") + TERMS, "Settings.lambda_mine must be"),
        (SETTINGS.replace("low=0", "section='nowhere'") + TERMS, "Settings.lambda_mine must be"),
        ("import faap\n" + SETTINGS.replace("Settings:", "Settings(faap.Recipe):") + TERMS, "TypeError"),
        (SETTINGS.replace("0.5", "-1") + TERMS, "lambda_mine is -1; it must be at least 0"),
    ):
        path = write(tmp_path / "wrong", text)
        with pytest.raises(FaapError, match=re.escape(said)) as caught:
            load_recipe(path)
        assert "mine.py" in str(caught.value) or "recipe.yaml" in str(caught.value)
        assert len(str(caught.value)) < 800
        assert sys.path == before
        (tmp_path / "wrong" / "mine.py").unlink()


def objective_of(folder: Path, terms: str) -> Objective:
    return Objective(load_recipe(write(folder, SETTINGS + terms)), 16)


def test_what_is_wrong_with_a_term_is_said(tmp_path: Path) -> None:
    def term(arguments: str, rest: str = "") -> str:
        return f"def terms(recipe, feature_dim, projected_dim):\n    yield Term({arguments})\n{rest}"

    value = "lambda view: view.pooled[0].sum()"
    for number, (text, said) in enumerate(
        (
            (term(f"'infonce', 1, {value}"), "infonce is the name of another term"),
            (term(f"'detection', 1, {value}"), "detection is the name of another term"),
            (term(f"'beta', 1, {value}"), "beta is the name of another term or schedule"),
            (term(f"'a.b', 1, {value}"), "line 9: a term's name is 'a.b'"),
            (term(f"'keys', 1, {value}"), "a term's name is 'keys'"),
            (term(f"'training', 1, {value}"), "a term's name is 'training'"),
            (term(f"3, 1, {value}"), "the term 3: name: is 3; it should be text"),
            (term(f"'mine', 'x', {value}"), "line 9: the term 'mine': weight: is 'x'; it should be a finite number"),
            (term(f"'mine', float('nan'), {value}"), "the term 'mine': weight: is nan"),
            (term(f"'mine', 1, {value}, 'betta'"), "the schedule 'betta'"),
            (term(f"'mine', 1, {value}, state=3"), "the term 'mine': state: is 3; it should be null or a Module"),
            ("def terms(recipe, feature_dim, projected_dim):\n    yield 3\n", "terms yields 3"),
            ("def terms(recipe, feature_dim, projected_dim):\n    return recipe.nothing\n", "line 9: AttributeError"),
            ("def terms():\n    yield\n", "TypeError"),
            (TERMS + "def schedules(recipe):\n    yield 'beta', lambda epoch: 1\n", "two schedules 'beta'"),
            (TERMS + "def schedules(recipe):\n    yield 'mine', lambda epoch: 1\n", "mine is the name of another term"),
            (TERMS + "def schedules(recipe):\n    yield 's', lambda epoch: 1 / epoch\n", "ZeroDivisionError"),
            (TERMS + "def schedules(recipe):\n    yield 's', lambda epoch: float('inf')\n", "s is not finite"),
            (TERMS + "def schedules(recipe):\n    return 3\n", "TypeError"),
        )
    ):
        with pytest.raises(FaapError, match=re.escape(said)):
            objective_of(tmp_path / str(number), text)


STATE = """
import torch
class Counter(torch.nn.Module):
    LOSSES = ("count_loss",)
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
    def monitored(self):
        return {"MONITORED": self.count, "count_loss": self.count}
def terms(recipe, feature_dim, projected_dim):
    counter = Counter()
    def value(view):
        counter.count += 1
        VALUE
    yield Term("mine", 1, value, state=counter)
"""


def test_what_a_term_returns_and_monitors(tmp_path: Path) -> None:
    numbers = itertools.count()
    out = DetectorOutput(torch.randn(4, 3, 2).requires_grad_(), torch.rand(4, 3, 4), torch.randn(4, 3, 16), [])
    detector: Any = SimpleNamespace(
        activation="softmax", loss=lambda *_: torch.tensor(0.5), matched_scores=lambda *_: [torch.ones(1)] * 4
    )

    def seen(value: str, monitored: str = "count") -> tuple[Objective, dict[str, torch.Tensor]]:
        text = STATE.replace("VALUE", value).replace("MONITORED", monitored)
        objective = objective_of(tmp_path / str(next(numbers)), text)
        schedule = {"beta": 1.0, "contrastive_weight": 1.0}
        view = objective.view(detector, (out, [{}] * 4, ["female", "male"] * 2, [[]]))
        return objective, objective(view, schedule)[1]

    for value, monitored, said in (
        ("return view.pooled[0]", "count", "mine is of shape (2, 16); it must be a scalar tensor"),
        ("return 3.0", "count", "mine is float; it must be a scalar tensor"),
        ("return view.nothing", "count", "line 21: AttributeError"),
        ("return view.scores[0].sum()", "total", "the term mine monitors 'total'"),
    ):
        with pytest.raises(FaapError, match=re.escape(said)):
            seen(value, monitored)
    objective, found = seen("return view.scores[0].sum() * 0 + view.matched_scores[0].sum() + view.detection")
    assert found["mine"] == 2.5
    assert found["count"] == found["count_loss"] == 1
    assert set(found) - set(objective.losses) == {"sim_f2m", "sim_f2f", "score_gap", "n_f", "n_m", "count"}
    assert objective.state_dict()["states.mine.count"] == 1


def test_the_recipes_class_has_the_fields_of_both(here: Path) -> None:
    names: Callable[[Any], set[str]] = lambda kind: {each.name for each in fields(kind)}  # noqa: E731
    (here / "mine.py").write_text(SETTINGS + TERMS)
    assert names(recipe_class("mine")) == names(faap.Recipe) | {"lambda_mine"}
    assert issubclass(recipe_class("mine"), faap.Recipe)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ("lambda view: view.pooled[0].sum(1)[:1]", r"mine\.py: mine is of shape \(1,\); it must be a scalar tensor"),
        ("lambda view: 3", r"mine\.py: mine is int; it must be a scalar tensor"),
        ("lambda view: 1 / 0", r"mine\.py, line \d+: ZeroDivisionError"),
        ("lambda view: view.pooled[0].exp().mul_(2).sum()", r"mine\.py: RuntimeError: one of the variables needed"),
    ],
)
def test_what_a_term_does_wrong_names_its_file(
    terms: str, said: str, here: Path, tiny_promenade: Path, tiny_detector: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(here, SETTINGS + TERMS.replace("lambda view: view.pooled[0].sum() * 0 + 3", terms))
    places = ["--dataset_root", str(tiny_promenade), "--detr_checkpoint", str(tiny_detector), "--device", "cpu"]
    assert cli.main(["train", str(path), *places, "--batch_size=4", "--images_per_epoch=4", "--epochs=1"]) == 2
    assert re.search(f"error: .*{said}", capsys.readouterr().err)


MEMORY = """
import torch

class Memory(torch.nn.Module):
    def monitored(self):
        WRONG

def terms(recipe, feature_dim, projected_dim):
    yield Term("mine", recipe.lambda_mine, lambda view: view.pooled[0].sum() * 0, state=Memory())
"""


@pytest.mark.parametrize("wrong", ["return [1]", "raise KeyError('x')"])
def test_what_its_state_does_wrong_names_its_file(
    wrong: str, here: Path, tiny_promenade: Path, tiny_detector: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(here, SETTINGS + MEMORY.replace("WRONG", wrong))
    places = ["--dataset_root", str(tiny_promenade), "--detr_checkpoint", str(tiny_detector), "--device", "cpu"]
    assert cli.main(["train", str(path), *places, "--batch_size=4", "--images_per_epoch=4", "--epochs=1"]) == 2
    assert re.search(r"error: .*mine\.py", capsys.readouterr().err)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_term_is_not_called_what_something_else_is_logged_under(name: str, here: Path) -> None:
    path = write(here, SETTINGS + TERMS.replace('"mine"', repr(name)))
    with pytest.raises(FaapError, match=f"name is '{name}', under which something else is logged"):
        Objective(load_recipe(path), 16)


def test_code_that_has_changed_is_another_training(
    here: Path, tiny_promenade: Path, tiny_detector: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(here, SETTINGS + TERMS)
    places = ["--dataset_root", str(tiny_promenade), "--detr_checkpoint", str(tiny_detector), "--device", "cpu"]
    command = ["train", str(path), *places, "--batch_size=4", "--images_per_epoch=4", "--epochs=1", "--output_dir=run"]
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    assert "holds this training, finished" in " ".join(capsys.readouterr().out.split())
    write(here, SETTINGS + TERMS.replace("+ 3", "+ 4"))
    assert cli.main(command) == 2
    assert "with other settings: the code of mine has changed; go on with --resume" in capsys.readouterr().err
    assert cli.main([*command, "--resume=run", "--epochs=2"]) == 0
    assert [row["train"]["mine"] for row in Run("run").read_log()] == [3, 4]
