"""Replicates of metrics: images, or scene pairs, drawn again with replacement."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from faap.data import Split
from faap.data.fields import called
from faap.errors import FaapError
from faap.evaluation.detections import Detections
from faap.evaluation.matching import Weights, weighted_metrics
from faap.evaluation.metrics import METRICS, Images, by_group, category_means, in_order, shared_categories
from faap.evaluation.statistics import Floats

# images, or scenes, of a group from which on a 95 % interval holds the truth about as often as it says
# (docs/evaluation.md)
ENOUGH = 100
# clusters of the same several groups from which on these are a stratum: drawn among themselves, few hardly vary
_ALIKE = 20
# group -> metric -> (1 + samples,) its value in the split itself and in every replicate
Replicates = dict[str, dict[str, Floats]]


def check_resampling(split: Split) -> list[list[list[int]]]:
    """Return what is drawn in place of what: strata of clusters of images, by position.

    A cluster is the images that share `Record.pair` (both twins of a scene come and go together), or a single image
    without one; a stratum is the clusters of the same groups. Those of rare mixtures (`_ALIKE`) are one together.

    Raises:
        FaapError: if the anchor or the reference group has fewer than two clusters, too few for confidence intervals.
    """
    strata, counts = _strata(split)
    for group in (split.anchor, split.reference):
        if counts[group] < 2:
            wanted = "a confidence interval needs at least two of each group, so add images"
            raise FaapError(f"group '{group}' has a single image or scene; {wanted}")
    return strata


def too_few(split: Split) -> list[str]:
    """Say which groups have so few images, or scenes, that their intervals are narrower than they should be."""
    _, counts = _strata(split)
    few = [f"{counts[group]} of {called(group)}" for group in split.counts() if counts[group] < ENOUGH]
    said = f"with fewer than {ENOUGH} a 95 % interval holds the truth less often than that, and a p-value is too small"
    return [f"Of few images or scenes ({', '.join(few)}) the error is not well known: {said}."] if few else []


def _strata(split: Split) -> tuple[list[list[list[int]]], Counter[str]]:
    """Return the strata, and how many clusters each group is in."""
    clusters: dict[int | str, list[int]] = defaultdict(list)
    for i, record in enumerate(split.records):
        clusters[i if record.pair is None else record.pair].append(i)
    alike: dict[frozenset[str], list[list[int]]] = defaultdict(list)
    for members in clusters.values():
        alike[frozenset(group for i in members for group in split.records[i].groups)].append(members)
    strata, counts = defaultdict[frozenset[str] | None, list[list[int]]](list), Counter[str]()
    for groups, drawn in alike.items():
        counts.update(dict.fromkeys(groups, len(drawn)))
        strata[groups if len(groups) < 2 or len(drawn) >= _ALIKE else None] += drawn
    return list(strata.values()), counts


def draw(split: Split, samples: int, seed: int) -> npt.NDArray[np.int32]:
    """Draw bootstrap replicates of a split, as copies of each image: (images, 1 + samples), the split itself first.

    Clusters are drawn with replacement among those of their stratum (`check_resampling`), as many as there are.
    Replicate b depends on (seed, b) alone.
    """
    if samples < 0:
        raise FaapError(f"{samples} bootstrap samples; there must be 0 (none) or more")
    weights = np.ones((len(split.records), 1 + samples), dtype=np.int32)
    generators = [np.random.default_rng([seed, replicate]) for replicate in range(samples)]
    for clusters in check_resampling(split) if samples else []:
        n = len(clusters)
        copies = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for rng in generators], axis=1)
        weights[np.concatenate(clusters), 1:] = np.repeat(copies, [len(each) for each in clusters], axis=0)
    return weights


def drawn_anew(weights: Weights, positions: Sequence[int]) -> Floats:
    """Return (R,) ones; nan for the replicates of images that are all drawn once each time, as a single one is.

    Nobody knows from it how it would vary, and an interval without width would say that it does not.
    """
    result = np.ones(weights.shape[1])
    result[1:] = np.nan if (weights[positions] == 1).all() else 1
    return result


def _measure(
    parts: Mapping[str, Images], categories: Collection[int], weights: npt.NDArray[np.int32], metrics: Sequence[str]
) -> Replicates:
    """Numbers under (images, R) weights: means over the categories of which all groups have ground truth of that size.

    Which those are is asked anew for each of the R data sets.
    """
    values = {}
    for group, (positions, records, found) in parts.items():
        each = [weighted_metrics(records, found, one, weights[positions], metrics) for one in categories]
        values[group] = np.array([list(one.values()) for one in each])  # (categories, metrics, R)
    means = {group: each * drawn_anew(weights, parts[group][0]) for group, each in category_means(values).items()}
    return {group: dict(zip(metrics, each, strict=True)) for group, each in means.items()}


def group_metrics(split: Split, detections: Sequence[Detections]) -> dict[str, dict[str, float]]:
    """Measure each group on its own; where people of others are in the image, their boxes are ignored.

    Each metric is a mean over those categories of which every group has ground truth (of that size); see `comparable`.

    Args:
        split: images of any number of groups.
        detections: one entry a record, in the same order.

    Returns:
        group → `METRICS`, nan where there is no ground truth; the anchor group first, the reference group second.

    Raises:
        FaapError: if the detections do not belong to the split, or the anchor or reference group has no image.
    """
    return the_split_itself(*replicate(split, detections, samples=0))


def the_split_itself(found: Replicates) -> dict[str, dict[str, float]]:
    """Return group → metric → its value without anything redrawn."""
    return {group: {name: float(value[0]) for name, value in values.items()} for group, values in found.items()}


def replicate(
    split: Split,
    *detections: Sequence[Detections],
    samples: int = 1000,
    seed: int = 0,
    metrics: Sequence[str] = METRICS,
) -> list[Replicates]:
    """Measure detectors on the same redrawn images.

    Scene pairs (`Record.pair`) are drawn as one, other images on their own, of each always as many as the split has.
    Matching is done once; each replicate accumulates its numbers anew.

    Args:
        split: the images.
        detections: of each detector, one entry a record in the same order.
        samples: replicates; 0 for none.
        seed: 0 or more.
        metrics: which of COCO's; see `weighted_metrics`.

    Returns:
        For each detector: group → metric → (1 + samples,), the split itself first; nan where a replicate has nothing to
        find.

    Raises:
        FaapError: if detections and split do not belong together, or a group has fewer than two images or scenes.
    """
    weights = draw(split, samples, seed)
    return [_measure(by_group(split, each), split.categories, weights, metrics) for each in detections]


def replicate_all(
    split: Split, *detections: Sequence[Detections], samples: int, seed: int, metrics: Sequence[str]
) -> list[dict[str, Floats]]:
    """Measure detectors on all images at once, whoever is in them; drawn, and in the same categories, as `replicate`.

    Returns:
        For each detector: metric → (1 + samples,).
    """
    weights, shared = draw(split, samples, seed), shared_categories(split)
    parts = [{"": in_order(range(len(split.records)), split.records, each)} for each in detections]
    return [_measure(part, shared, weights, metrics)[""] for part in parts]
