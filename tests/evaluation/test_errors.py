"""TIDE's errors, against detections that are put right one by one and measured by pycocotools."""

from dataclasses import replace

import numpy as np
import pytest
from faster_coco_eval import mask

from faap.audit.errors import KINDS, TOTALS, error_costs, find_errors
from faap.evaluation import Detections

CATEGORIES = (1, 7)


def costs_of(records, detections, weights):
    """AP50 and what each kind costs, means over the categories."""
    errors = [find_errors(*each, CATEGORIES) for each in zip(records, detections, strict=True)]
    base, *costs = error_costs(records, errors, CATEGORIES, weights).mean(axis=0)
    return base, dict(zip((*KINDS, *TOTALS), costs, strict=True))


def iou(one, other):
    return float(mask.iou(np.array([one]), np.array([other]), np.zeros(1, dtype=bool))[0, 0])


def named_slowly(record, detected):
    """kind (or "right", "ignored") of each detection, which object it is about, and the objects missed."""
    objects = [i for i in range(len(record.boxes)) if not record.crowd[i]]
    order = sorted(range(len(detected.scores)), key=lambda d: -detected.scores[d])
    taken, names, about = {}, {}, {}
    for d in order:
        mine = [(iou(detected.boxes[d], record.boxes[i]), i) for i in objects if record.labels[i] == detected.labels[d]]
        free = [(overlap, i) for overlap, i in mine if i not in taken and overlap >= 0.5]
        if free:
            taken[max(free)[1]] = d
            names[d], about[d] = "right", max(free)[1]
    for d in order:
        if d in names:
            continue
        crowds = [
            mask.iou(detected.boxes[[d]], record.boxes[[i]], np.ones(1, dtype=bool))[0, 0]
            for i in range(len(record.boxes))
            if record.crowd[i] and record.labels[i] == detected.labels[d]
        ]
        own = [(iou(detected.boxes[d], record.boxes[i]), i) for i in objects if record.labels[i] == detected.labels[d]]
        other = [
            (iou(detected.boxes[d], record.boxes[i]), i) for i in objects if record.labels[i] != detected.labels[d]
        ]
        best = max(own, default=(0, None), key=lambda each: each[0])
        wrong = max(other, default=(0, None), key=lambda each: each[0])
        if any(overlap >= 0.5 for overlap in crowds):
            names[d] = "ignored"
        elif 0.1 <= best[0] < 0.5:
            names[d], about[d] = "localisation", best[1]
        elif wrong[0] >= 0.5:
            names[d], about[d] = "classification", wrong[1]
        elif any(overlap >= 0.5 and i in taken for overlap, i in own):
            names[d] = "duplicate"
        elif max(best[0], wrong[0]) <= 0.1:
            names[d] = "background"
        else:
            names[d] = "both"
    wished = {about[d] for d in names if names[d] in ("localisation", "classification")}
    return names, about, taken, [i for i in objects if i not in taken and i not in wished]


def mended(record, detected, kind):
    """The image and its detections with one kind of error put right."""
    names, about, taken, missed = named_slowly(record, detected)
    boxes, labels, kept = detected.boxes.copy(), detected.labels.copy(), np.ones(len(detected.scores), dtype=bool)
    wishes = [d for d in names if names[d] in ("localisation", "classification") and about[d] not in taken]
    for d, name in names.items():
        if kind == "false positives":
            kept[d] = name in ("right", "ignored")
        elif name == kind:
            rivals = [other for other in wishes if about[other] == about.get(d)]
            kept[d] = d in wishes and detected.scores[d] == max(detected.scores[other] for other in rivals)
            if kept[d]:
                boxes[d], labels[d] = record.boxes[about[d]], record.labels[about[d]]
    asked = np.ones(len(record.boxes), dtype=bool)
    if kind == "missed":
        asked[missed] = False
    if kind == "false negatives":
        asked = record.crowd | np.isin(np.arange(len(record.boxes)), list(taken))
    return record.with_boxes(asked), Detections(detected.image_id, detected.scores[kept], labels[kept], boxes[kept])


def confused(detections):
    """Detections of which some have the other category's label."""
    rng = np.random.default_rng(1)
    return [
        replace(each, labels=np.where(rng.random(len(each.labels)) < 0.2, 8 - each.labels, each.labels))
        for each in detections
    ]


@pytest.mark.parametrize("seed", range(6))
def test_every_detection_has_its_kind(seed, split_of):
    split, detections, _ = split_of(seed, images=20)
    seen = set()
    for record, detected in zip(split.records, confused(detections), strict=True):
        names, about, _, missed = named_slowly(record, detected)
        errors = find_errors(record, detected, CATEGORIES)
        assert sorted(errors.chosen) == list(range(len(detected.scores)))
        for place, d in enumerate(errors.chosen.tolist()):
            name = "right" if errors.hits[place] else "ignored" if errors.ignored[place] else KINDS[errors.kinds[place]]
            assert name == names[d]
            assert (errors.truth[place] if errors.truth[place] >= 0 else None) == about.get(d)
            seen.add(name)
        assert sorted(errors.missed.tolist()) == missed
    assert seen >= {"right", "ignored", *KINDS} - {"missed"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [*KINDS, *TOTALS])
def test_what_a_kind_costs_is_what_pycocotools_finds_once_it_is_put_right(kind, seed, split_of, pycocotools):
    # without crowds: what is moved onto an object may not be ignored on its way
    split, detections, _ = split_of(seed, images=10, crowds=False)
    detections = confused(detections)
    weights = np.ones((len(split.records), 1), dtype=np.int32)
    base, costs = costs_of(split.records, detections, weights)
    before = pycocotools(split.records, detections).stats[1]
    assert base[0] == pytest.approx(before, abs=1e-9)
    pairs = [mended(*each, kind) for each in zip(split.records, detections, strict=True)]
    after = pycocotools(*zip(*pairs, strict=True)).stats[1]
    assert costs[kind][0] == pytest.approx(after - before, abs=1e-9)
    assert costs[kind][0] != 0


def test_redrawn_data_sets_are_those_with_copies(split_of, repeat):
    split, detections, _ = split_of(4, images=10)
    copies = np.random.default_rng(0).integers(0, 3, (len(split.records), 3)).astype(np.int32)
    base, costs = costs_of(split.records, detections, copies)
    for column in range(3):
        records, found = repeat(split.records, detections, copies[:, column])
        one, alone = costs_of(records, found, np.ones((len(records), 1), dtype=np.int32))
        assert base[column] == pytest.approx(one[0], abs=1e-9)
        for kind in costs:
            assert costs[kind][column] == pytest.approx(alone[kind][0], abs=1e-9)


def test_an_image_without_objects_has_background_errors_alone(record):
    empty = record(1, "female", [])
    found = Detections(1, np.array([0.9, 0.2]), np.array([1, 7]), np.array([[1.0, 1, 30, 30], [50, 50, 9, 9]]))
    errors = find_errors(empty, found, CATEGORIES)
    assert [KINDS[kind] for kind in errors.kinds] == ["background"] * 2
    nothing = replace(found, scores=np.zeros(0), labels=np.zeros(0, dtype=int), boxes=np.zeros((0, 4)))
    assert len(find_errors(empty, nothing, CATEGORIES).kinds) == 0
    assert find_errors(record(1, "female", [[1, 1, 9, 9]]), nothing, CATEGORIES).missed.tolist() == [0]
