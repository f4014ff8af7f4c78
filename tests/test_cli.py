import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import faap
from faap import cli
from faap.compare import LocalRunner
from faap.config import Recipe, load_recipe
from faap.data import layouts
from faap.errors import FaapError
from faap.evaluation import NONE_WORTH_IT, MetricFrame, detect
from faap.perturbation import build_generator, load_generator, save_generator
from faap.process import outcome
from faap.promenade import detector_dir, shipped_run
from faap.report.words import number
from faap.runs import Run
from faap.weights import tensors_sha256

ROOT = Path(__file__).parents[1]
SMALL = ["--epochs", "1", "--batch_size", "4", "--images_per_epoch", "4", "--device", "cpu"]

OWN_TERMS = """
from dataclasses import dataclass
from faap.objectives import Term, setting

@dataclass(frozen=True, kw_only=True)
class Settings:
    lambda_mine: float = setting(0.5, "weight of mine", low=0)

def terms(recipe, feature_dim, projected_dim):
    yield Term("mine", recipe.lambda_mine, lambda view: view.pooled[0].sum() * 0)
"""


@pytest.fixture
def places(tiny_promenade: Path, tiny_detector: Path) -> list[str]:
    return ["--dataset_root", str(tiny_promenade), "--detr_checkpoint", str(tiny_detector)]


def test_train_then_evaluate(places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run [a]"
    assert cli.main(["train", "infonce_4th", *places, *SMALL, "--output_dir", str(run)]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "APgap" in shown
    assert "run[a]/metrics.json" in shown
    assert cli.main(["evaluate", str(run), *places, "--output_dir", str(tmp_path / "again"), "--device", "cpu"]) == 0
    first, again = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "again"))
    dates = [metrics["provenance"].pop("date") for metrics in (first, again)]
    assert dates[0] < dates[1]
    assert NONE_WORTH_IT in first["warnings"]  # which is known of the run alone
    first["warnings"].remove(NONE_WORTH_IT)
    assert first == again
    assert (tmp_path / "again" / "report.html").is_file()


def test_where_nothing_can_be_written_nothing_is_measured(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(sys.modules["faap.report.measure"], "measurable", measured)
    monkeypatch.setattr("faap.audit.audit_data", measured)
    (tmp_path / "file").touch()
    for command in (["evaluate", "promenade", *places], ["audit", *places[1:]]):
        assert cli.main([*command, "--device", "cpu", "--output_dir", str(tmp_path / "file")]) == 2
        assert "file: cannot be made or written to" in capsys.readouterr().err


def test_choosing_among_a_runs_generators_by_the_test_split_is_refused(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    few = [*SMALL, "--epochs", "2", "--lr_g", "0.1", "--output_dir", str(run.path)]
    assert cli.main(["train", "infonce_4th", *places, *few]) == 0
    first = json.loads(run.metrics.read_text())["provenance"]
    assert run.read_on(first["split_sha256"]) == [first["generator"]["sha256"]]
    capsys.readouterr()

    def evaluate(place: Path, *flags: str) -> int:
        return cli.main(["evaluate", str(place), *places, "--output_dir", str(tmp_path / "out"), *flags])

    assert evaluate(run.path) == 0  # the one that was chosen, again
    shas = {tensors_sha256(load_generator(run.checkpoint(epoch)).state_dict()): epoch for epoch in run.epochs()}
    other = run.checkpoint(next(epoch for sha, epoch in shas.items() if sha != first["generator"]["sha256"]))
    capsys.readouterr()
    assert evaluate(other) == 2
    said = capsys.readouterr().err
    assert "no longer a test" in said
    assert "--i_know" in said
    assert len(run.read_on(first["split_sha256"])) == 2
    assert evaluate(other, "--split", "val") == 0
    assert evaluate(other, "--split", "testing") == 2
    assert len(run.read_on(first["split_sha256"])) == 2
    assert evaluate(other, "--i_know") == 0
    warnings = json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"]
    assert any("1 other generator of this run" in text for text in warnings)
    assert len(set(run.read_on(first["split_sha256"]))) == 2


def test_demo_measures_the_control_beside_the_biased_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("faap.promenade.build.SCENES", {"train": 4, "val": 2, "test": 4})
    monkeypatch.chdir(tmp_path)
    read, real = list[str](), layouts.read_coco

    def watched(path: Path, *rest: Any, **named: Any) -> Any:
        read.append(path.name)
        return real(path, *rest, **named)

    monkeypatch.setattr(layouts, "read_coco", watched)
    assert cli.main(["demo", *SMALL]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    parts = [f"gender_{who}_{split}.json" for who in ("women", "men") for split in ("train", "val", "test", "test")]
    assert sorted(read) == sorted(parts)  # all once, and for the control nothing but the test split
    split = faap.load_dataset("promenade").split("test")
    detections = detect(faap.load_detector(detector_dir("control")), split)
    gap = MetricFrame(split, detections, metrics=["AP"]).difference["female"]["AP"]
    assert f"trained without the planted bias) has an AP gap of {number(gap['value'])} (95 %" in shown
    assert "success criteria" in shown
    assert "the generator promenade on the same images (344,227 parameters, trained on 100,352 images in" in shown
    assert "cost: 344,227 parameters, trained on 4 images in 0 min" in shown
    metrics = json.loads((tmp_path / "faap_outputs" / "demo" / "metrics.json").read_text())
    shipped = json.loads((shipped_run() / "metrics.json").read_text())
    assert list(metrics["beside"]) == ["promenade"]
    sources = [each["provenance"]["generator"]["sha256"] for each in (metrics["beside"]["promenade"], shipped, metrics)]
    assert sources[0] == sources[1] != sources[2]
    assert "Beside it" in (tmp_path / "faap_outputs" / "demo" / "report.html").read_text()


def test_demo_in_front_of_another_detector_is_measured_alone(places: list[str], tmp_path: Path) -> None:
    assert cli.main(["demo", *places, *SMALL, "--output_dir", str(tmp_path / "run")]) == 0
    assert "beside" not in json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.parametrize("command", [["evaluate"], ["export", "--with_detector"], ["apply", "a.png", "--draw"]])
def test_a_detector_that_only_a_run_names_is_not_fetched(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_generator(build_generator(), tmp_path / "generator")
    (tmp_path / "config.yaml").write_text("name: some\ndetr_checkpoint: organisation/model\n")
    monkeypatch.setattr(faap, "load_detector", lambda *_: pytest.fail("it is not to be looked for"))
    assert cli.main([command[0], str(tmp_path), *command[1:]]) == 2
    said = "its detector organisation/model is not here; say --detr_checkpoint organisation/model"
    assert said in " ".join(capsys.readouterr().err.split())


def test_evaluate_takes_split_groups_and_absolute_targets(places: list[str], tmp_path: Path) -> None:
    generator = tmp_path / "generator"
    save_generator(build_generator(), generator)
    out = tmp_path / "out"
    flags = ["--split", "val", "--anchor_group", "male", "--reference_group", "female", "--absolute"]
    assert cli.main(["evaluate", str(generator), *places, *flags, "--output_dir", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["split"] == "val"
    assert list(metrics["baseline"]) == ["male", "female"]
    assert metrics["success"]["anchor_ap"]["target"] == 0.410


def test_evaluate_through_jpeg_and_with_another_bound(places: list[str], tmp_path: Path) -> None:
    save_generator(build_generator(), tmp_path / "generator")
    found = []
    for name, flags in (
        ("plain", []),
        ("jpeg", ["--jpeg", "5", "--resize", "0.3"]),
        ("bound", ["--epsilon", "0.05", "--num_workers", "1"]),
    ):
        command = ["evaluate", str(tmp_path / "generator"), *places, "--output_dir", str(tmp_path / name)]
        assert cli.main([*command, *flags]) == 0
        found.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    plain, jpeg, bound = found
    assert [each["perturbation"]["jpeg"] for each in found] == [None, 5, None]
    assert [each["perturbation"]["epsilon"] for each in found] == [0.1, 0.1, 0.05]
    assert jpeg["baseline"] != plain["baseline"] == bound["baseline"]  # without the generator, too, it is a file
    assert [each["perturbation"]["resize"] for each in found] == [None, 0.3, None]
    said = "come to the detector as JPEG of quality 5, resized by 0.3 and back."
    pages = [(tmp_path / name / "report.html").read_text() for name in ("jpeg", "plain")]
    assert [said in page for page in pages] == [True, False]
    assert bound["perturbation"]["linf_normalised"] < plain["perturbation"]["linf_normalised"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("jpeg", "0"), ("jpeg", "101"), ("jpeg", "high"), ("resize", "0"), ("resize", "nan"), ("shift", "-1")],
)
def test_what_cannot_be_done_to_images(places: list[str], tmp_path: Path, flag: str, value: str, capsys: Any) -> None:
    save_generator(build_generator(), tmp_path / "generator")
    command = ["evaluate", str(tmp_path / "generator"), *places, "--output_dir", str(tmp_path / "out")]
    assert cli.main([*command, f"--{flag}={value}"]) == 2
    assert flag in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_compare_trains_reports_and_says_what_failed(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # processes take long to start; tests/compare has some
    monkeypatch.setattr(
        LocalRunner, "train", lambda runner, recipe, *_: faap.train(recipe, console=Console(quiet=True))
    )
    out = tmp_path / "out"
    command = ["compare", "moco_4th", "contrastive_1st", *places[:2], *SMALL, "--jobs", "1", "--output_dir", str(out)]
    assert cli.main([*command, "--detr_checkpoint", places[3]]) == 0
    shown = capsys.readouterr().out
    assert "2 to go" in shown
    assert "moco_4th" in shown
    assert "contrastive_1st" in shown
    assert (out / "compare.html").is_file()
    assert {r["name"] for r in json.loads((out / "compare.json").read_text())["recipes"]} == {
        "moco_4th",
        "contrastive_1st",
    }
    assert cli.main([*command, "--detr_checkpoint", "/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: detector /nowhere does not exist")

    def fails(*_: object) -> None:
        raise FaapError("its memory does not suffice")

    monkeypatch.setattr(LocalRunner, "train", fails)
    assert cli.main([*command, "--detr_checkpoint", places[3], "--seed", "1"]) == 2
    caught = capsys.readouterr()
    assert "moco_4th, seed 1: failed: its memory does not suffice" in " ".join(caught.out.split())
    assert caught.err.startswith("error: 2 runs failed")


def test_original_entry_point(places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Path("faap_outputs", "faap_outputs_infonce_4th", "checkpoints")
    script = str(ROOT / "train_faap_simclr_infonce_4th.py")
    monkeypatch.chdir(tmp_path)
    resumed = ["--epochs", "2", "--resume", str(checkpoints / "epoch_0000.pth")]
    for epoch, flags in enumerate(([*SMALL, "--aug_strength", "none"], resumed)):
        monkeypatch.setattr(sys, "argv", [script, *places, *flags])
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_path(script, run_name="__main__")
        assert (checkpoints / f"epoch_{epoch:04d}.pth").is_file()


@pytest.mark.parametrize(
    ("words", "out", "err"),
    [([], True, False), (["--log_format", "json"], False, True), (["--log-format=json"], False, True),
     (["--quiet"], False, False)],
)  # fmt: skip
def test_the_original_entry_points_note_is_not_in_the_log(
    words: list[str], out: bool, err: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "train_faap_simclr_infonce_4th.py")
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.setattr(cli, "run", lambda *_, **__: 0)
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    said = capsys.readouterr()
    assert ("too short to judge" in said.out, "too short to judge" in said.err) == (out, err)


def test_a_log_for_machines_stands_alone_and_quiet_is_quiet(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "infonce_4th", *places, *SMALL, "--log_format=json", f"--output_dir={tmp_path / 'run'}"]
    assert cli.main(command) == 0
    first = capsys.readouterr()
    assert [json.loads(line)["epoch"] for line in first.out.splitlines()] == [0]
    assert "metrics:" in first.err
    assert cli.main([*command, "--quiet", "--fresh"]) == 0
    second = capsys.readouterr()
    assert [json.loads(line)["epoch"] for line in second.out.splitlines()] == [0]
    assert second.err == ""


def test_flags_may_stand_before_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(cli, "_train", lambda name, given, *_: asked.append((name, given)))
    (tmp_path / "mine.py").write_text(OWN_TERMS)
    mine = [str(tmp_path / name) for name in ("mine.yaml", "mine.yml")]
    for name in mine:
        Path(name).write_text("base: infonce_4th\nterms: mine\n")
    for recipe, flag in (("equal", "--lr_g"), *((name, "--lambda_mine") for name in mine)):
        assert cli.main(["train", flag, "0.2", recipe]) == 0
        assert asked.pop() == (recipe, {flag[2:]: "0.2"})
        assert cli.main(["compare", flag, "0.2", recipe, "--resume", "x"]) == 2
        assert "--resume is not for compare" in capsys.readouterr().err  # the other flag is known


# Literally, so that a flag is never added, renamed or lost by accident: scripts of users hold these names.
RECIPE_FLAGS = """
    --adv_entropy_weight --adv_reference_weight --adv_steps --anchor_group --annotations --arch --aug_strength
    --batch_size --beta --beta_final --centroid_momentum --clip_apart --compile --contrastive
    --contrastive_warmup_epochs --dataset_root --detach_reference --detr_checkpoint --device --ema --epochs
    --epsilon_decay_epochs --epsilon_final --epsilon_hold_epochs --epsilon_peak --epsilon_start
    --epsilon_warmup_epochs --f2m_weight --fresh --graph --group_csv --group_field --head --images_dir
    --images_per_epoch --jpeg --keep --lambda_adv --lambda_align --lambda_contrastive --lambda_score
    --lambda_score_gap --lambda_var --lambda_wass --log_format --log_with --lr_d --lr_g --lr_min --lr_schedule
    --lr_warmup_epochs --m2f_weight --max_norm --max_skipped --memory --no_object_weight --num_workers --optimizer
    --output_dir --precision --proj_dim --proj_dropout --queue_size --reference_group --resize --resume
    --save_minutes --save_steps --scenes --score_alpha --score_top_k --score_weighting --seed --shift --skip_bad
    --stop_on_collapse --temperature --terms --train_edges --wass_scores --weight_decay --widths
"""
FLAGS = {
    "train": RECIPE_FLAGS,
    "demo": RECIPE_FLAGS + "--recipe",
    "compare": RECIPE_FLAGS + "--seeds --jobs --ray --ablate",
    "status": "--json",
    "evaluate": """
        --absolute --anchor_group --annotations --dataset_root --detr_checkpoint --device --epsilon --group_csv
        --group_field --i_know --images_dir --jpeg --num_workers --output_dir --reference_group --resize --scenes
        --shift --skip_bad --split
    """,
    "check": """
        --anchor_group --annotations --group_csv --group_field --images_dir --json --quick --reference_group --scenes
    """,
    "audit": """
        --anchor_group --annotations --detr_checkpoint --device --group_csv --group_field --images_dir --num_workers
        --output_dir --predictions --reference_group --samples --scenes --score --skip_bad --split --generator --i_know
        --transfer
    """,
    "app": """
        --anchor_group --annotations --data --detr_checkpoint --device --generators --group_csv --group_field --host
        --images_dir --port --reference_group --runs --scenes --skip_bad
    """,
    "apply": "--detr_checkpoint --device --draw --epsilon --jpeg --out --score",
    "export": "--detr_checkpoint --epsilon --output --to --with_detector",
    "push": "--folder --private",
    "bench": "--device --json --onnx --repeats --threads",
    "recipes": "--json",
    "completion": "",
}


@pytest.mark.parametrize("name", FLAGS)
def test_the_flags_are_these(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    listed = {line.split()[0].strip(",") for line in shown.splitlines() if line.startswith("  --")}
    assert listed == set(FLAGS[name].split())
    assert set(cli.COMMANDS) == set(FLAGS)


def test_the_help_of_train_is_by_subject_with_choices_and_the_recipes_own_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "moco_4th", "--help"])
    shown = capsys.readouterr().out
    assert all(f"\n{title}:\n" in shown for title in cli.TITLES.values())
    entries = [" ".join(f"--{entry}".split()) for entry in shown.split("\n  --")[1:]]
    lines = {entry.split()[0]: entry for entry in entries}
    assert "(default: 0.07)" in lines["--temperature"]  # infonce_4th's is 0.1
    assert "{none,weak,medium,strong}" in lines["--aug_strength"]
    assert "(default: medium)" in lines["--aug_strength"]
    assert "(default: auto)" in lines["--resume"]
    assert "default" not in lines["--annotations"]
    terms, run = shown.index(cli.TITLES["objective"]), shown.index("\nthe run:")
    assert terms < shown.index("  --temperature") < run < shown.index("  --num_workers")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["demo"], {"images_per_epoch": "3072", "lr_g": "0.0025", "output_dir": "faap_outputs/demo", "seed": "0"}),
        (["demo", "--recipe", "moco_4th"], {"images_per_epoch": "960", "output_dir": "faap_outputs/demo_moco_4th"}),
        (["compare", "equal"], {"images_per_epoch": "12544", "output_dir": "faap_outputs/compare"}),
    ],
)
def test_help_shows_what_the_command_does_with_what_is_not_given(
    words: list[str], shown: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--help"])
    entries = {text.split()[0]: " ".join(text.split()) for text in capsys.readouterr().out.split("\n  --")[1:]}
    for name, value in shown.items():
        assert f"(default: {value})" in entries[name]


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_who_reads_no_further_is_no_error(word: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-P", "-m", "faap", word]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["trian"],
        ["train", "infonce_5th"],
        ["compare", "moco_4th", "infonce_5th"],
        ["recipes", "infonce_4"],
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(words: list[str]) -> None:
    code = f"import sys; from faap.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_dash_is_as_good_as_an_underscore(places: list[str], tmp_path: Path) -> None:
    out = tmp_path / "my-run"
    dashed = [word.replace("_", "-") if word.startswith("--") else word for word in [*places, *SMALL]]
    assert cli.main(["train", "infonce_4th", *dashed, f"--output-dir={out}", "--skip-bad"]) == 0
    assert (out / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "infonce_4th", "--lamda_align", "0.5"], "--lambda_align"),
        (["train", "infonce_4th", "--lamda-align=0.5"], "--lambda_align"),
        (["train", "infonce_5th"], "infonce_4th"),
        (["train", "infonce_4th", "--temperature", "warm"], "temperature"),
        (["train", "infonce_4th", "--temperature", "-1"], "temperature"),
        (["train", "infonce_4th", "--aug_strength", "wild"], "aug_strength"),
        (["train", "infonce_4th", "--dataset_root", "/nowhere"], "/nowhere"),
        (["train", "infonce_4th", "--detr_checkpoint", "/nowhere"], "/nowhere"),
        (["train", "infonce_4th", "--resume", "/nowhere/epoch_0001.pth"], "/nowhere/epoch_0001.pth"),
        (["train"], "recipe"),
        (["demo", "--recipe"], "expected one argument.\nSee faap demo --help."),
        (["evaluate", "/nowhere"], "/nowhere: does not exist"),
        (["evaluate"], "generator"),
        (["train", "infonce_4th", "--device", "gpu"], "'gpu'"),
        (["train", "infonce_4th", "--device", "cuda:99"], "CUDA devices"),
        (["train", "infonce_4th", "--train_edges", "480,large"], "train_edges"),
        (["train", "infonce_4th", "--widths", "16,wide,96"], "widths"),
        (["train", "infonce_4th", "--widths", "16,48"], "three multiples of 8"),
        (["train", "infonce_4th", "--widths", "12,48,96"], "three multiples of 8"),
        (["recipes", "infonce_4"], "infonce_4th"),
        (["compare"], "recipes"),
        (["compare", "infonce_4th", "--seeds", "0"], "--seeds"),
        (["compare", "infonce_4th", "--jobs", "two"], "--jobs"),
        (["compare", "infonce_4th", "--resume", "x.pth"], "--resume is not for compare"),
        (["compare", "infonce_4"], "infonce_4th"),
        (["compare", "wgan_7th", "--ablate"], "infonce_4th"),
        (["compare", "infonce_4th", "--sedes", "2"], "--seeds"),
        (["train", "infonce_4th", "--detach_reference", "perhaps"], "detach_reference"),
        (["trian"], "'train'"),
        (["--json", "recipes"], "--json stands before a command; flags come after it"),
        (["--quiet", "recipe"], "'recipes'"),
    ],
)
def test_mistakes_are_one_line_that_says_what_is_right(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error


def test_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {
        "contrastive_1st",
        "infonce_3rd",
        "infonce_3rd_fix2",
        "infonce_4th",
        "wgan_7th",
        "equal",
        "moco_4th",
    }
    assert cli.main(["recipes", "infonce_4th", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["temperature"] == 0.1
    assert {name: len(values) for name, values in shown["schedules"].items()} == dict.fromkeys(
        ("epsilon", "beta", "contrastive_weight", "learning_rate"), 24
    )
    assert cli.main(["recipes"]) == 0
    capsys.readouterr()
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: infonce_4th\nepochs: 3\njpeg: 50,75\noutput_dir: /data/{'x' * 80}\n")
    assert cli.main(["recipes", str(mine)]) == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    values, last = dict[str, str](), ""
    for name, value, _ in filter(None, lines):  # a cell goes on in lines without a name
        last = name or last
        values[last] = " ".join([values.get(last, ""), value]).strip()
    assert values["jpeg"] == "50,75"
    assert values["output_dir"].replace(" ", "") == f"/data/{'x' * 80}"
    assert values["contrastive_weight"] == "0.25 0.5 0.75"  # a schedule, epoch by epoch


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("faap ")


@pytest.mark.parametrize(
    ("error", "processes", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            1,
            "CUDA out of memory. Use a smaller",
        ),
        (RuntimeError("pair.cc:553: Connection reset by peer"), 2, "another process has ended"),
        (torch.distributed.DistBackendError("NCCL"), 2, "another process has ended"),
    ],
)
def test_what_the_machine_refuses_is_one_error(
    error: Exception, processes: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faap.distributed.world", lambda: processes)

    def command() -> None:
        raise error

    assert outcome(command) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    def command() -> None:
        raise RuntimeError("Connection reset by peer")  # and there is no peer

    with pytest.raises(RuntimeError):
        outcome(command)


@pytest.mark.parametrize(("words", "own_scale"), [([], True), (["--resume", "auto"], True), (["--resume", "x"], False)])
def test_a_demo_has_its_own_scale_unless_it_goes_on_from_somewhere(
    words: list[str], own_scale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def noted(name: str, overrides: dict[str, Any], *_: Any) -> Recipe:
        asked.append((name, overrides))
        return load_recipe(name, dataset_root="x", detr_checkpoint="x")

    monkeypatch.setattr(cli, "_train", noted)
    for name, folder in (("equal", "faap_outputs/demo"), ("infonce_4th", "faap_outputs/demo_infonce_4th")):
        assert cli.main(["demo", "--recipe", name, *words]) == 0
        given = asked.pop()[1]
        assert given.get("output_dir") == (folder if own_scale else None)
        assert ("images_per_epoch" in given) is own_scale


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers after these words."""
    line = " ".join(words)
    code = f'source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _faap; echo "${{COMPREPLY[@]}}"'
    return subprocess.check_output(["bash", "-c", code], text=True).split()


def test_a_shell_completes_commands_recipes_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "faap.bash"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "faap", "ev") == ["evaluate"]
    assert completed(script, "faap", "train", "infonce_3rd") == ["infonce_3rd", "infonce_3rd_fix2"]
    rates = ["--lr_d", "--lr_g", "--lr_min", "--lr_schedule", "--lr_warmup_epochs"]
    assert completed(script, "faap", "train", "--lr_") == rates
    assert completed(script, "faap", "audit", "--pre") == ["--predictions"]
    for shell, begins in (("zsh", "autoload -U +X bashcompinit"), ("fish", "complete -c faap")):
        assert cli.main(["completion", shell]) == 0
        assert capsys.readouterr().out.startswith(begins)


def test_a_variant_is_shown_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "m2f", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["m2f_weight"] > 0
    assert cli.main(["recipes"]) == 0
    assert "variants of infonce_4th: adaptive_weighting" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["recipes", "m2ff"]) == 2
    assert "Did you mean 'm2f'?" in capsys.readouterr().err


def test_quiet_prints_errors_alone_and_verbose_where_they_arose(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "infonce_4th", *places, *SMALL, f"--output_dir={tmp_path / 'run'}", "--quiet"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["--quiet", "recipes"]) == 0
    assert capsys.readouterr().out == ""

    def shown(*warned: Any) -> None:
        print(warnings.formatwarning(*warned[:4]), end="", file=sys.stderr)

    monkeypatch.setattr(warnings, "formatwarning", None)
    monkeypatch.setattr(warnings, "showwarning", shown)
    monkeypatch.setitem(cli.COMMANDS, "status", lambda *_: warnings.warn("of a file\x1b[1m", stacklevel=1))
    for words, said in (["status"], "warning: of a file\\x1b[1m\n"), (["status", "--quiet"], ""):
        assert cli.main(words) == 0
        assert capsys.readouterr().err == said
    for more, traced in (["--quiet"], False), (["--verbose"], True):
        assert cli.main(["check", "/nowhere", *more]) == 2
        said = capsys.readouterr().err
        assert "error: data set /nowhere" in said
        assert ("Traceback" in said) is traced
