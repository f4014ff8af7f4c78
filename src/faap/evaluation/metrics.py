"""COCO's box metrics, for a set of images and for each group of a split."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from faap.data import Record, Split
from faap.errors import FaapError
from faap.evaluation.detections import Detections
from faap.evaluation.matching import Bools
from faap.evaluation.statistics import Floats

# in [0, 1]: AP is the mean over IoU .50 to .95, s, m, l are boxes below 32², up to 96² and above 96² square pixels, and
# AR1, AR10, AR100 the recall with so many detections an image; https://cocodataset.org/#detection-eval
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
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


def category_means(values: Mapping[str, Floats]) -> dict[str, Floats]:
    """Average each group's numbers (categories, ...), nan without ground truth, over the `comparable` categories."""
    counted = comparable([~np.isnan(each) for each in values.values()])
    with np.errstate(invalid="ignore"):  # where there is nothing to find, 0 / 0 is nan
        return {group: np.where(counted, each, 0.0).sum(0) / counted.sum(0) for group, each in values.items()}


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


def shared_categories(split: Split) -> list[int]:
    """Return the ids of the categories that a split's groups are compared in."""
    names, _ = comparable_categories(split)
    return [number for number, name in split.categories.items() if name in names]


def by_group(split: Split, detections: Sequence[Detections]) -> dict[str, Images]:
    """Return for each group of `groups_of` where its images lie, its records, ignoring others, and its detections.

    Raises:
        FaapError: as `check_aligned` and `groups_of`.
    """
    check_aligned(split.records, detections)
    result = {}
    for group in groups_of(split):
        positions, records, found = in_order(split.positions(group), split.records, detections)
        result[group] = positions, [record.ignoring_others(group) for record in records], found
    return result


def in_order(positions: Iterable[int], records: Sequence[Record], detections: Sequence[Detections]) -> Images:
    """Return some images of a split in the order of their ids, which decides between equal scores."""
    mine = sorted(positions, key=lambda i: records[i].image_id)
    return mine, [records[i] for i in mine], [detections[i] for i in mine]
