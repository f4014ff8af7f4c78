"""One run folder: what its files are called, what they hold, and which epochs are in it."""

import itertools
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from faap.errors import FaapError
from faap.files import atomic_write


class Run:
    """A folder that a training or an evaluation writes, finished or not.

    Attributes:
        path: the folder; it need not exist.
        config, log, metrics, report, checkpoints, best, generator: paths of what it holds.
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

    def checkpoint(self, epoch: int) -> Path:
        """Return the place of one epoch's checkpoint."""
        return self.checkpoints / f"epoch_{epoch:04d}.pth"

    def last_checkpoint(self) -> Path | None:
        """Return the newest epoch's checkpoint; None if there is none."""
        return max(self.checkpoints.glob("epoch_*.pth"), default=None)

    def is_complete(self) -> bool:
        """Whether a training or an evaluation came to its end here."""
        return self.metrics.is_file() and self.report.is_file()

    def read_log(self) -> list[dict[str, Any]]:
        """Return a row for each epoch; none if there is no log.

        Raises:
            FaapError: if a line is not JSON.
        """
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [_parse(self.log, line) for line in lines if line.strip()]

    def write_log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the log."""
        with atomic_write(self.log) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def read_metrics(self) -> dict[str, Any]:
        """Return what metrics.json holds.

        Raises:
            FaapError: if it is missing or not JSON.
        """
        if not self.metrics.exists():
            raise FaapError(f"{self.metrics} does not exist; the folder holds no finished training or evaluation.")
        return _parse(self.metrics, self.metrics.read_text(encoding="utf-8"))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace metrics.json."""
        with atomic_write(self.metrics) as temporary:
            temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    def move_aside(self) -> Path | None:
        """Rename the folder to the first free NAME.1, NAME.2, … if a training or an evaluation lies in it.

        Returns:
            Where it is now; None if there was nothing to move.
        """
        if not (self.metrics.exists() or self.last_checkpoint()):
            return None
        here = self.path.resolve()
        places = (here.with_name(f"{here.name}.{number}") for number in itertools.count(1))
        return here.rename(next(place for place in places if not place.exists()))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target is complete or unchanged."""
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise FaapError(f"{path}: not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise FaapError(f"{path}: holds {type(parsed).__name__}, not an object.")
    return parsed
