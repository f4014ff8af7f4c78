"""One self-contained HTML page about a run."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from faap.data import Record
from faap.errors import FaapError
from faap.evaluation import METRICS, Detections, best_epoch
from faap.files import atomic_write
from faap.report import words
from faap.report.charts import ANCHOR_COLOUR, OTHER_COLOURS, REFERENCE_COLOUR, run_charts

SCORE_THRESHOLD = 0.5
MAX_EXAMPLES = 6

# embedded pictures: a page of six photographs stays below a few megabytes, small images are kept exactly
_LONGEST_EDGE = 640
_EXACT_PIXELS = 256 * 256

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


def write_report(run_dir: str | Path, examples: Sequence[Example] = ()) -> Path:
    """Write `report.html` into a run directory.

    Args:
        run_dir: holds metrics.json, and, after a training, config.yaml and train_log.jsonl; what is missing is left
            out of the page.
        examples: images to show; the first six are.

    Returns:
        Path of the page.

    Raises:
        FaapError: if metrics.json is missing, or it or train_log.jsonl is broken.
    """
    run_dir = Path(run_dir)
    metrics_file, config_file, log_file = (run_dir / n for n in ("metrics.json", "config.yaml", "train_log.jsonl"))
    if not metrics_file.exists():
        raise FaapError(f"{metrics_file} does not exist; a report needs the metrics of an evaluation")
    metrics = _parse(metrics_file, metrics_file.read_text(encoding="utf-8"))
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
    log = read_log(log_file)

    groups = list(metrics["baseline"])
    anchor, reference = groups[:2]
    chosen = best_epoch(log, reference) if log else None
    colours = dict(zip(groups, (ANCHOR_COLOUR, REFERENCE_COLOUR, *OTHER_COLOURS), strict=False))
    shown = list(examples[:MAX_EXAMPLES])
    factor = _magnification(shown)
    page = render(
        "report.html",
        metrics=metrics,
        names=METRICS,
        config=config,
        title=config.get("name") or "Evaluation",
        groups=groups,
        colours=colours,
        anchor=anchor,
        reference=reference,
        sentences=[
            words.gap_sentence(metrics, anchor, reference),
            words.group_sentence(metrics, anchor, reference),
        ],
        criteria=words.criteria_rows(metrics, anchor, reference),
        charts=run_charts(log, chosen, anchor, reference) if chosen is not None else [],
        chosen=chosen,
        epochs=len(log),
        examples=[_example(example, factor) for example in shown],
        factor=factor,
        threshold=SCORE_THRESHOLD,
    )
    return save(page, run_dir / "report.html")


def render(template: str, **values: Any) -> str:
    """Fill one of the templates of this folder; what is put in is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=words.number, percent=words.percent, interval=words.interval)
    environment.globals["difference"] = words.difference
    return environment.get_template(template).render(values)


def save(page: str, path: Path) -> Path:
    """Write a page, in full or not at all; returns its path."""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a train_log.jsonl; none if there is no such file.

    Raises:
        FaapError: if a line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [_parse(path, line) for line in lines if line.strip()]


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise FaapError(f"{path}: not JSON: {error}") from None
    return parsed


def _magnification(examples: Sequence[Example]) -> int:
    """The largest factor that keeps every perturbation between black and white, the same for all examples."""
    changes = [int(np.abs(_difference(example)).max()) for example in examples]
    return 127 // max([1, *changes])


def _difference(example: Example) -> npt.NDArray[np.int16]:
    return example.perturbed.astype(np.int16) - example.pixels


def _example(example: Example, factor: int) -> dict[str, Any]:
    record = example.record
    magnified = (128 + factor * _difference(example)).clip(0, 255).astype(np.uint8)
    panels = [
        {"title": "before", "image": _embed(example.pixels), "detections": _labelled(example.before, record)},
        {"title": "after", "image": _embed(example.perturbed), "detections": _labelled(example.after, record)},
        {"title": f"perturbation ×{factor}", "image": _embed(magnified), "detections": None},
    ]
    return {"record": record, "name": record.path.name, "text": record.width / 20, "panels": panels}


def _labelled(detections: Detections, record: Record) -> list[dict[str, Any]]:
    """Detections above the threshold, each with a place for its score that no other score has taken."""
    width, height = record.width / 9, record.width / 18
    taken: list[tuple[float, float]] = []
    result = []
    order = np.argsort(-detections.scores, kind="stable")
    for i in order[detections.scores[order] >= SCORE_THRESHOLD]:
        x, y, w, h = (float(v) for v in detections.boxes[i])
        right = min(x + w, record.width) - width
        corners = [(x, y - height), (x, y + h), (right, y - height), (right, y + h), (x, y), (right, y + h - height)]
        places = [
            (min(max(left, 0.0), record.width - width), min(max(top, 0.0), record.height - height))
            for left, top in corners
        ]
        free = [p for p in places if all(abs(p[0] - q[0]) >= width or abs(p[1] - q[1]) >= height for q in taken)]
        place = (free or places)[0]
        taken.append(place)
        label = {"x": place[0] + 0.1 * height, "y": place[1] + 0.8 * height, "score": f"{detections.scores[i]:.2f}"}
        result.append({"box": (x, y, w, h), **label})
    return result


def _embed(pixels: Pixels) -> str:
    """A picture as a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST_EDGE, _LONGEST_EDGE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if image.width * image.height <= _EXACT_PIXELS:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=92, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
