"""What the page can choose from, and what is made of it: HTML, without anything of the web."""

import contextvars
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from faster_coco_eval import mask
from PIL import Image
from rich.console import Console
from scipy.optimize import linear_sum_assignment

from faap import recipes
from faap.audit import audit_data
from faap.compare.gather import gather
from faap.config import run_recipe
from faap.conform import Between, conform
from faap.data import Record, load_dataset
from faap.data.images import STD, read_image
from faap.data.problems import Problem
from faap.deploy import apply, found_in
from faap.detectors import FrozenDetector, load_detector
from faap.distributed import resolve_device
from faap.errors import FaapError
from faap.evaluation import Detections
from faap.evaluation.criteria import verdict_of
from faap.files import read_text, reading
from faap.perturbation import load_generator
from faap.promenade import compose
from faap.promenade.build import SEED
from faap.report import words
from faap.report.audit import audit_page
from faap.report.comparison import comparison_page
from faap.report.page import SCORE_THRESHOLD, Example, render
from faap.runs import Run

# scenes of Promenade's test split that are examples, with women and with men
_SCENES, _GROUPS = range(4), ("female", "male")
# scores below the first are of no interest, changes below the second none, and no more than so many are listed
_LEAST, _VISIBLE, _LISTED = 0.1, 0.005, 12
# pixels of the longer side of a picture for a detector that resizes none, which would take minutes over a photograph
_LONGEST = 1024
# results that can still be downloaded
_KEPT = 4

Thing = TypeVar("Thing")


class Shelf:
    """What whoever typed the command lets a browser choose from, by name.

    Args:
        generators, detectors, data: as their loaders take them.
        runs: the folder in which runs are looked for.
        groups: arguments of `load_dataset` beside the place.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        FaapError: a generator or a detector cannot be loaded.
    """

    def __init__(
        self,
        generators: Sequence[str] = ("promenade",),
        detectors: Sequence[str] = ("promenade",),
        data: Sequence[str] = ("promenade",),
        runs: str | Path = "faap_outputs",
        groups: Mapping[str, Any] | None = None,
        device: str = "auto",
    ) -> None:
        self.device = resolve_device(device)
        self.generators = {name: load_generator(name).to(self.device) for name in generators}
        self.bounds = {name: each.epsilon for name, each in self.generators.items()}
        self.detectors = {name: load_detector(name, self.device) for name in detectors}
        self.data, self.runs, self.groups = {name: name for name in data}, Path(runs), dict(groups or {})
        scenes = {f"scene {number}, {group}": (number, group) for group in _GROUPS for number in _SCENES}
        self.examples = {name: Image.fromarray(compose(SEED, "test", *each).image) for name, each in scenes.items()}
        self._made: dict[str, tuple[str, Callable[[], bytes]]] = {}
        # while ε moves, the picture and what is found in it stay
        self._seen = lru_cache(8)(self._see)

    def _see(self, detector: str, upload: str | None, example: str) -> tuple[Image.Image, bool, Detections]:
        """Return a picture, whether it was made smaller, and what is found in it."""
        try:
            image = read_image(upload) if upload else chosen(self.examples, example)
        except Problem as problem:  # of which the folder is nobody's business
            raise FaapError(str(problem).replace(f"{Path(upload or '.').parent}/", "")) from problem
        model = chosen(self.detectors, detector)
        resizes = model.preprocessing.shortest_edge or model.preprocessing.size
        if smaller := not resizes and max(image.size) > _LONGEST:
            image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
        return image, smaller, _detections(model, image)

    def look(self, upload: str | None, example: str, detector: str, generator: str, epsilon: float) -> str:
        """Show a picture before and after; without an uploaded file, an example."""
        model, moving = chosen(self.detectors, detector), chosen(self.generators, generator)
        conform(epsilon, Between(0, self.bounds[generator]), "ε")
        image, smaller, before = self._seen(detector, upload, example)
        moving.epsilon = epsilon
        changed = apply(moving, image, preprocessing=model.preprocessing)
        after, none = _detections(model, changed), np.zeros(0)
        record = Record(0, Path(upload or example), *image.size, "", np.zeros((0, 4)), none.astype(int), none, none > 0)
        shown = Example(record, np.asarray(image), np.asarray(changed), before, after)
        values: dict[str, Any] = {"example": shown, "smaller": smaller, "names": model.labels, "least": _LEAST}
        values |= {"rows": moved(before, after), "factor": 127 // max(1, int(np.abs(shown.change).max()))}
        values |= {"threshold": SCORE_THRESHOLD, "place": self._offer("perturbed.png", lambda: _png(changed))}
        return render("app.html", part="look", **values)

    def audit(self, data: str, detector: str, tell: Callable[[float, str], None]) -> str:
        """Audit a detector on the test split of a data set, or on all of one that is not divided.

        Args:
            data, detector: their names.
            tell: gets how far it is, from 0 to 1, and with what.

        Returns:
            The audit's page, in a frame.
        """
        chosen(self.detectors, detector)
        # for an audit of Promenade its training scenes need not be drawn
        few = {"scenes": 1} if chosen(self.data, data) == "promenade" else {}
        dataset = load_dataset(data, **few | self.groups)
        split = "test" if "test" in dataset.splits else "all"
        console = Console(file=Bars(tell), force_terminal=True, color_system=None, width=100)
        images, result = audit_data(dataset, split=split, detector=detector, device=str(self.device), console=console)
        return self._framed(audit_page(result, images), f"Audit of {detector} on {data}", "audit.html")

    def found(self) -> list[dict[str, Any]]:
        """Return a row for each run in the folder: its "name", "run", and what it says of itself, or its "error"."""
        return [self._row(Run(place.parent)) for place in sorted(self.runs.rglob("metrics.json"))]

    def _row(self, run: Run) -> dict[str, Any]:
        row: dict[str, Any] = {"name": run.path.relative_to(self.runs).as_posix(), "run": run, "recipe": "–"}
        try:
            metrics = run.read_metrics()
            with reading(run.metrics, "was written by another faap"):
                metrics = words.named(metrics, metrics["images"])
                anchor, reference = list(metrics["baseline"])[:2]
                row |= {"gap": metrics["gap"]["AP"], "pair": (anchor, reference)}
                row["changes"] = [metrics["changes"][group]["AP"] for group in row["pair"]]
                row |= {"verdict": verdict_of(metrics["success"]["ap_gap"]), "measured": words.measured_on(metrics)}
            if run.config.is_file():
                row["recipe"] = recipes.read(run.config)["name"]
        except FaapError as error:
            row["error"] = str(error).removeprefix(f"{run.path}/")
        return row

    def table(self) -> str:
        """Lay out what the runs say of themselves."""
        return render("app.html", part="runs", rows=self.found(), folder=self.runs)

    def side_by_side(self, names: Sequence[str]) -> str:
        """Show the report of one run, or the comparison of several."""
        known = {row["name"]: row["run"] for row in self.found()}
        if not isinstance(names, list) or not (runs := {str(name): chosen(known, name) for name in names}):
            raise FaapError("Choose one run for its report, or several for their comparison.")
        if len(runs) == 1:
            return self._framed(read_text(runs[names[0]].report), f"Report of {names[0]}", "report.html")
        made = []
        for name, run in runs.items():
            # faap compare writes RECIPE/seed_N
            recipe, _, seed = name.rpartition("/")
            called = recipe if recipe and seed.startswith("seed_") else name
            made.append(replace(run_recipe(run), name=called.replace("/", " "), output_dir=str(run.path)))
        return self._framed(comparison_page(gather(made, {})), f"{len(runs)} runs compared", "compare.html")

    def _framed(self, page: str, title: str, name: str) -> str:
        """Show a whole page within another; nothing in it can run."""
        return render("app.html", part="framed", page=page, title=title, place=self._offer(name, page.encode))

    def _offer(self, name: str, content: Callable[[], bytes]) -> str:
        """Keep what can be downloaded, for a while; return where, which nobody can guess."""
        self._made[token := secrets.token_urlsafe()] = name, content
        # of each kind, for a slider makes many pictures while an audit is read
        for old in [token for token, (kind, _) in self._made.items() if kind == name][:-_KEPT]:
            del self._made[old]
        return f"made/{token}"

    def made(self, token: str) -> tuple[str, bytes] | None:
        """Return the name and the content of what was offered; None if it is not, or no longer."""
        name, content = self._made.get(token, ("", None))
        return (name, content()) if content else None


def chosen(known: Mapping[str, Thing], name: object) -> Thing:
    """Return what has a name in a list that a browser chooses from."""
    if not isinstance(name, str) or name not in known:
        raise FaapError("What was chosen is not in the list.")
    return known[name]


def levels(epsilon: float) -> float:
    """Return by how many of its 255 levels a pixel can change."""
    return 255 * epsilon * max(STD)


def _detections(detector: FrozenDetector, image: Image.Image) -> Detections:
    found = found_in(detector, image)
    scores, labels, boxes = (each.cpu().numpy() for each in (found.scores, found.labels, found.boxes))
    return Detections(0, scores.astype(float), labels, boxes.astype(float))


def moved(before: Detections, after: Detections) -> list[dict[str, Any]]:
    """Pair what was found before and after, by class, place (an IoU of .50) and score; the largest changes come first.

    Returns:
        "label", "box" (xywh), "before" and "after", the scores, None where there is none, and "change".
    """
    sides = before, after
    iou = mask.iou(before.boxes, after.boxes, np.zeros(len(after.boxes), dtype=bool))
    near = np.reshape(iou, (len(before.boxes), len(after.boxes))) >= 0.5
    same = near & (before.labels[:, None] == after.labels)
    worth = np.where(same, np.sqrt(np.outer(before.scores, after.scores)), 0)
    pairs: list[tuple[int | None, int | None]] = [
        (b, a) for b, a in zip(*linear_sum_assignment(-worth), strict=True) if worth[b, a] > 0
    ]
    taken = [{pair[side] for pair in pairs} for side in (0, 1)]
    pairs += [(b, None) for b in range(len(before.boxes)) if b not in taken[0]]
    pairs += [(None, a) for a in range(len(after.boxes)) if a not in taken[1]]
    rows = []
    for pair in pairs:
        scores = [None if i is None else float(side.scores[i]) for side, i in zip(sides, pair, strict=True)]
        change = (scores[1] or 0) - (scores[0] or 0)
        if max(score or 0 for score in scores) >= _LEAST and abs(change) >= _VISIBLE:
            side, i = next((side, i) for side, i in zip(sides[::-1], pair[::-1], strict=True) if i is not None)
            row = {"label": int(side.labels[i]), "box": side.boxes[i].tolist(), "change": change}
            rows.append(row | dict(zip(("before", "after"), scores, strict=True)))
    return sorted(rows, key=lambda row: -abs(row["change"]))[:_LISTED]


def _png(image: Image.Image) -> bytes:
    image.save(buffer := BytesIO(), "PNG")
    return buffer.getvalue()


class Bars(StringIO):
    """A terminal that tells of its bars, in the context in which it was made.

    Args:
        tell: gets how far a bar is, from 0 to 1, and what it is about.
    """

    def __init__(self, tell: Callable[[float, str], None]) -> None:
        super().__init__()
        self.told, self.context = tell, contextvars.copy_context()

    def write(self, text: str) -> int:
        """Look for bars in what is written."""
        for said, percent in re.findall(r"([a-z][a-z ]*?) +[━╸╺ ]* (\d+)%", text):
            self.context.copy().run(self.told, int(percent) / 100, said)
        return len(text)
