"""COCO's box metrics, for a set of images and for each group of a split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from faap.data import Record, Split
from faap.errors import FaapError
from faap.evaluation.detections import Detections

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100

GroupMetrics = dict[str, dict[str, float]]
Bools = npt.NDArray[np.bool_]


def check_aligned(records: Sequence[Record], detections: Sequence[Detections]) -> None:
    """Raise unless there is one entry of detections for each record, in the records' order.

    Raises:
        FaapError: naming the first place where they part.
    """
    if len(records) != len(detections):
        raise FaapError(f"{len(detections)} entries of detections for {len(records)} images; there must be one each")
    for position, (record, detected) in enumerate(zip(records, detections, strict=True)):
        if record.image_id != detected.image_id:
            raise FaapError(
                f"detections out of order: entry {position} is of image {detected.image_id}, "
                f"the split has image {record.image_id} there"
            )


def coco_metrics(
    records: Sequence[Record], detections: Sequence[Detections], categories: Mapping[int, str]
) -> dict[str, float]:
    """COCO's average precision and recall over boxes.

    Args:
        records: images with their ground truth.
        detections: one entry a record, in the same order; labels are data set category ids.
        categories: data set category id → name; all of them are evaluated.

    Returns:
        AP (AP@[.50:.95]), AP50, AP75, APs, APm, APl (below 32², up to 96², above 96² square pixels), AR1, AR10, AR100,
        each in [0, 1]; nan where there is no ground truth.

    Raises:
        FaapError: if the detections do not belong to the records.

    Source: https://cocodataset.org/#detection-eval
    """
    return _summarise(_accumulated(records, detections, categories))


def _accumulated(
    records: Sequence[Record], detections: Sequence[Detections], categories: Mapping[int, str]
) -> COCOeval_faster:
    check_aligned(records, detections)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for record, detected in zip(records, detections, strict=True):
        for box, label, area, crowd in zip(record.boxes, record.labels, record.areas, record.crowd, strict=True):
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": record.image_id,
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
        for box, label, score in zip(
            detected.boxes.tolist(), detected.labels.tolist(), detected.scores.tolist(), strict=True
        ):
            found.append({"image_id": record.image_id, "category_id": label, "bbox": box, "score": score})
    coco = COCO(
        {
            "images": [{"id": r.image_id, "width": r.width, "height": r.height} for r in records],
            "annotations": truth,
            "categories": [{"id": number, "name": name} for number, name in categories.items()],
        }
    )
    evaluator = COCOeval_faster(coco, coco.loadRes(found), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _summarise(evaluator: COCOeval_faster) -> dict[str, float]:
    evaluator.summarize()
    return {
        name: float("nan") if value < 0 else float(value) for name, value in zip(METRICS, evaluator.stats, strict=False)
    }


def groups_of(split: Split) -> tuple[str, ...]:
    """The groups that occur in a split: anchor, reference, then any others by name.

    Raises:
        FaapError: if the anchor or the reference group has no image.
    """
    counts = split.counts()
    for group in (split.anchor, split.reference):
        if group not in counts:
            raise FaapError(f"the {split.name} split has no image of group '{group}'; it has {', '.join(counts)}")
    return (split.anchor, split.reference, *sorted(set(counts) - {split.anchor, split.reference}))


def comparable(present: Sequence[Bools]) -> Bools:
    """Return which categories may be averaged over: those of which every group has ground truth.

    A mean over other categories in one group than in another would show a gap where there is none. A group without any
    ground truth has no mean and rules nothing out.

    Args:
        present: for each group (categories, ...) whether it has ground truth.

    Returns:
        (categories, ...).
    """
    result: Bools = np.logical_and.reduce([has | ~has.any(axis=0) for has in present])
    return result


def comparable_categories(split: Split) -> tuple[list[str], dict[str, list[str]]]:
    """Name the categories that a split's groups are compared in, and those they are not.

    Returns:
        The names of the first; for each of the others, of which some groups have ground truth, the groups that lack it.
    """
    known = {
        group: {int(label) for record in split.group(group) for label in record.labels[~record.crowd]}
        for group in groups_of(split)
    }
    known = {group: labels for group, labels in known.items() if labels}
    shared, lacking = [], {}
    for category, name in split.categories.items():
        without = [group for group, labels in known.items() if category not in labels]
        if not without:
            shared.append(name)
        elif len(without) < len(known):
            lacking[name] = without
    return shared, lacking


def group_metrics(split: Split, detections: Sequence[Detections]) -> GroupMetrics:
    """`coco_metrics` of each group on its own; where people of others are in the image, their boxes are ignored.

    Each metric is a mean over those categories of which every group has ground truth (of that size); see `comparable`.

    Args:
        split: images of any number of groups.
        detections: one entry a record, in the same order.

    Returns:
        group → metrics; the anchor group first, the reference group second.

    Raises:
        FaapError: if the detections do not belong to the split, or the anchor or reference group has no image.
    """
    check_aligned(split.records, detections)
    evaluators = {
        group: _accumulated(split.group(group), [detections[i] for i in split.positions(group)], split.categories)
        for group in groups_of(split)
    }
    # recall is (IoU thresholds, categories, sizes, detections an image), −1 without ground truth; so is precision,
    # with recall levels after the thresholds
    left_out = ~comparable([evaluator.eval["recall"].max(axis=(0, 3)) > -1 for evaluator in evaluators.values()])
    for evaluator in evaluators.values():
        evaluator.eval["recall"][:, left_out] = -1
        evaluator.eval["precision"][:, :, left_out] = -1
    return {group: _summarise(evaluator) for group, evaluator in evaluators.items()}
