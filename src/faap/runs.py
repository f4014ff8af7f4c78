"""One run folder: what its files are called, what they hold, and which epochs are in it."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from faap.conform import conform
from faap.errors import FaapError
from faap.files import atomic_write

if TYPE_CHECKING:
    from faap.config import Recipe

# What a run decides anew when it goes on: where and how it computes, not what.
FREE_FIELDS = frozenset({"description", "output_dir", "resume", "device", "num_workers"})
_GROUPS = {str: {"AP": (float, None), "AR100": (float, None)}}
ROW = {
    "epoch": int,
    "images": int,
    "train": {str: (float, None)},
    "schedule": {str: float},
    "validation": {"baseline": _GROUPS, "perturbed": _GROUPS, "gap": {str: (float, None)}},
    "seconds": float,
}
METRICS = {
    "split": str,
    "images": {str: int},
    "baseline": {str: {str: (float, None)}},
    "perturbed": {str: {str: (float, None)}},
    "gap": {str: {"baseline": (float, None), "perturbed": (float, None), "change": (float, None)}},
    "success": {str: {"value": (float, None), "target": (float, None), "met": (bool, None)}},
    "perturbation": {str: (float, None)},
    "detector_sha256": str,
}


class Run:
    """A folder that a training or an evaluation writes, finished or not.

    Attributes:
        path: the folder; it need not exist.
        config, log, metrics, report, events, generator, checkpoints, best: paths of what it holds.
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

    @classmethod
    def of(cls, path: str | Path) -> "Run | None":
        """Return the run that a path is, or lies in as a checkpoint or a generator; None if it is of no run."""
        place = Path(path).resolve()
        return next(
            (run for run in map(cls, (place, *place.parents[:2])) if run.config.is_file() or run.checkpoints.is_dir()),
            None,
        )

    def __eq__(self, other: object) -> bool:
        """Whether both are the same folder."""
        return isinstance(other, Run) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        """Agree with `__eq__`."""
        return hash(self.path.resolve())

    def checkpoint(self, epoch: int) -> Path:
        """Return the place of one epoch's checkpoint."""
        return self.checkpoints / f"epoch_{epoch:04d}.pth"

    def epochs(self) -> list[int]:
        """Return the epochs that have a checkpoint here, in order."""
        numbers = [path.stem.removeprefix("epoch_") for path in self.checkpoints.glob("epoch_*.pth")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def last_checkpoint(self) -> Path | None:
        """Return the newest epoch's checkpoint; None if there is none."""
        return next((self.checkpoint(epoch) for epoch in reversed(self.epochs())), None)

    def is_complete(self) -> bool:
        """Whether a training or an evaluation came to its end here."""
        return self.metrics.is_file() and self.report.is_file()

    def is_trained_with(self, recipe: "Recipe") -> bool:
        """Whether what lies here was trained with a recipe's settings, wherever and on whatever it computed."""
        try:
            # only what the recipe's own class says is asked of it, so that nothing the file names is imported
            found = yaml.load(self.config.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
            conform(found, {str: str}, str(self.config))
            stored = type(recipe)(**{each.name: found[each.name] for each in fields(recipe) if each.name in found})
        except (FaapError, OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
            return False
        return found.keys() <= recipe.to_dict().keys() and not differences(stored.to_dict(), recipe)

    def read_log(self) -> list[dict[str, Any]]:
        """Return a row for each epoch; none if there is no log.

        Raises:
            FaapError: if it is not a log of a training.
        """
        lines = _read(self.log).splitlines() if self.log.exists() else []
        return [
            _parsed(line, ROW, f"{self.log}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
        ]

    def write_log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the log."""
        with atomic_write(self.log) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def read_metrics(self) -> dict[str, Any]:
        """Return what metrics.json holds.

        Raises:
            FaapError: if it is missing or not what an evaluation writes.
        """
        if not self.metrics.exists():
            raise FaapError(f"{self.metrics} does not exist; the folder holds no finished training or evaluation.")
        return _parsed(_read(self.metrics), METRICS, str(self.metrics))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace metrics.json."""
        with atomic_write(self.metrics) as temporary:
            temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    def make(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            FaapError: if it cannot be made, or nothing can be written into it.
        """
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()

    def move_aside(self) -> Path | None:
        """Rename the folder to the first free NAME.1, NAME.2, … if a training or an evaluation lies in it.

        Returns:
            Where it is now; None if there was nothing to move.
        """
        with self._writing():
            if not (self.metrics.exists() or self.epochs()):
                return None
            here = self.path.resolve()
            places = (here.with_name(f"{here.name}.{number}") for number in itertools.count(1))
            return here.rename(next(place for place in places if not place.exists()))

    def claim(self, recipe: "Recipe", resumed: "Run | None" = None, epochs: int = 0) -> Path | None:
        """Make the folder a training's own, with its recipe in it.

        What lies here is moved aside, unless it is the run that goes on. Of that one the log keeps the finished epochs,
        and if it lies in another folder, their checkpoints are copied.

        Args:
            recipe: what is trained.
            resumed: the run that goes on.
            epochs: how many of its epochs are finished.

        Returns:
            Where the earlier run is now; None if there was none.

        Raises:
            FaapError: if the folder cannot be made or written, or the log of the run that goes on cannot be read.
        """
        rows = [row for row in resumed.read_log() if row["epoch"] < epochs] if resumed else []
        aside = None if resumed == self else self.move_aside()
        self.make()
        with self._writing():
            if resumed and resumed != self:
                for epoch in resumed.epochs():
                    if epoch < epochs:
                        copy_file(resumed.checkpoint(epoch), self.checkpoint(epoch))
            self.write_log(rows)
            replace(recipe, resume="").save(self.config)
        return aside

    def choose_best(self, choose: Callable[[list[dict[str, Any]]], int]) -> int:
        """Copy the checkpoint of one epoch to `best`.

        Args:
            choose: picks one of the log's rows, all of which have a checkpoint, and returns its epoch.

        Returns:
            That epoch.

        Raises:
            FaapError: if there is no such row.
        """
        there = self.epochs()
        kept = [row for row in self.read_log() if row["epoch"] in there]
        if not kept:
            raise FaapError(
                f"{self.path}: no epoch has both a line in {self.log.name} and a checkpoint; nothing to measure."
            )
        chosen = choose(kept)
        copy_file(self.checkpoint(chosen), self.best)
        return chosen

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
            said = getattr(error, "strerror", None) or error
            raise FaapError(
                f"output_dir {self.path}: cannot be made or written to ({said}); give a folder of your own with "
                "--output_dir."
            ) from error


def differences(stored: Mapping[str, Any], recipe: "Recipe", free: frozenset[str] = FREE_FIELDS) -> list[str]:
    """Say in which fields, but for free ones, a stored recipe and another compute different things."""
    then = {**type(recipe)().to_dict(), **stored}
    return [
        f"{name} was {then[name]!r}, is {value!r}"
        for name, value in recipe.to_dict().items()
        if name not in free and then[name] != value
    ]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target is complete or unchanged."""
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FaapError(f"{path}: cannot be read: {error}") from None


def _parsed(text: str, shape: Mapping[str, Any], place: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FaapError(f"{place}: not JSON: {error}") from None
    conform(parsed, shape, place)
    return dict(parsed)
