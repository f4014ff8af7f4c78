"""One run folder: what its files are called, what they hold, and which epochs are in it."""

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faap.conform import conform
from faap.errors import FaapError
from faap.files import atomic_write, read_json, read_tensors, read_text, reading, write_text
from faap.recipes import read

if TYPE_CHECKING:
    from faap.config import Recipe

_NUMBER = (float, None)
_GROUPS = {str: {"AP": _NUMBER, "AR100": _NUMBER}}
# a line of the log
ROW: dict[str, Any] = {"epoch": int, "images": int, "seconds": float, "schedule": {str: float}, "losses?": [str]}
ROW |= {"train": {str: _NUMBER}, "validation": {"baseline": _GROUPS, "perturbed": _GROUPS, "gap": {"AP": _NUMBER}}}
ROW["validation"] |= {"errors?": {str: _NUMBER}}
ROW |= {"skipped?": [{"step": int, "images": [str]}]}
# a line of what says when which generator was measured on which images
READING = dict.fromkeys(("date", "split", "split_sha256", "generator_sha256"), str)


# of a recipe's `resume`: what lies in its own folder
AUTO = ("", "auto")


class AtWork(FaapError):
    """Another process is at work in a folder."""


class Run:
    """A folder that a training or an evaluation writes, finished or not.

    Attributes:
        path: the folder; it need not exist.
        config, log, metrics, report, events, generator, checkpoints, best, within, readings, lock, status: paths of
            what it holds; `within` is a state within an epoch.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.log = self.path / "train_log.jsonl"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"
        self.events = self.path / "tensorboard"
        self.generator = self.path / "generator"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.pth"
        self.within = self.checkpoints / "within.pth"
        self.lock = self.path / ".lock"
        self.status = self.path / "status.json"
        self.readings = self.path / "readings.jsonl"
        self._written = (self.status, self.readings, self.log, self.config)

    @classmethod
    def of(cls, path: str | Path) -> "Run | None":
        """Return the run that a path is, or lies in as a checkpoint or a generator; None if it is of no run."""
        place = Path(path).resolve()
        return next((run for run in map(cls, (place, *place.parents[:2])) if run.is_one()), None)

    def is_begun(self) -> bool:
        """Whether a training has left a log or a state here."""
        return self.log.exists() or self.within.exists() or bool(self.epochs())

    def is_one(self) -> bool:
        """Whether a training lies here, or its recipe alone; many a folder has a config.yaml of something else."""
        with suppress(FaapError):
            return self.is_begun() or "detr_checkpoint" in read(self.config)
        return False

    def checkpoint(self, epoch: int) -> Path:
        """Return the place of one epoch's checkpoint."""
        return self.checkpoints / f"epoch_{epoch:04d}.pth"

    def epochs(self) -> list[int]:
        """Return the epochs that have a checkpoint here, in order."""
        numbers = [path.stem.removeprefix("epoch_") for path in self.checkpoints.glob("epoch_*.pth")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def chosen(self, log: list[dict[str, Any]]) -> int:
        """Return the epoch that was chosen: that of the best checkpoint, or where there is none that of a whole log.

        They may differ where few checkpoints are kept: the choice is among those.
        """
        from faap.evaluation import best_epoch  # here, because the command line's help needs this module

        with suppress(FaapError, KeyError, TypeError, ValueError):
            return int(read_tensors(self.best)["epoch"])
        return best_epoch(log)

    def is_complete(self) -> bool:
        """Whether a training or an evaluation came to its end here."""
        return self.metrics.is_file() and self.report.is_file()

    def is_trained_with(self, recipe: "Recipe") -> bool:
        """Whether what lies here was trained with a recipe's settings, wherever and on whatever it computed."""
        with suppress(FaapError, TypeError):  # it cannot be read, or has fields that the recipe has not
            # the recipe's own class reads the file, so that nothing it names is imported
            stored: dict[str, Any] = {**read(self.config)}
            return not differences(type(recipe)(**stored).to_dict(), recipe, "run")
        return False

    def read_log(self) -> list[dict[str, Any]]:
        """Return a row for each epoch; none if there is no log.

        Raises:
            FaapError: if it is not a log of a training.
        """
        return _rows(self.log, ROW)

    def write_log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the log."""
        write_text(self.log, "".join(json.dumps(row) + "\n" for row in rows))

    def read_on(self, split_sha256: str) -> list[str]:
        """Return the hash of every generator that was measured on a split, once for each time, the first one first.

        Raises:
            FaapError: if what says so cannot be read.
        """
        rows = _rows(self.readings, READING)
        return [row["generator_sha256"] for row in rows if row["split_sha256"] == split_sha256]

    def add_reading(self, split: str, provenance: Mapping[str, Any]) -> None:
        """Record that a generator was measured on a split; not where nothing can be written, so nothing be chosen."""
        row = {"date": provenance["date"], "split": split, "split_sha256": provenance["split_sha256"]}
        rows = [*_rows(self.readings, READING), row | {"generator_sha256": provenance["generator"]["sha256"]}]
        with suppress(OSError):
            write_text(self.readings, "".join(json.dumps(each) + "\n" for each in rows))

    def read_metrics(self) -> dict[str, Any]:
        """Return what metrics.json holds.

        Raises:
            FaapError: if it is missing or not what an evaluation writes.
        """
        if not self.metrics.exists():
            raise FaapError(f"{self.metrics} does not exist; the folder holds no finished training or evaluation.")
        # here, because the command line's help needs this module and not torch
        from faap.evaluation.stored import SHAPE

        return _parsed(read_text(self.metrics), SHAPE, str(self.metrics))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace metrics.json."""
        write_text(self.metrics, json.dumps(metrics, indent=2) + "\n")

    def read_status(self) -> dict[str, Any]:
        """Return how far the training is that lies here: what `Monitor` wrote last, and whether it is at work.

        Raises:
            FaapError: no training lies here.
        """
        if not self.status.is_file():
            raise FaapError(f"{self.path}: no training lies there, or none that has begun: {self.status} is missing.")
        found = read_json(self.status)
        try:
            with self.locked():
                found["state"] = "finished" if self.is_complete() else "stopped; the same command goes on"
        except AtWork:
            found["state"] = "at work"
        except FaapError as error:  # who may only read
            found["state"] = "finished" if self.is_complete() else f"at work or stopped, nobody can tell: {error}"
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder, which is made if it is not there, for what is done in the block; others are refused.

        Raises:
            AtWork: somebody is at work there.
            FaapError: nothing can be written there.
        """
        from filelock import FileLock, Timeout  # here, because the command line's help needs this module

        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.lock)
            try:
                lock.acquire(timeout=0.5)  # who only looks whether somebody is at work is soon gone
            except Timeout:
                said = f"{self.path}: another process is at work there{self._owner()}, and two would mix"
                raise AtWork(f"{said}; wait for it, or give another folder with --output_dir.") from None
        try:
            yield
        finally:
            with suppress(OSError):  # while it is ours; on Windows it goes by itself
                self.lock.unlink()
            lock.release()
            with suppress(OSError):  # unless something came of it
                self.path.rmdir()

    def _owner(self) -> str:
        with suppress(FaapError, KeyError):
            found = read_json(self.status)
            return f" (process {found['pid']} on {found['host']})"
        return ""

    def move_aside(self) -> Path | None:
        """Move a training or an evaluation that lies in the folder, which is locked, to the first free NAME.1, NAME.2 …

        Returns:
            Where it is now; None if there was nothing to move.
        """
        if not (self.metrics.exists() or self.report.exists() or self.within.exists() or self.epochs()):
            return None
        others = () if self.is_one() else (self.config,)
        here = self.path.resolve()
        places = (here.with_name(f"{here.name}.{number}") for number in itertools.count(1))
        aside = next(place for place in places if not place.exists())
        aside.mkdir()
        try:
            # what says that it is finished first, and what else lies in the folder not at all
            for each in (self.metrics, self.report, *self._written, self.events, self.generator, self.checkpoints):
                if each.exists() and each not in others:
                    (here / each.name).rename(aside / each.name)
        finally:
            with suppress(OSError):  # unless something is in it
                aside.rmdir()
        return aside

    def refuse_others(self) -> None:
        """Raise a FaapError if a config.yaml or a generator lies in the folder that is of no training there."""
        ours = self.is_begun() or (self.metrics.exists() and self.is_one())
        for each in (self.config, self.generator / "config.json"):
            if each.exists() and not ours:
                what = "is not of a training that lies there, and would be overwritten"
                raise FaapError(f"{each}: {what}; give another folder with --output_dir.")

    def claim(self, recipe: "Recipe", rows: Iterable[Mapping[str, Any]], resumed: "Run | None" = None) -> None:
        """Make the folder, which is locked, a training's own, with its recipe in it.

        Args:
            recipe: what is trained.
            rows: of the log, for the epochs that are finished.
            resumed: the run that goes on; if it lies in another folder, what is there of these epochs is copied.

        Raises:
            FaapError: if the folder cannot be written.
        """
        rows = list(rows)
        with writing(self.path):
            # what processes that were killed left of their files; what others keep here is theirs
            mine = [self.path.glob(f".{each.name}.*.tmp") for each in (self.metrics, self.report, *self._written)]
            mine += [self.checkpoints.glob(".*.tmp"), self.generator.glob(".saving-*")]
            for left in itertools.chain(*mine):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            if resumed and resumed.path.resolve() != self.path.resolve():
                kept = [resumed.checkpoint(epoch) for epoch in {*resumed.epochs()} & {row["epoch"] for row in rows}]
                for each in (*resumed.events.glob("events.*"), *resumed.path.glob(resumed.readings.name), *kept):
                    copy_file(each, self.path / each.relative_to(resumed.path))
            self.write_log(rows)
            replace(recipe, resume="auto", fresh=False).save(self.config)


def cost_of(place: Path) -> dict[str, Any]:
    """Return what the training took that lies in a folder: "training" {images, seconds}; nothing if it has no log."""
    rows = Run(place).read_log()
    return {"training": {name: sum(row[name] for row in rows) for name in ("images", "seconds")}} if rows else {}


def differences(stored: Mapping[str, Any], recipe: "Recipe", *free: str) -> list[str]:
    """Say in which fields a stored recipe and another differ, but for those of the sections in `free`."""
    then, now = {each.name: each.default for each in fields(recipe)} | dict(stored), recipe.to_dict()
    names = [each.name for each in fields(recipe) if each.metadata["section"] not in free]

    def same(name: str) -> bool:
        if name in ("dataset_root", "detr_checkpoint"):  # one place may be written in several ways
            return os.path.realpath(str(then[name])) == os.path.realpath(str(now[name]))
        return then[name] in (now[name], getattr(recipe, name))

    return [f"{name} was {then[name]!r}, is {now[name]!r}" for name in names if not same(name)]


@contextmanager
def writing(folder: Path, flag: str = "--output_dir") -> Iterator[None]:
    """Turn what keeps the block from writing into an output folder, which a flag names, into a FaapError."""
    try:
        yield
    except FaapError:
        raise
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        what, why = flag.removeprefix("--"), getattr(error, "strerror", None) or error
        said = f"{what} {folder}: cannot be made or written to ({why})"
        advice = f"give a place of your own with {flag}"
        if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            advice = "what was written before is whole: make room, and repeat the command"
        raise FaapError(f"{said}; {advice}.") from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target is complete or unchanged."""
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def _rows(path: Path, shape: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines = enumerate(read_text(path).splitlines() if path.exists() else [], 1)
    return [_parsed(line, shape, f"{path}, line {number}") for number, line in lines if line.strip()]


def _parsed(text: str, shape: Mapping[str, Any], place: str) -> dict[str, Any]:
    with reading(place, "not JSON"):
        parsed: dict[str, Any] = json.loads(text)
    conform(parsed, shape, place)
    return parsed
