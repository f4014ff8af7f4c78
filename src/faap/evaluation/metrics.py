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

Bools = npt.NDArray[np.bool_]
# where images lie in their split, their records and what was found in them
Images = tuple[list[int], list[Record], list[Detections]]


def check_aligned(records: Sequence[Record], detections: Sequence[Detections]) -> None:
    """Raise unless there is one entry of detections for each record, in the records' order.

    Raises:
        FaapError: naming the first place where they part.
    """
    if len(records) != len(detections):
        raise FaapError(f"{len(detections)} entries of detections for {len(records)} images; there must be one each")
    for position, (record, detected) in enumerate(zip(records, detections, strict=True)):
        if record.image_id != detected.image_id:
            found = f"entry {position} is of image {detected.image_id}, where the split has image {record.image_id}"
            raise FaapError(f"detections out of order: {found}")


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
    check_aligned(records, detections)
    return _metrics([_accumulated(records, detections, categories)])[0]


def _accumulated(records: Sequence[Record], found: Sequence[Detections], categories: Mapping[int, str]) -> Any:
    images = [{"id": record.image_id} for record in records]
    truth = _entries(records, bbox="boxes", category_id="labels", area="areas", iscrowd="crowd")
    named = [{"id": number, "name": name} for number, name in categories.items()]
    coco = COCO({"images": images, "annotations": truth, "categories": named})
    result = coco.loadRes(_entries(found, bbox="boxes", category_id="labels", score="scores"))
    evaluator = COCOeval_faster(coco, result, "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _entries(images: Sequence[Record] | Sequence[Detections], **columns: str) -> list[dict[str, Any]]:
    """Return every box as COCO's files hold it: its number, its image, and what columns of the image say of it."""
    rows = (
        (image.image_id, *row)
        for image in images
        for row in zip(*(getattr(image, column).tolist() for column in columns.values()), strict=True)
    )
    return [dict(zip(("id", "image_id", *columns), (number, *row), strict=True)) for number, row in enumerate(rows, 1)]


def _metrics(evaluators: Sequence[Any]) -> list[dict[str, float]]:
    """Read `METRICS` from accumulated evaluations, each a mean over the categories that are `comparable`."""
    # recall is (IoU thresholds, categories, sizes, detections an image), −1 without ground truth; so is precision,
    # with recall levels after the thresholds
    left_out = ~comparable([evaluator.eval["recall"].max(axis=(0, 3)) > -1 for evaluator in evaluators])
    result = []
    for evaluator in evaluators:
        evaluator.eval["recall"][:, left_out] = -1
        evaluator.eval["precision"][:, :, left_out] = -1
        evaluator.summarize()
        known = np.where(evaluator.stats < 0, np.nan, evaluator.stats)
        result.append(dict(zip(METRICS, known.tolist(), strict=False)))
    return result


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
    known = {group: split.objects(group) for group in groups_of(split)}
    compared = [group for group, objects in known.items() if objects]
    lacking = {name: [each for each in compared if name not in known[each]] for name in split.categories.values()}
    shared = [name for name, groups in lacking.items() if not groups]
    return shared, {name: groups for name, groups in lacking.items() if 0 < len(groups) < len(compared)}


def by_group(split: Split, detections: Sequence[Detections]) -> dict[str, Images]:
    """Return for each group of `groups_of` where its images lie, its records, ignoring others, and its detections.

    COCO goes through images by id, which decides between equal scores: so they are here.

    Raises:
        FaapError: as `check_aligned` and `groups_of`.
    """
    check_aligned(split.records, detections)
    result = {}
    for group in groups_of(split):
        mine = sorted(split.positions(group), key=lambda i: split.records[i].image_id)
        result[group] = mine, [split.records[i].ignoring_others(group) for i in mine], [detections[i] for i in mine]
    return result


def group_metrics(split: Split, detections: Sequence[Detections]) -> dict[str, dict[str, float]]:
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
    groups = by_group(split, detections)
    evaluators = [_accumulated(records, found, split.categories) for _, records, found in groups.values()]
    return dict(zip(groups, _metrics(evaluators), strict=True))
