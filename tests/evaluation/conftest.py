"""Random splits with detections, and pycocotools as the slower route."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from faap.data import Record, Split
from faap.evaluation import METRICS, Detections, statistics
from faap.evaluation.matching import weighted_metrics

TWELVE = (*METRICS, "ARs", "ARm", "ARl")
CATEGORIES = {1: "person", 7: "bicycle"}


def make_record(image_id, group, boxes, labels=None, crowd=None, pair=None):
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    return Record(
        image_id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=200,
        height=150,
        group=group,
        boxes=boxes,
        labels=np.ones(count, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64),
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(count, dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool),
        pair=pair,
    )


def random_boxes(rng, count):
    low = rng.uniform(0, 100, (count, 2))
    return np.concatenate([low, rng.uniform(8, 90, (count, 2))], axis=1)


def random_detections(rng, truth, *, quality=4.0, extra=4, levels=0):
    """Each ground truth found with a box off by a few pixels, twice at times, and some boxes of nothing."""
    again = rng.random(len(truth.labels)) < 0.3
    boxes = np.concatenate([truth.boxes, truth.boxes[again], random_boxes(rng, extra)])
    boxes = boxes + rng.normal(0, quality, boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1.0)
    labels = np.concatenate([truth.labels, truth.labels[again], rng.choice(list(CATEGORIES), extra)])
    scores = 0.7 * rng.random(len(boxes)) ** 2 + 0.3 * (np.arange(len(boxes)) < len(truth.labels))
    if levels:
        scores = rng.permutation(levels)[: len(boxes)] / levels
    keep = rng.random(len(boxes)) < 0.9
    return Detections(truth.image_id, scores[keep], labels[keep], boxes[keep])


def random_split(seed, images=12, *, groups=("female", "male"), paired=False, crowds=True, levels=0):
    """A split with `images` images of each group, and its detections before and after.

    With `levels`, scores are multiples of 1 / levels: many are equal, though never two in the same image.
    """
    rng = np.random.default_rng(seed)
    records = []
    for group in groups:
        for i in range(images):
            count = int(rng.integers(0, 5))
            records.append(
                make_record(
                    len(records) + 10,
                    group,
                    random_boxes(rng, count),
                    rng.choice(list(CATEGORIES), count),
                    rng.random(count) < 0.15 if crowds else None,
                    f"scene {i}" if paired else None,
                )
            )
    split = Split(name="test", records=tuple(records), categories=CATEGORIES, anchor=groups[0], reference=groups[1])
    before, after = ([random_detections(rng, r, quality=q, levels=levels) for r in records] for q in (6.0, 3.0))
    return split, before, after


def resampled(records, detections, copies):
    """The data set in which every image occurs `copies` times, copies next to each other, renumbered."""
    order = np.repeat(np.arange(len(records)), copies)
    return (
        [replace(records[i], image_id=number) for number, i in enumerate(order, start=1)],
        [replace(detections[i], image_id=number) for number, i in enumerate(order, start=1)],
    )


def run_pycocotools(records, detections, categories=CATEGORIES):
    """pycocotools' evaluator after its run: `stats` are the twelve statistics, -1 where undefined."""
    annotations, results = [], []
    for truth, found in zip(records, detections, strict=True):
        for box, label, area, crowd in zip(truth.boxes, truth.labels, truth.areas, truth.crowd, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": truth.image_id,
                    "category_id": int(label),
                    "bbox": [float(v) for v in box],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
            results.append(
                {
                    "image_id": truth.image_id,
                    "category_id": int(label),
                    "bbox": [float(v) for v in box],
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": r.image_id, "width": r.width, "height": r.height} for r in records],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in categories.items()],
        }
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def by_brute_force(split, detections, copies):
    """group → (AP, AR@100) by pycocotools over the categories of which every group that has anything has something."""
    images, present = {}, {}
    for group in dict.fromkeys(group for record in split.records for group in record.groups):
        mine = np.array([group in record.groups for record in split.records]) * copies
        images[group] = resampled([record.ignoring_others(group) for record in split.records], detections, mine)
        present[group] = {int(label) for record in images[group][0] for label in record.labels[~record.crowd]}
    common = {
        number: name
        for number, name in split.categories.items()
        if all(number in known for known in present.values() if known)
    }
    result = {}
    for group, (records, found) in images.items():
        stats = run_pycocotools(records, found, common).stats if common and present[group] else np.full(12, -1.0)
        result[group] = np.where(stats[[0, 8]] < 0, np.nan, stats[[0, 8]])
    return result


def numbers(records, detections, categories, weights=None):
    """The twelve of one weighting in pycocotools' order, by the code under test, as means over the categories."""
    weights = np.ones(len(records), dtype=np.int32) if weights is None else weights
    each = [weighted_metrics(records, detections, one, weights[:, None], TWELVE) for one in categories]
    values = np.array([[value[0] for value in one.values()] for one in each])
    known = ~np.isnan(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


@pytest.fixture(scope="session")
def coco_numbers():
    return numbers


@pytest.fixture(scope="session")
def brute_force():
    return by_brute_force


@pytest.fixture(scope="session")
def record():
    return make_record


@pytest.fixture(scope="session")
def split_of():
    return random_split


@pytest.fixture(scope="session")
def repeat():
    return resampled


@pytest.fixture(scope="session")
def pycocotools():
    return run_pycocotools


@pytest.fixture
def few_replicates(monkeypatch):
    """Intervals of a handful of replicates, too, so that a slow way to the same numbers is quick."""
    monkeypatch.setattr(statistics, "_FEWEST", 2)
