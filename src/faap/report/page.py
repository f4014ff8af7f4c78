"""One self-contained HTML page about a run."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from faap import recipes
from faap.conform import conform
from faap.data import Record
from faap.errors import FaapError
from faap.evaluation import METRICS, Detections
from faap.evaluation.curves import Curves
from faap.evaluation.matching import count_found
from faap.files import write_text
from faap.report import charts, words
from faap.runs import Run, cost_of

SCORE_THRESHOLD = 0.5
MAX_EXAMPLES = 6

# embedded pictures: a page of six photographs stays below a few megabytes, small images are kept exactly
_LONGEST_EDGE = 640
_EXACT_PIXELS = 256 * 256

_LEFTWARD = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+"  # Hebrew, Arabic and their like
_LEFTWARDS = re.compile(f"{_LEFTWARD}(?:[ _-]+{_LEFTWARD})*")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Example:
    """An image to show before and after.

    Attributes:
        record: the image's record, with its ground truth.
        pixels: (H, W, 3) as the detector gets it without the generator.
        perturbed: (H, W, 3) with it.
        before: detections without the generator; boxes in pixels of the record's size.
        after: detections with it.
    """

    record: Record
    pixels: Pixels
    perturbed: Pixels
    before: Detections
    after: Detections

    @property
    def change(self) -> npt.NDArray[np.int16]:
        """What the generator adds, (H, W, 3) in levels of 255."""
        return self.perturbed.astype(np.int16) - self.pixels


def write_report(run: Run | str | Path, examples: Sequence[Example] = (), curves: Sequence[Curves] = ()) -> Path:
    """Write `report.html` into a run directory.

    Args:
        run: holds metrics.json, and, after a training, config.yaml and train_log.jsonl; what is missing is left out of
            the page.
        examples: images to show; the first six are.
        curves: of `curves_of`, before and after.

    Returns:
        Path of the page.

    Raises:
        FaapError: if metrics.json is missing, or one of these files is broken.
    """
    run = run if isinstance(run, Run) else Run(run)
    metrics, log = run.read_metrics(), run.read_log()
    groups = list(metrics["baseline"])
    if len(groups) < 2:
        raise FaapError(f"{run.metrics}: baseline: names {len(groups)} groups; it should be two or more.")
    known = dict.fromkeys(groups, dict.fromkeys(METRICS, (float, None)))
    shape: dict[str, Any] = {"baseline": known, "perturbed": known}
    shape |= {"gaps": dict.fromkeys(set(groups) - {groups[1]}, dict), "changes": dict.fromkeys(groups, dict)}
    conform(metrics, shape, str(run.metrics))
    both = dict.fromkeys(groups[:2], dict)
    conform(log, [{"validation": {"baseline": both, "perturbed": both}}], str(run.log))
    chosen = run.chosen(log) if log else None
    named = partial(words.named, groups=groups)
    metrics, log, curves, groups = map(named, (metrics, log, curves, groups))
    drawn = {} if chosen is None else charts.draw_log(log, chosen, *groups[:2])
    config = recipes.read(run.config) if run.config.exists() else {}
    shown = examples[:MAX_EXAMPLES]
    # the largest that keeps every perturbation between black and white
    factor = 127 // max([1, *(int(np.abs(example.change).max()) for example in shown)])
    about: dict[str, Any] = {"metrics": metrics | cost_of(run.path), "log": log, "chosen": chosen, "config": config}
    about |= {"drawn": drawn, "curves": charts.draw_curves(*curves) if curves else []}
    about |= {"examples": shown, "named": named, "factor": factor, "threshold": SCORE_THRESHOLD}
    return write_text(run.report, render("report.html", **about))


def render(template: str, **values: Any) -> str:
    """Fill one of the templates of this folder; what is put in is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    options: Any = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "finalize": _isolated}
    environment = Environment(loader=loader, **options)
    environment.filters.update(number=words.number, percent=words.percent, interval=words.interval, spread=words.spread)
    environment.globals.update(words=words, charts=charts, METRICS=METRICS, picture=picture, shown_in=_shown_in)
    environment.globals["count_found"] = count_found
    return environment.get_template(template).render(values)


def _isolated(value: Any) -> Any:
    """Set names that are read from right to left apart, so that numbers beside them stay on their side."""
    return _LEFTWARDS.sub("\u2068\\g<0>\u2069", value) if type(value) is str else value


def _shown_in(record: Record, detections: Detections, names: Mapping[int, str] = {}) -> list[dict[str, Any]]:
    """Detections above the threshold, each with a place for its text: above its box, or below what stands there.

    Where there is none, the best one: it is `under` the threshold.
    """
    height = record.width / 18
    shown: list[dict[str, Any]] = []
    best = np.argsort(-detections.scores, kind="stable")
    for i in best[: max(1, int((detections.scores >= SCORE_THRESHOLD).sum()))]:
        box, score = detections.boxes[i].tolist(), detections.scores[i]
        text = f"{names.get(int(detections.labels[i]), '')} {score:.2f}".strip()
        width = len(text) * record.width / 36
        x, y = min(box[0], record.width - width), max(box[1] - height, 0.0)
        while y < record.height - 2 * height and any(
            abs(x - other["x"]) < width and abs(y - other["y"]) < height for other in shown
        ):
            y += height
        shown.append({"box": box, "text": text, "x": x, "y": y, "under": score < SCORE_THRESHOLD})
    return shown


def picture(pixels: npt.NDArray[np.integer[Any]]) -> str:
    """A picture as a data URI, of values that are cut to [0, 255]."""
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.thumbnail((_LONGEST_EDGE, _LONGEST_EDGE), Image.Resampling.LANCZOS)
    buffer, small = io.BytesIO(), image.width * image.height <= _EXACT_PIXELS
    kind, options = ("png", {"optimize": True}) if small else ("jpeg", {"quality": 92, "subsampling": 0})
    image.save(buffer, kind, **options)
    return charts.data_uri(kind, buffer)
