"""One self-contained HTML page about a run."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from faap.conform import conform
from faap.data import Record
from faap.errors import FaapError
from faap.evaluation import HEADLINE, METRICS, Detections, best_epoch
from faap.evaluation.gaps import GAPS
from faap.files import atomic_write
from faap.report import words
from faap.report.charts import ANCHOR_COLOUR, OTHER_COLOURS, REFERENCE_COLOUR, Drawn, Training, embed, training_of
from faap.runs import Run

SCORE_THRESHOLD = 0.5
MAX_EXAMPLES = 6

# embedded pictures: a page of six photographs stays below a few megabytes, small images are kept exactly
_LONGEST_EDGE = 640
_EXACT_PIXELS = 256 * 256

Pixels = npt.NDArray[np.uint8]

# what the page needs of metrics.json and of a line of train_log.jsonl
_NUMBER = (float, None)
_CHANGE = dict.fromkeys(("baseline", "perturbed", "change", "relative_change", "p_value"), _NUMBER)
_DISTANCE = dict.fromkeys(("epsilon", "linf_normalised", "linf_pixels", "psnr_db", "ssim"), _NUMBER)
_CRITERION = {"value": _NUMBER, "target": _NUMBER, "met": bool}
_METRICS = {
    "split": str,
    "images": {str: int},
    "categories_left_out?": {str: [str]},
    "baseline": {str: dict},
    "perturbed": {str: dict},
    "gap": {name: {**_CHANGE, "ci95": (list, None)} for name in GAPS},
    "success": {name: {**_CRITERION, "ci95?": (list, None)} for name in HEADLINE},
    "warnings?": [str],
    "perturbation": _DISTANCE,
    "provenance?": {
        "dataset": str,
        "split_sha256": str,
        "detector": dict.fromkeys(("name", "file_sha256", "tensors_sha256"), str),
        "generator": {"arch": str, "epsilon": float, "sha256": str},
        "versions": {str: str},
        "date": str,
    },
    "detector_sha256": str,
}
_ROW = {
    "epoch": int,
    "train": {str: _NUMBER},
    "schedule": {str: _NUMBER},
    "validation": {"baseline": {str: dict}, "perturbed": {str: dict}, "gap": dict.fromkeys(GAPS, _NUMBER)},
}


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


def write_report(run: Run | str | Path, examples: Sequence[Example] = ()) -> Path:
    """Write `report.html` into a run directory.

    Args:
        run: holds metrics.json, and, after a training, config.yaml and train_log.jsonl; what is missing is left out of
            the page.
        examples: images to show; the first six are.

    Returns:
        Path of the page.

    Raises:
        FaapError: if metrics.json is missing, or one of these files is broken.
    """
    run = run if isinstance(run, Run) else Run(run)
    metrics, log = _read_metrics(run), run.read_log()
    config = _read_config(run.config)
    groups = list(metrics["baseline"])
    anchor, reference = groups[:2]
    conform(log, [_ROW], str(run.log))
    for row in log:
        _conform_groups(row["validation"], groups[:2], list(GAPS.values()), f"{run.log}: validation")
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
        sentences=[words.gap_sentence(metrics, anchor, reference), words.group_sentence(metrics, anchor, reference)],
        notes=words.notes(metrics),
        criteria=words.criteria_rows(metrics, anchor, reference),
        provenance=words.provenance_rows(metrics),
        charts={} if chosen is None else _charts(training_of(log, chosen, anchor, reference)),
        chosen=chosen,
        epochs=len(log),
        examples=[_example(example, factor) for example in shown],
        factor=factor,
        threshold=SCORE_THRESHOLD,
    )
    return save(page, run.report)


def _read_metrics(run: Run) -> dict[str, Any]:
    """Read metrics.json, of at least two groups."""
    metrics, place = run.read_metrics(), str(run.metrics)
    conform(metrics, _METRICS, place)
    if len(metrics["baseline"]) < 2:
        raise FaapError(f"{place}: baseline: names {len(metrics['baseline'])} groups; it should be two or more.")
    _conform_groups(metrics, list(metrics["baseline"]), METRICS, place)
    for part in ("gap", "success"):
        for name, entry in metrics[part].items():
            conform(entry.get("ci95") or [], [float], f"{place}: {part}: {name}: ci95")
            if entry.get("ci95") is not None and len(entry["ci95"]) != 2:
                raise FaapError(f"{place}: {part}: {name}: ci95: holds {len(entry['ci95'])} bounds; it should be two.")
    return metrics


def _conform_groups(metrics: Mapping[str, Any], groups: Sequence[str], names: Sequence[str], place: str) -> None:
    for which in ("baseline", "perturbed"):
        for group in groups:
            conform(metrics[which].get(group), dict.fromkeys(names, _NUMBER), f"{place}: {which}: {group}")


def _read_config(path: Path) -> dict[str, Any]:
    """Read what a run was trained with, to be shown as it stands; nothing without a training."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (yaml.YAMLError, ValueError) as error:
        raise FaapError(f"{path}: not YAML: {error}") from None
    conform(config, {str: (object, bool)}, str(path))
    return dict(config)


def _charts(training: Training) -> dict[str, list[Drawn]]:
    """All curves of a run, by subject."""
    return {
        "Validation": [*training.gap("ap_gap"), *training.gap("ar_gap"), *training.groups()],
        "Representation and scores": training.representation(),
        "Loss terms, mean over the steps": training.losses(),
        "Schedules": training.schedules(),
    }


def render(template: str, **values: Any) -> str:
    """Fill one of the templates of this folder; what is put in is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=words.number, percent=words.percent, interval=words.interval, spread=words.spread)
    environment.globals.update(difference=words.difference, embed=embed, marks=words.MARKS)
    return environment.get_template(template).render(values)


def save(page: str, path: Path) -> Path:
    """Write a page, in full or not at all; returns its path."""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


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
