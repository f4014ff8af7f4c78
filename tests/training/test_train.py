import gc
import hashlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import LoggerType
from rich.console import Console
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import faap
from faap import cli
from faap.config import Recipe, load_recipe
from faap.detectors.hugging_face import HuggingFaceDetector
from faap.errors import FaapError
from faap.evaluation import best_epoch
from faap.objectives.term import STATISTICS
from faap.promenade import build_promenade
from faap.report.words import number as words_number
from faap.runs import Run, differences
from faap.training import Trainer, TrainResult, recipe_to_resume, train
from faap.training.monitor import Monitor, trackers_of
from faap.training.stopping import Stop
from same import assert_same

QUIET = Console(quiet=True)


def small(data: Path, detector: Path, output_dir: Path) -> Recipe:
    return load_recipe(
        "infonce_4th",
        dataset_root=str(data),
        detr_checkpoint=str(detector),
        output_dir=str(output_dir),
        device="cpu",
        epochs=3,
        batch_size=4,
        images_per_epoch=8,
        lr_g=1e-3,
    )


@pytest.fixture
def recipe(tiny_promenade: Path, tiny_detector: Path, tmp_path: Path) -> Recipe:
    return small(tiny_promenade, tiny_detector, tmp_path / "run")


@pytest.fixture
def places(tiny_promenade: Path, tiny_detector: Path) -> dict[str, Any]:
    return {"dataset_root": tiny_promenade, "detr_checkpoint": tiny_detector, "device": "cpu"}


@pytest.fixture(scope="module")
def finished(tiny_promenade: Path, tiny_detector: Path, tmp_path_factory: pytest.TempPathFactory) -> faap.TrainResult:
    """One uninterrupted run that several tests look at."""
    return train(small(tiny_promenade, tiny_detector, tmp_path_factory.mktemp("finished") / "run"), console=QUIET)


def contents(run_dir: Path, epoch: int) -> dict[str, Any]:
    return dict(torch.load(run_dir / "checkpoints" / f"epoch_{epoch:04d}.pth", weights_only=True))


def undated(metrics: dict[str, Any]) -> dict[str, Any]:
    return metrics | {"provenance": metrics["provenance"] | {"date": None}}


def assert_same_training(first: Path, second: Path, epoch: int) -> None:
    for key in ("generator", "objective", "optimizer"):
        assert_same(contents(first, epoch)[key], contents(second, epoch)[key])


def test_resumed_run_is_the_uninterrupted_one(finished: faap.TrainResult, recipe: Recipe) -> None:
    first = str(finished.run_dir / "checkpoints" / "epoch_0000.pth")
    result = train(replace(recipe, resume=first), console=QUIET)
    assert_same_training(finished.run_dir, result.run_dir, 2)
    logs = [
        [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
        for run in (finished.run_dir, result.run_dir)
    ]
    for row in logs[0] + logs[1]:
        del row["seconds"]
    assert logs[0] == logs[1]
    assert result.metrics["perturbed"] == finished.metrics["perturbed"]
    events = EventAccumulator(str(Run(result.run_dir).events)).Reload()
    assert [each.step for each in events.Scalars("step/total")] == [0, 1, 2, 3, 4, 5]


def test_workers_change_nothing(finished: faap.TrainResult, recipe: Recipe) -> None:
    result = train(replace(recipe, num_workers=2), console=QUIET)
    assert_same_training(finished.run_dir, result.run_dir, 2)


def test_training_moves_generator_and_head(finished: faap.TrainResult) -> None:
    for part in ("generator", "objective"):
        first, last = (contents(finished.run_dir, epoch)[part] for epoch in (0, 2))
        assert all(
            not torch.equal(first[key], last[key]) for key in first if key.endswith("weight") and first[key].ndim > 1
        )


def test_what_is_logged_beside_the_losses_is_what_no_term_may_be_called(finished: faap.TrainResult) -> None:
    row = Run(finished.run_dir).read_log()[0]
    assert {*row["train"]} - {*row["losses"]} | {"total"} == {*STATISTICS}


def test_run_directory(finished: faap.TrainResult) -> None:
    run = finished.run_dir
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "epoch_0000.pth",
        "epoch_0001.pth",
        "epoch_0002.pth",
        "best.pth",
    }
    for name in ("config.yaml", "train_log.jsonl", "metrics.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert list((run / "tensorboard").glob("events*"))
    assert load_recipe(run / "config.yaml").epochs == 3
    assert json.loads((run / "metrics.json").read_text()) == finished.metrics
    pixels = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 0.5
    outputs = [
        faap.load_generator(place).eval().perturb(pixels)
        for place in (run, run / "generator", run / "checkpoints" / "best.pth")
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_log_has_what_is_monitored(finished: faap.TrainResult) -> None:
    rows = [json.loads(line) for line in (finished.run_dir / "train_log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert set(rows[0]["train"]) == {
        "total", "infonce", "alignment", "wasserstein", "detection", "sim_f2m", "sim_f2f", "score_gap",
        "delta_linf", "delta_l2", "gradient_norm", "n_f", "n_m",
    }  # fmt: skip
    schedules = load_recipe("infonce_4th", epochs=3, lr_g=1e-3).schedules()
    for row in rows:
        assert row["schedule"] == {name: values[row["epoch"]] for name, values in schedules.items()}
        assert row["train"]["delta_linf"] <= row["schedule"]["epsilon"] + 1e-6
        assert row["images"] == 8
        assert (row["train"]["n_f"], row["train"]["n_m"]) == (2, 2)


def test_total_is_the_weighted_sum(finished: faap.TrainResult) -> None:
    recipe = load_recipe("infonce_4th")
    for line in (finished.run_dir / "train_log.jsonl").read_text().splitlines():
        train, schedule = json.loads(line)["train"], json.loads(line)["schedule"]
        expected = (
            schedule["contrastive_weight"] * train["infonce"]
            + recipe.lambda_align * train["alignment"]
            + recipe.lambda_wass * train["wasserstein"]
            + schedule["beta"] * train["detection"]
        )
        assert train["total"] == pytest.approx(expected, rel=1e-5)


def test_test_split_is_read_once_at_the_end(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    story, seen = sys.modules[TrainResult.__module__], []
    real: Callable[..., Any] = story.measure

    def spy(detect: Callable[..., Any]) -> Callable[..., Any]:
        def spying(detector: Any, split: Any, *rest: Any, **named: Any) -> Any:
            seen.append(split.name)
            return detect(detector, split, *rest, **named)

        return spying

    def spy_measure(*rest: Any, **named: Any) -> Any:
        seen.append("measure test")
        return real(*rest, **named)

    for name in ("detect", "detect_baseline"):
        monkeypatch.setattr(story, name, spy(getattr(story, name)))
    monkeypatch.setattr(story, "measure", spy_measure)
    train(replace(recipe, epochs=2), console=QUIET)
    # the baseline on validation once, then each epoch; test only afterwards
    assert seen == ["val", "val", "val", "measure test"]


def test_detector_file_and_callers_randomness_are_untouched(recipe: Recipe, tiny_detector: Path) -> None:
    weights = tiny_detector / "model.safetensors"
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    result = train(replace(recipe, epochs=1), console=QUIET)
    assert torch.equal(torch.rand(4), expected)
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before
    assert result.metrics["detector_sha256"] == faap.load_detector(tiny_detector).tensors_sha256()


def test_a_detector_that_changes_is_noticed(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trainer.step

    def meddles(self: Any, *rest: Any) -> Any:
        next(self.detector.parameters()).data[0] += 1e-7
        return real(self, *rest)

    monkeypatch.setattr(Trainer, "step", meddles)
    with pytest.raises(FaapError, match=r"frozen detector .* has changed while it was used"):
        train(replace(recipe, epochs=1), console=QUIET)
    assert not Run(recipe.output_dir).metrics.exists()


def test_resume_takes_the_checkpoints_settings(finished: faap.TrainResult) -> None:
    path = finished.run_dir / "checkpoints" / "epoch_0001.pth"
    recipe = recipe_to_resume(path, "infonce_4th", {"resume": str(path), "device": "cpu"})
    assert (recipe.epochs, recipe.lr_g, recipe.images_per_epoch) == (3, 1e-3, 8)
    assert recipe_to_resume(path, "infonce_4th", {"resume": str(path), "lr_g": 5e-4}).lr_g == 5e-4


def test_resume_errors(finished: faap.TrainResult, recipe: Recipe, tmp_path: Path, tiny_detector: Path) -> None:
    good = finished.run_dir / "checkpoints" / "epoch_0001.pth"
    with pytest.raises(FaapError, match=r"none\.pth: No such file"):
        train(replace(recipe, resume=str(tmp_path / "none.pth")), console=QUIET)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(FaapError, match="may be truncated"):
        train(replace(recipe, resume=str(broken)), console=QUIET)
    other = tmp_path / "other.pth"
    torch.save({"weights": torch.zeros(1)}, other)
    with pytest.raises(FaapError, match="not a checkpoint of faap"):
        train(replace(recipe, resume=str(other)), console=QUIET)
    elsewhere = shutil.copytree(tiny_detector, tmp_path / "detector")
    weights = load_file(elsewhere / "model.safetensors")
    weights["class_labels_classifier.bias"] += 1
    save_file(weights, elsewhere / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FaapError, match="another detector"):
        train(replace(recipe, resume=str(good), detr_checkpoint=str(elsewhere)), console=QUIET)
    other_data = build_promenade(tmp_path, {"train": 5, "val": 3, "test": 4})
    with pytest.raises(FaapError, match="trained on other data"):
        train(replace(recipe, resume=str(good), dataset_root=str(other_data)), console=QUIET)


def test_without_an_output_folder_a_run_goes_on_where_it_was(finished: faap.TrainResult, tmp_path: Path) -> None:
    run = shutil.copytree(finished.run_dir, tmp_path / "moved")
    path = run / "checkpoints" / "epoch_0000.pth"
    recipe = recipe_to_resume(path, "infonce_4th", {"resume": str(path), "device": "cpu"})
    result = train(recipe, console=QUIET)
    assert result.run_dir.resolve() == run.resolve()
    assert_same_training(finished.run_dir, run, 2)
    assert undated(result.metrics) == undated(finished.metrics)


def test_resuming_the_last_epoch_measures_again(finished: faap.TrainResult, recipe: Recipe, tmp_path: Path) -> None:
    run = shutil.copytree(finished.run_dir, tmp_path / "copy")
    (run / "checkpoints" / "best.pth").unlink()
    last = str(run / "checkpoints" / "epoch_0002.pth")
    result = train(replace(recipe, output_dir=str(tmp_path / "other"), resume=last), console=QUIET)
    assert undated(result.metrics) == undated(finished.metrics)
    assert result.epoch == finished.epoch


def test_resuming_a_lone_checkpoint_with_nothing_left_says_so(
    finished: faap.TrainResult, recipe: Recipe, tmp_path: Path
) -> None:
    lone = tmp_path / "lone.pth"
    shutil.copy(finished.run_dir / "checkpoints" / "epoch_0002.pth", lone)
    with pytest.raises(FaapError, match="nothing to measure"):
        train(replace(recipe, resume=str(lone)), console=QUIET)


def test_a_broken_image_is_named_by_workers_too(recipe: Recipe, tiny_promenade: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_promenade, tmp_path / "data")
    for image in (root / "women_split" / "train").iterdir():
        image.write_bytes(image.read_bytes()[:1500])  # the header is whole
    with pytest.raises(FaapError) as caught:
        train(replace(recipe, dataset_root=str(root), num_workers=2), console=QUIET)
    message = str(caught.value)
    del caught  # its frames keep the loader's workers
    gc.collect()
    assert str(root / "women_split" / "train") in message
    assert "\n" not in message


def test_a_test_split_too_small_for_errors_is_found_before_training(recipe: Recipe, tmp_path: Path) -> None:
    root = build_promenade(tmp_path, {"train": 4, "val": 2, "test": 1})
    with pytest.raises(FaapError, match="single image or scene"):
        train(replace(recipe, dataset_root=str(root)), console=QUIET)
    assert not Path(recipe.output_dir).exists()


def test_a_detector_of_other_normalisation_gets_its_own_units(
    recipe: Recipe, tmp_path: Path, tiny, save, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save(tiny("conditional_softmax"), tmp_path / "detector")
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    steps, deployed = [], []
    forward = HuggingFaceDetector.forward

    def seen(self, pixel_values, pixel_mask=None):
        if pixel_mask is None:  # the look that loading takes
            return forward(self, pixel_values)
        pixels = pixel_values.detach() * std + mean
        (steps if torch.is_grad_enabled() else deployed).append(pixels.movedim(1, -1)[pixel_mask])
        assert (pixel_values.movedim(1, -1)[~pixel_mask] == 0).all()
        return forward(self, pixel_values, pixel_mask)

    monkeypatch.setattr(HuggingFaceDetector, "forward", seen)
    train(replace(recipe, detr_checkpoint=str(other), epochs=1), console=QUIET)
    assert len(steps) == 2
    for pixels in steps + deployed:
        assert -1e-5 < pixels.min() < 0.1
        assert 0.9 < pixels.max() < 1 + 1e-5
    for pixels in deployed:
        torch.testing.assert_close(pixels * 255, (pixels * 255).round(), rtol=0, atol=1e-3)


def test_batches_without_a_pair_of_women_leave_a_hole_in_the_log(recipe: Recipe) -> None:
    result = train(replace(recipe, epochs=1, batch_size=2, images_per_epoch=4), console=QUIET)
    row = json.loads((result.run_dir / "train_log.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row["train"]["sim_f2f"] is None
    assert row["train"]["infonce"] == 0
    assert row["train"]["total"] > 0


def test_a_compiled_detector_trains_the_same(
    recipe: Recipe, finished: faap.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        made.append(torch.is_grad_enabled())
        return graph.forward

    # Inductor itself would take a minute for each shape, and tracing takes its time for each; the test split brings one
    monkeypatch.setattr(sys.modules[TrainResult.__module__], "measure", lambda *_, **__: {})
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    result = train(replace(recipe, compile=True, epochs=1), console=QUIET)
    assert set(made) == {True, False}  # in training, and in evaluation
    rows = [
        json.loads((run / "train_log.jsonl").read_text().splitlines()[0]) for run in (result.run_dir, finished.run_dir)
    ]
    assert rows[0]["train"] == pytest.approx(rows[1]["train"], rel=1e-4)
    assert rows[0]["validation"]["perturbed"] == rows[1]["validation"]["perturbed"]


def test_a_detector_that_cannot_be_compiled(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise RuntimeError("no compiler")

    # the backend comes after the whole network is traced, which takes its time
    forward = HuggingFaceDetector.forward
    monkeypatch.setattr(
        HuggingFaceDetector,
        "forward",
        lambda self, pixels, mask=None: pixels + 1 if mask is not None else forward(self, pixels),
    )
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    with pytest.raises(FaapError, match=r"cannot be compiled here: .*no compiler\nTrain without --compile\.$"):
        train(replace(recipe, compile=True), console=QUIET)


def test_precision_is_said_to_faap(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(
        FaapError, match=r"accelerate .* precision fp16, and the recipe's is no: say it with --precision"
    ):
        train(recipe, console=QUIET)


def test_a_generator_that_cannot_be_measured_beside_is_said_before_the_training(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "early"
    with pytest.raises(FaapError, match="nowhere"):
        train(replace(recipe, output_dir=str(run)), beside=[str(tmp_path / "nowhere.pth")], console=QUIET)
    assert not run.exists()


# a folder in which something lies


def said_by(recipe: Recipe) -> tuple[TrainResult, str]:
    console = Console(file=io.StringIO(), width=300)
    result = train(recipe, console=console)
    return result, console.file.getvalue()


def assert_as_uninterrupted(finished: TrainResult, result: TrainResult) -> None:
    """The same generator, log and metrics, but for seconds and date."""
    rows = [Run(each.run_dir).read_log() for each in (finished, result)]
    assert [{**row, "seconds": 0} for row in rows[1]] == [{**row, "seconds": 0} for row in rows[0]]
    assert undated(result.metrics) == undated(finished.metrics)
    weights = [(each.run_dir / "generator" / "model.safetensors").read_bytes() for each in (finished, result)]
    assert weights[0] == weights[1]


@pytest.fixture
def copied(finished: TrainResult, recipe: Recipe) -> Callable[..., Run]:
    """The finished run, in the recipe's folder, as it was after some epochs."""

    def copy(epochs: int) -> Run:
        run = Run(shutil.copytree(finished.run_dir, recipe.output_dir))
        for path in (run.metrics, run.report, *(run.checkpoint(epoch) for epoch in range(epochs, 3))):
            path.unlink()
        return run

    return copy


def test_the_same_command_goes_on(finished: TrainResult, recipe: Recipe, copied: Callable[..., Run]) -> None:
    copied(1)
    result, said = said_by(recipe)
    assert "goes on at epoch 1." in said
    assert_as_uninterrupted(finished, result)
    again, said = said_by(recipe)
    assert "holds this training, finished; --fresh starts anew" in said
    assert (again.metrics, again.epoch, again.run_dir) == (result.metrics, result.epoch, result.run_dir)


def test_a_checkpoint_without_its_line_of_the_log_is_enough(
    finished: TrainResult, recipe: Recipe, copied: Callable[..., Run]
) -> None:
    run = copied(2)
    run.write_log(run.read_log()[:1])
    run.best.unlink()
    assert_as_uninterrupted(finished, said_by(recipe)[0])


def test_a_damaged_state_is_left_out_and_the_one_before_taken(
    finished: TrainResult, recipe: Recipe, copied: Callable[..., Run]
) -> None:
    run = copied(3)
    content = bytearray(run.checkpoint(2).read_bytes())
    content[len(content) // 2] ^= 4
    run.checkpoint(2).write_bytes(content)
    run.checkpoint(1).write_bytes(run.checkpoint(1).read_bytes()[:-100])
    run.within.write_bytes(b"")
    result, said = said_by(recipe)
    assert "epoch_0002.pth: is not as it was written (its digest is wrong): damaged" in said
    assert "epoch_0001.pth: cannot be read as a checkpoint; it may be truncated" in said
    assert "within.pth: cannot be read" in said
    assert "goes on at epoch 1." in said
    assert_as_uninterrupted(finished, result)


def test_another_recipe_in_the_folder_is_refused_by_its_fields_or_moved_aside(
    finished: TrainResult, recipe: Recipe, copied: Callable[..., Run]
) -> None:
    run = copied(2)
    before = sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*.pth"))
    with pytest.raises(FaapError, match=r"other settings: lr_g was 0.001, is 0.002; go on with --resume .* --fresh"):
        train(replace(recipe, lr_g=2e-3), console=QUIET)
    assert sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*.pth")) == before
    result, said = said_by(replace(recipe, lr_g=2e-3, fresh=True))
    assert f"it is now {run.path}.1" in said
    assert Run(f"{run.path}.1").epochs() == [0, 1]
    assert result.metrics["provenance"]["generator"]["sha256"] != finished.metrics["provenance"]["generator"]["sha256"]
    assert load_recipe(run.config).fresh is False


def test_a_run_folder_can_be_resumed_elsewhere(
    finished: TrainResult, recipe: Recipe, copied: Callable[..., Run], tmp_path: Path
) -> None:
    run = copied(2)
    given = recipe_to_resume(run.path, "infonce_4th", {"resume": str(run.path), "device": "cpu"})
    assert given.lr_g == 1e-3
    result, _ = said_by(replace(given, output_dir=str(tmp_path / "elsewhere")))
    assert_as_uninterrupted(finished, result)
    assert run.epochs() == [0, 1]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert recipe_to_resume(run.checkpoints, "infonce_4th", {"device": "cpu"}).lr_g == 1e-3
    with pytest.raises(FaapError, match="empty: no checkpoint there can be read"):
        recipe_to_resume(empty, "infonce_4th", {})
    with pytest.raises(FaapError, match="empty: no checkpoint there can be read"):
        train(replace(recipe, resume=str(empty)), console=QUIET)


def test_a_folder_at_work_is_refused(recipe: Recipe) -> None:
    with Run(recipe.output_dir).locked(), pytest.raises(FaapError, match="another process is at work there"):
        train(recipe, console=QUIET)


def test_only_the_newest_epochs_are_kept_beside_the_best(finished: TrainResult, recipe: Recipe) -> None:
    result = train(replace(recipe, keep=1), console=QUIET)
    run = Run(result.run_dir)
    assert run.epochs() == sorted({finished.epoch, 2})
    assert_as_uninterrupted(finished, result)
    # what the command names to go on from stays, so that it can be repeated
    named = run.checkpoint(next(epoch for epoch in (0, 1) if epoch != finished.epoch))
    for epoch in (0, 1):
        shutil.copy(Run(finished.run_dir).checkpoint(epoch), run.checkpoint(epoch))
    for each in (run.checkpoint(2), run.metrics):
        each.unlink()
    for _ in range(2):
        train(replace(recipe, keep=1, resume=str(named)), console=QUIET)
        assert named.exists()
        assert 2 in run.epochs()


def test_an_epochs_lines_are_words_of_eighty_columns(recipe: Recipe) -> None:
    console = Console(file=io.StringIO(), width=80)
    run = Run(train(replace(recipe, epochs=1), console=console).run_dir)
    (row,), lines = run.read_log(), console.file.getvalue().splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("epoch 0 of 0 to 0  validation AP gap")]
    assert max(map(len, lines[first:])) <= 80
    words = " ".join(" ".join(lines[first:]).split())
    for name, value in row["train"].items():
        assert value is None or f"{name} {words_number(value)}" in words
    assert f"learning_rate {row['schedule']['learning_rate']:.4g}" in words


def test_standard_output_can_be_the_log_and_nothing_else(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(recipe.output_dir)
    given = ("dataset_root", "detr_checkpoint", "output_dir", "device", "batch_size", "images_per_epoch")
    flags = [f"--{name}={getattr(recipe, name)}" for name in given]
    assert cli.main(["train", recipe.name, *flags, "--epochs=1", "--log_format=json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == run.read_log()
    assert str(run.report) in printed.err
    assert "run directory" in printed.err


class Tracked:
    """A tracker that remembers what it is told."""

    name, requires_logging_directory = "tracked", False

    def __init__(self, project: str) -> None:
        self.project, self.told, self.pictures, self.finished = project, list[tuple[int, Any]](), [], False

    def start(self) -> None:
        seen.append(self)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        get_logger(__name__).debug("as wandb's does")
        self.settings = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.told.append((step, values))

    def log_images(self, images: dict[str, Any], step: int) -> None:
        self.pictures.append((step, images))

    def finish(self) -> None:
        self.finished = True


seen: list[Tracked] = []


def test_trackers_are_told_of_steps_epochs_settings_and_pictures(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tracked", Tracked)
    seen.clear()
    PartialState._reset_state()  # as it is before any of accelerate's is used
    recipe = replace(recipe, epochs=2, log_with="tracked,tensorboard")
    run = Run(train(recipe, console=QUIET).run_dir)
    (tracked,) = seen
    assert tracked.finished
    assert tracked.project == "faap"
    assert tracked.settings == recipe.to_dict()
    steps = [step for step, _ in tracked.told]
    assert steps == sorted(steps)
    assert [step for step, values in tracked.told if "step/total" in values] == [0, 1, 2, 3]
    epochs = {step: values for step, values in tracked.told if "train/total" in values}
    assert list(epochs) == [1, 3]
    for row, values in zip(run.read_log(), epochs.values(), strict=True):
        assert values["train/total"] == row["train"]["total"]
        assert values["validation/female/AP"] == row["validation"]["perturbed"]["female"]["AP"]
    assert [(step, {name: image.shape for name, image in images.items()}) for step, images in tracked.pictures] == [
        (step, dict.fromkeys(("female", "male"), (1, 128, 160, 3))) for step in (1, 3)
    ]
    events = EventAccumulator(str(run.events)).Reload()
    assert {"step/total", "validation/gap/AP", "schedule/epsilon"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"female", "male"}
    assert "recipe/text_summary" in events.Tags()["tensors"]


def test_what_tensorboard_has_is_that_of_an_uninterrupted_training(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in its first epoch, of which no state was kept, and then right after the second one's was."""
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "epoch", None)
        with pytest.raises(TypeError):
            train(recipe, console=QUIET)
    killed_after(recipe, 1, monkeypatch)
    train(recipe, console=QUIET)
    events = EventAccumulator(str(Run(recipe.output_dir).events)).Reload()
    assert [each.step for each in events.Scalars("step/total")] == [0, 1, 2, 3, 4, 5]
    assert [each.step for each in events.Scalars("validation/gap/AP")] == [1, 3, 5]
    assert [each.step for each in events.Images("female")] == [1, 5]  # it was ended before those of the second


def test_what_cannot_track_is_said(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = replace(recipe, dataset_root="/nowhere")  # it is said before data and detector are loaded
    with pytest.raises(FaapError, match=r"log_with is 'wandbb'; .* Did you mean 'wandb'\?"):
        train(replace(nowhere, log_with="wandbb"), console=QUIET)
    with monkeypatch.context() as patched:
        patched.setattr("faap.training.monitor.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
        with pytest.raises(FaapError, match=r"log_with: wandb is not installed here \(pip install wandb\)"):
            train(replace(nowhere, log_with="tensorboard,wandb"), console=QUIET)

    class Offline(Tracked):
        def start(self) -> None:
            raise RuntimeError("nobody is logged in")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "offline", Offline)
    with pytest.raises(FaapError, match="log_with: offline cannot be started: nobody is logged in"):
        train(replace(recipe, log_with="offline"), console=QUIET)
    assert trackers_of(replace(recipe, log_with="tensorboard, ")) == ["tensorboard"]
    assert train(replace(recipe, epochs=1, log_with=""), console=QUIET).epoch == 0
    assert not Run(recipe.output_dir).events.exists()


def test_the_report_says_how_many_steps_were_left_out(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trainer.epoch
    left_out: Any = {"skipped": [{"step": 1, "images": ["a"]}, {"step": 3, "images": ["b"]}]}
    monkeypatch.setattr(Trainer, "epoch", lambda *rest: real(*rest) | left_out)
    result = train(replace(recipe, epochs=2), console=QUIET)
    said = "Steps that the training left out, as their numbers were not finite: 4."
    assert said in result.metrics["warnings"]
    assert said in Run(result.run_dir).report.read_text()


@pytest.mark.parametrize("where", ["step", "validation", "measuring"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_told_to_stop_goes_on_as_if_it_had_not_been(
    where: str, signum: signal.Signals, finished: TrainResult, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    story, count = sys.modules[TrainResult.__module__], [0]

    def then(function: Callable[..., Any], number: int) -> Callable[..., Any]:
        def asking(*rest: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signum)
            return function(*rest, **named)

        return asking

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    if where == "step":
        monkeypatch.setattr(Trainer, "step", then(Trainer.step, 3))  # the first of the second epoch
    else:
        name = "detect" if where == "validation" else "measure"
        monkeypatch.setattr(story, name, then(getattr(story, name), 2 if where == "validation" else 1))
    with pytest.raises(Stop) as stopped:
        train(recipe, console=QUIET)
    assert stopped.value.signum == signum
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    monkeypatch.undo()
    run = Run(recipe.output_dir)
    assert run.epochs() == ([0, 1, 2] if where == "measuring" else [0])
    assert run.within.exists() is (where != "measuring")
    assert run.read_status()["newest_state"] == ("epoch_0002.pth" if where == "measuring" else "within.pth")
    result, said = said_by(recipe)
    place = {"step": "epoch 1, step 1.", "validation": "epoch 1, step 2.", "measuring": "nothing left to train"}[where]
    assert place in said
    assert_as_uninterrupted(finished, result)
    assert not run.within.exists()


def test_how_far_it_is_can_be_seen_from_outside(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("faap.training.monitor.STATUS_SECONDS", 0)
    real = Trainer.step

    def looking(self: Any, *rest: Any) -> Any:
        seen.append(Run(recipe.output_dir).read_status())
        return real(self, *rest)

    monkeypatch.setattr(Trainer, "step", looking)
    train(recipe, console=QUIET)
    assert [(each["epoch"], each["step"]) for each in seen] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert {each["state"] for each in seen} == {"at work"}
    assert [each["newest_state"] for each in seen[::2]] == ["none yet", "epoch_0000.pth", "epoch_0001.pth"]
    assert seen[-1]["pid"] == os.getpid()
    assert seen[-1]["memory_gib"] > 0
    assert seen[-1]["seconds_left"] >= 0
    assert (seen[-1]["epochs"], seen[-1]["steps"], seen[-1]["recipe"]) == (3, 2, "infonce_4th")
    assert cli.main(["status", recipe.output_dir]) == 0
    assert "state: finished" in capsys.readouterr().out
    Run(recipe.output_dir).metrics.unlink()
    assert cli.main(["status", recipe.output_dir, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "stopped; the same command goes on"
    assert cli.main(["status", str(Path(recipe.output_dir).parent)]) == 2
    assert "no training lies there" in capsys.readouterr().err


# what lies in a folder is of one training


def killed_after(recipe: Recipe, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and end right after an epoch was kept, as if killed."""
    real = Monitor.epoch

    def last(self: Monitor, row: dict[str, Any], state: Any) -> None:
        real(self, row, state)
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "epoch", last)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, console=QUIET)


def resumed(place: Path, **typed: Any) -> Recipe:
    return recipe_to_resume(place, "infonce_4th", {"resume": str(place), "device": "cpu", **typed})


def test_going_on_from_an_earlier_epoch_does_not_mix_two_trainings(
    finished: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own folder holds later epochs, with which a lower rate has nothing to do."""
    run = Run(shutil.copytree(finished.run_dir, tmp_path / "run"))
    again = replace(resumed(run.checkpoint(0), lr_g=1e-4), output_dir=str(run.path))
    killed_after(again, 1, monkeypatch)
    assert run.epochs() == [0, 1]
    assert not run.metrics.exists()
    assert run.read_status()["state"].startswith("stopped")
    assert Run(tmp_path / "run.1").read_metrics() == finished.metrics
    assert Run(tmp_path / "run.1").epochs() == [0, 1, 2]
    # the same command goes on, and so does one with the folder
    result, said = said_by(again)
    assert "run/checkpoints/epoch_0001.pth: goes on at epoch 2" in said
    assert [row["epoch"] for row in Run(result.run_dir).read_log()] == [0, 1, 2]
    straight = replace(
        resumed(finished.run_dir / "checkpoints" / "epoch_0000.pth", lr_g=1e-4), output_dir=str(tmp_path / "b")
    )
    other = train(straight, console=QUIET)
    assert_same_training(other.run_dir, result.run_dir, 2)
    assert not (tmp_path / "run.2").exists()


def test_a_training_that_is_to_be_longer_is_not_finished_by_its_old_result(
    finished: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(shutil.copytree(finished.run_dir, tmp_path / "run"))
    longer = replace(resumed(run.path, epochs=5), output_dir=str(run.path))
    killed_after(longer, 3, monkeypatch)
    assert run.read_status()["state"].startswith("stopped")
    assert Run(tmp_path / "run.1").read_metrics() == finished.metrics
    result = train(replace(longer, resume=""), console=QUIET)
    assert len(Run(result.run_dir).read_log()) == 5
    events = EventAccumulator(str(run.events)).Reload()
    assert [each.step for each in events.Scalars("validation/gap/AP")] == [1, 3, 5, 7, 9]
    # a result beside a log that is shorter is no end, however it came there
    run.write_log(run.read_log()[:4])
    run.checkpoint(4).unlink()
    assert "goes on at epoch 4" in said_by(replace(longer, resume=""))[1]


def test_a_training_cannot_be_made_shorter_than_it_is(finished: TrainResult, recipe: Recipe) -> None:
    shorter = replace(resumed(finished.run_dir, epochs=2), output_dir=recipe.output_dir)
    with pytest.raises(FaapError, match=r"epoch_0002\.pth: is later than the 2 epochs that are asked for; .*--epochs"):
        train(shorter, console=QUIET)
    assert not Path(recipe.output_dir).exists()


def test_a_command_with_a_place_to_resume_from_can_be_repeated(
    finished: TrainResult, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = replace(recipe, resume=str(finished.run_dir / "checkpoints" / "epoch_0000.pth"))
    killed_after(command, 1, monkeypatch)
    result, said = said_by(command)
    assert "run/checkpoints/epoch_0001.pth: goes on at epoch 2" in said
    assert_same_training(finished.run_dir, result.run_dir, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_epoch_that_is_told_is_the_generators(finished: TrainResult, recipe: Recipe, tmp_path: Path) -> None:
    """Where few checkpoints are kept, the choice is among those; page, comparison and repetition say which it was."""
    run = Run(shutil.copytree(finished.run_dir, tmp_path / "run"))
    log = run.read_log()
    other = next(epoch for epoch in range(3) if epoch != best_epoch(log))
    shutil.copy(run.checkpoint(other), run.best)
    assert run.chosen(log) == other
    assert train(replace(recipe, output_dir=str(run.path)), console=QUIET).epoch == other
    run.best.write_bytes(b"")
    assert run.chosen(log) == best_epoch(log)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_finished_training_is_one_of_the_same_data(
    split: str, finished: TrainResult, recipe: Recipe, tiny_promenade: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_promenade, tmp_path / "data")
    recipe = replace(recipe, dataset_root=str(data))
    shutil.copytree(finished.run_dir, recipe.output_dir)
    replace(recipe, resume="auto").save(Run(recipe.output_dir).config)
    assert "holds this training, finished" in said_by(recipe)[1]
    place = data / "women_split" / f"gender_women_{split}.json"
    content = json.loads(place.read_text())
    for entry in content["annotations"]:
        entry["bbox"][2] -= 1
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    place.write_text(json.dumps(content))
    if split == "train":
        with pytest.raises(FaapError, match="trained on other data"):
            train(recipe, console=QUIET)
    else:
        result, said = said_by(recipe)
        assert "was measured on other test images. It is measured again" in said
        assert result.metrics["provenance"]["split_sha256"] != finished.metrics["provenance"]["split_sha256"]


def test_trainings_in_two_threads_do_not_disturb_each_other(
    finished: TrainResult, recipe: Recipe, tmp_path: Path
) -> None:
    one, other = (replace(recipe, output_dir=str(tmp_path / name)) for name in "ab")
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(partial(train, console=QUIET), (one, other)))
    for result in results:
        assert_same_training(finished.run_dir, result.run_dir, 2)


def test_a_place_may_be_written_in_several_ways(
    recipe: Recipe, tiny_promenade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_promenade.parent)
    near = replace(recipe, dataset_root=tiny_promenade.name)
    assert differences(recipe.to_dict(), near, "run") == []
    assert differences(recipe.to_dict(), replace(recipe, dataset_root="other"), "run")


def test_gradients_that_the_caller_has_switched_off_are_on_in_a_training(recipe: Recipe) -> None:
    few = replace(recipe, epochs=1, images_per_epoch=4)
    with torch.no_grad(), torch.inference_mode():
        assert faap.train(few).epoch == 0
        assert torch.is_inference_mode_enabled()


def test_autocast_around_a_training_is_refused(recipe: Recipe) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(FaapError, match="autocast; call it outside"):
        faap.train(recipe)
