"""A run folder: claiming it, what it holds, and that nothing in it is believed unseen."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from faap.config import load_recipe
from faap.errors import FaapError
from faap.runs import Run, cost_of, differences
from faap.training.monitor import keep_best

GROUP = {"AP": 0.5, "AR100": None}
ROW: dict[str, Any] = {
    "epoch": 0,
    "images": 8,
    "train": {"total": 1.0, "sim_f2f": None},
    "schedule": {"beta": 0.5},
    "validation": {"baseline": {"male": GROUP}, "perturbed": {"male": GROUP}, "gap": {"AP": 0.1, "AR": None}},
    "seconds": 1,
}


def a_run(path: Path, epochs: int) -> Run:
    run = Run(path)
    run.checkpoints.mkdir(parents=True)
    for epoch in range(epochs):
        run.checkpoint(epoch).write_text(str(epoch))
    run.write_log(ROW | {"epoch": epoch} for epoch in range(epochs))
    load_recipe("infonce_4th").save(run.config)
    return run


def test_epochs_are_counted_and_not_spelt(tmp_path: Path) -> None:
    run = a_run(tmp_path, 2)
    run.checkpoint(10_000).touch()
    (run.checkpoints / "epoch_last.pth").touch()
    assert run.epochs() == [0, 1, 10_000]
    assert run.checkpoint(10_000) == run.checkpoints / "epoch_10000.pth"
    assert Run(tmp_path / "none").epochs() == []


def test_an_earlier_run_is_moved_to_the_first_free_name(tmp_path: Path) -> None:
    for number in (1, 2):
        a_run(tmp_path / "run", number)
        with Run(tmp_path / "run").locked():
            assert Run(tmp_path / "run").move_aside() == tmp_path / f"run.{number}"
        assert Run(tmp_path / f"run.{number}").epochs() == list(range(number))
        assert not (tmp_path / "run").exists()
        with Run(tmp_path / "run").locked():
            assert Run(tmp_path / "run").move_aside() is None  # nothing was trained in it


def test_what_is_moved_aside_is_the_run_and_nothing_else(tmp_path: Path) -> None:
    """Others may be at work in a folder below, and what is no run's is somebody's."""
    run, below = a_run(tmp_path / "run", 1), a_run(tmp_path / "run" / "below", 2)
    (run.path / "mine.txt").touch()
    with below.locked():
        assert run.move_aside() == tmp_path / "run.1"
        assert below.epochs() == [0, 1]
    assert {each.name for each in run.path.iterdir()} == {"below", "mine.txt"}
    assert {each.name for each in (tmp_path / "run.1").iterdir()} == {"checkpoints", "config.yaml", "train_log.jsonl"}


def test_what_something_else_keeps_in_a_folder_makes_no_run_of_it_and_is_not_overwritten(tmp_path: Path) -> None:
    """A project's own config.yaml and results, beside which a checkpoint and a generator lie."""
    recipe, run = load_recipe("infonce_4th"), Run(tmp_path / "project")
    for place in (run.path / "weights" / "epoch_0000.pth", run.generator / "config.json"):
        place.parent.mkdir(parents=True)
        place.touch()
        for mine in ("model:\n  name: yolo\n", "epochs: 3\n"):
            run.config.write_text(mine)
            assert Run.of(place) is None
            with pytest.raises(FaapError, match=r"project/config\.yaml: .* would be overwritten; .*--output_dir"):
                run.refuse_others()
    for each in (run.metrics, run.report):
        each.write_text("mine")
    with pytest.raises(FaapError, match="would be overwritten"):
        run.refuse_others()
    assert run.move_aside() == tmp_path / "project.1"  # as where a result is written
    assert run.config.read_text() == "epochs: 3\n"
    assert Run(tmp_path / "project.1").report.read_text() == "mine"
    # a recipe alone says that a generator is of a run, and may be the person's own file
    recipe.save(run.config)
    assert Run.of(run.path / "generator") is not None
    with pytest.raises(FaapError, match="would be overwritten"):
        run.refuse_others()
    run.write_metrics({})
    run.refuse_others()  # what was kept of a training, which is moved aside
    other = Run(tmp_path / "other")
    other.generator.mkdir(parents=True)
    (other.generator / "config.json").touch()
    with pytest.raises(FaapError, match=r"other/generator/config\.json: .* would be overwritten"):
        other.refuse_others()


def test_a_page_alone_is_moved_aside(tmp_path: Path) -> None:
    run = Run(tmp_path / "pages")
    run.path.mkdir()
    run.report.write_text("mine")
    assert run.move_aside() == tmp_path / "pages.1"
    assert (tmp_path / "pages.1" / "report.html").read_text() == "mine"


def test_a_folder_that_is_a_link_stays_one(tmp_path: Path) -> None:
    a_run(tmp_path / "disk" / "run", 1)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    run = Run(tmp_path / "link")
    assert run.move_aside() == tmp_path / "disk" / "run.1"
    with run.locked():
        run.claim(load_recipe("infonce_4th"), [])
    assert (tmp_path / "link").is_symlink()
    assert run.config.is_file()


def test_what_others_keep_in_a_folder_is_not_cleared_away(tmp_path: Path) -> None:
    run = a_run(tmp_path, 1)
    theirs = [".mine.tmp", "pictures/.x.tmp", ".saving-holiday/photo.jpg", "other/checkpoints/.epoch_0003.pth.4242.tmp"]
    for name in theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    run.claim(load_recipe("infonce_4th"), run.read_log())
    assert all((tmp_path / name).exists() for name in theirs)


def test_who_may_only_read_is_told_that_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path / "run", 1)
    run.status.write_text("{}")

    @contextmanager
    def refused(self: Run) -> Iterator[None]:
        raise FaapError("read-only")
        yield

    monkeypatch.setattr(Run, "locked", refused)
    assert run.read_status()["state"] == "at work or stopped, nobody can tell: read-only"
    for path in (run.metrics, run.report):
        path.touch()
    assert run.read_status()["state"] == "finished"


def test_a_folder_in_which_somebody_is_at_work_is_refused(tmp_path: Path) -> None:
    run, place = a_run(tmp_path / "run", 1), str(tmp_path / "run")
    program = f"from faap.runs import Run\nwith Run({place!r}).locked(): print('there', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        run.status.write_text(json.dumps({"host": "box", "pid": 17}))
        said = r"run: another process is at work there \(process 17 on box\), .*--outp"
        with pytest.raises(FaapError, match=said), run.locked():
            pass
        assert run.epochs() == [0]
        other.kill()
    with run.locked():  # a lock dies with who has it
        assert run.move_aside() == tmp_path / "run.1"


def test_a_lock_leaves_no_folder_behind_in_which_nothing_came_to_be(tmp_path: Path) -> None:
    with Run(tmp_path / "new").locked():
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with Run(tmp_path / "new").locked():
        (tmp_path / "new" / "mine").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]
    with pytest.raises(FaapError), Run(tmp_path / "new").locked():  # nor does a refusal leave anything
        raise FaapError("not yours")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]


def test_a_run_that_goes_on_elsewhere_takes_its_finished_epochs_along(tmp_path: Path) -> None:
    recipe, first, second = load_recipe("infonce_4th", resume="a.pth"), a_run(tmp_path / "1", 3), Run(tmp_path / "2")
    first.readings.write_text("{}")
    rows = first.read_log()[:2]
    second.claim(recipe, rows, first)
    assert second.epochs() == [0, 1]
    assert second.read_log() == rows
    assert load_recipe(second.config).resume == "auto"
    assert second.readings.read_text() == "{}"
    assert first.epochs() == [0, 1, 2]
    (tmp_path / "x").mkdir()
    first.claim(recipe, rows[:1], Run(tmp_path / "x" / ".." / "1"))  # in its own folder nothing is copied
    assert first.read_log() == rows[:1]
    assert first.epochs() == [0, 1, 2]


def test_what_killed_processes_left_is_cleared_away(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 1)
    (run.checkpoints / ".epoch_0001.pth.77.tmp").touch()
    (run.path / ".metrics.json.77.tmp").touch()
    (run.path / "generator").mkdir()
    (run.path / "generator" / ".saving-x").mkdir()
    (run.path / "generator" / ".saving-x" / "model.safetensors").touch()
    run.claim(load_recipe("infonce_4th"), run.read_log())
    assert [path.name for path in run.path.rglob(".*")] == []
    assert run.epochs() == [0]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (
        tmp_path / "file",
        tmp_path / "file" / "below",
        Path("/proc/run"),
        tmp_path / ("n" * 300),
        Path("a\0b"),
    ):
        with (
            pytest.raises(FaapError, match=r"cannot be made or written to .*--output_dir") as caught,
            Run(place).locked(),
        ):
            pass
        assert f"output_dir {place}: " in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_said_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FaapError, match=r"No space left on device\); .*: make room, and repeat the command"):
        run.claim(load_recipe("infonce_4th"), [])
    assert [row["epoch"] for row in run.read_log()] == [0]
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_is_trained_with_a_recipe(tmp_path: Path) -> None:
    run, recipe = a_run(tmp_path, 1), load_recipe("infonce_4th")
    assert run.is_trained_with(load_recipe("infonce_4th", device="cuda", num_workers=3, output_dir="elsewhere"))
    assert not run.is_trained_with(load_recipe("infonce_4th", seed=1))
    text = run.config.read_text()
    run.config.write_text("\n".join(line for line in text.splitlines() if not line.startswith(("precision", "widths"))))
    assert run.is_trained_with(recipe)  # a run from before there were these fields
    assert differences({"name": "infonce_4th", "lr_g": 1.0}, recipe)[0] == "lr_g was 1.0, is 0.0001"
    assert not any(said.startswith("widths") for said in differences({}, recipe))
    for wrong in ("", "[", "- a", "a: {b: c}", text + "unknown: 1\n", text.replace("epochs: 24", "epochs: many"), "\0"):
        run.config.write_text(wrong)
        assert not run.is_trained_with(recipe)
    run.config.write_text(text + "terms: os\n")
    assert not run.is_trained_with(recipe)
    assert not Run(tmp_path / "none").is_trained_with(recipe)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", r"is \[\]; it should be a mapping"),
        (json.dumps(ROW | {"epoch": "1"}), "epoch: is '1'; it should be a whole number"),
        (json.dumps({"epoch": 1}), "has no entry 'images'"),
        (json.dumps(ROW | {"seconds": float("nan")}), "seconds: is nan"),
        (json.dumps(ROW | {"validation": {}}), "validation: has no entry 'baseline'"),
        (json.dumps(ROW | {"train": {"total": "x"}}), "train: total: is 'x'"),
    ],
)
def test_a_log_that_is_none_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    Run(tmp_path).log.write_text(json.dumps(ROW) + "\n\n" + text)
    with pytest.raises(FaapError, match=f"train_log.jsonl, line 3: {said}"):
        Run(tmp_path).read_log()


def test_metrics_that_are_none_are_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(FaapError, match="holds no finished training or evaluation"):
        run.read_metrics()
    for text in ("{}", "[]", "{", "\xff"):
        run.metrics.write_bytes(text.encode("latin-1"))
        with pytest.raises(FaapError, match=r"metrics.json: "):
            run.read_metrics()


def test_best_is_the_epoch_with_the_smallest_gap_that_costs_nobody(tmp_path: Path) -> None:
    run, rows = a_run(tmp_path, 5), []
    for epoch, (gap, male) in enumerate([(0.05, 0.50), (0.02, 0.51), (0.01, 0.49), (0.03, 0.52), (0.001, 0.6)]):
        aps = ({"female": 0.40, "male": 0.50}, {"female": male - gap, "male": male})
        before, after = ({group: {"AP": value, "AR100": 0.1} for group, value in each.items()} for each in aps)
        validation = {"baseline": before, "perturbed": after, "gap": {"AP": gap}}
        rows.append(ROW | {"epoch": epoch, "validation": validation})
    run.checkpoint(4).unlink()  # an epoch without a checkpoint is none to choose
    run.write_log(rows)
    assert keep_best(run)["epoch"] == 1
    assert run.best.read_text() == "1"
    run.write_log(rows[4:])
    with pytest.raises(FaapError, match=r"no epoch has both a line in train_log.jsonl and a checkpoint"):
        keep_best(run)


def test_what_a_training_took_is_told_by_what_it_left(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 3)
    assert cost_of(run.path) == {"training": {"images": 24, "seconds": 3}}
    # nothing is known of what is elsewhere, or is not there
    (tmp_path / "other").mkdir()
    assert cost_of(tmp_path / "other") == cost_of(run.path / "organisation" / "model") == {}


def test_what_cannot_be_told_from_outside_is_not_said_to_be_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path, 1)
    run.status.write_text("{}")
    assert run.read_status() == {"state": "stopped; the same command goes on"}

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", closed)
    assert "nobody can tell" in run.read_status()["state"]
    assert "Permission denied" in run.read_status()["state"]
