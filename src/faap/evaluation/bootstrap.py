"""Error bars of gaps: images, or scene pairs, drawn again with replacement."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from faap.data import Split
from faap.errors import FaapError
from faap.evaluation.detections import Detections
from faap.evaluation.gaps import GAPS, gap
from faap.evaluation.matching import Floats, Ranking, rank
from faap.evaluation.metrics import check_aligned, comparable, groups_of
from faap.evaluation.statistics import p_value, percentile_interval

# entries of the (detections × replicates) table worked on at once: large enough to be fast, some tens of megabytes
_TABLE = 2_000_000

# group -> metric -> (1 + samples,) its value in the split itself and in every replicate
Replicates = dict[str, dict[str, Floats]]


class Resampling:
    """Bootstrap replicates of a split, as copies of each image.

    What is drawn is a cluster: the images that share `Record.pair` (both twins of a scene come and go together), or a
    single image without one. Clusters are drawn with replacement among those of the same composition of groups, so
    every replicate has as many images of each group as the split. Replicate b depends on (seed, b) alone.

    Args:
        split: the images.
        seed: 0 or more.

    Raises:
        FaapError: if the anchor or the reference group has fewer than two clusters.
    """

    def __init__(self, split: Split, seed: int) -> None:
        records = split.records
        clusters: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i, record in enumerate(records):
            clusters[("image", str(i)) if record.pair is None else ("pair", record.pair)].append(i)
        self.seed = seed
        self.cluster_of = np.empty(len(records), dtype=np.int64)
        strata: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, members in enumerate(clusters.values()):
            self.cluster_of[members] = number
            strata[tuple(sorted({group for i in members for group in records[i].groups}))].append(number)
        for group in (split.anchor, split.reference):
            count = sum(len(numbers) for composition, numbers in strata.items() if group in composition)
            if count < 2:
                raise FaapError(
                    f"group '{group}' has a single image or scene; a confidence interval needs at least two of each "
                    "group, so add images"
                )
        self.strata = [np.array(numbers) for numbers in strata.values()]

    def weights(self, replicate: int) -> npt.NDArray[np.int32]:
        """Copies of each image in one replicate, (images,)."""
        rng = np.random.default_rng([self.seed, replicate])
        copies = np.zeros(self.cluster_of.max() + 1, dtype=np.int32)
        for clusters in self.strata:
            drawn = rng.integers(len(clusters), size=len(clusters))
            copies[clusters] = np.bincount(drawn, minlength=len(clusters))
        return copies[self.cluster_of]


def check_resampling(split: Split) -> None:
    """Raise a FaapError if a split is too small for confidence intervals of its metrics."""
    Resampling(split, 0)


class _Curves:
    """Rankings of every group and category of a split, ready to be accumulated under weights."""

    def __init__(self, split: Split, detections: Sequence[Detections]) -> None:
        check_aligned(split.records, detections)
        self.groups: dict[str, tuple[list[int], list[Ranking]]] = {}
        for group in groups_of(split):
            # COCO goes through images by id, which decides between equal scores
            mine = sorted(split.positions(group), key=lambda i: split.records[i].image_id)
            records, found = [split.records[i].ignoring_others(group) for i in mine], [detections[i] for i in mine]
            self.groups[group] = mine, [rank(records, found, category) for category in split.categories]

    def accumulate(self, weights: npt.NDArray[np.int32]) -> Replicates:
        """Return AP and AR under (images, R) weights: means over the categories of which all groups have ground truth.

        Which those are is asked anew for each of the R data sets, as `group_metrics` would ask of it.
        """
        values = {}
        for group, (mine, rankings) in self.groups.items():
            rows = max([len(ranking.image) for ranking in rankings] + [1])
            width = max(1, _TABLE // rows)
            parts = [weights[mine, start : start + width] for start in range(0, weights.shape[1], width)]
            values[group] = np.concatenate(
                [[ranking.accumulate(part) for ranking in rankings] for part in parts], axis=2
            )  # (categories, 2, R)
        counted = comparable([~np.isnan(each) for each in values.values()])
        counts = counted.sum(axis=0)
        result = {}
        for group, each in values.items():
            total = np.where(counted, each, 0.0).sum(axis=0)
            means = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
            result[group] = dict(zip(GAPS.values(), means, strict=True))
        return result


def _draw(split: Split, samples: int, seed: int) -> npt.NDArray[np.int32]:
    """(images, 1 + samples) weights: the split itself first, then the replicates."""
    if samples < 0:
        raise FaapError(f"{samples} bootstrap samples; there must be 0 (none) or more")
    columns = [np.ones(len(split.records), dtype=np.int32)]
    if samples:
        resampling = Resampling(split, seed)
        columns += [resampling.weights(replicate) for replicate in range(samples)]
    return np.stack(columns, axis=1)


def _estimate(values: Floats) -> dict[str, Any]:
    """A value with its error from (1 + samples,) numbers, the value itself first."""
    finite = values[1:][np.isfinite(values[1:])]
    return {
        "value": float(values[0]),
        "standard_error": float(finite.std(ddof=1)) if len(finite) > 1 else None,
        "ci95": percentile_interval(finite),
    }


def replicate(split: Split, *detections: Sequence[Detections], samples: int = 1000, seed: int = 0) -> list[Replicates]:
    """Measure detectors on the same redrawn images.

    Scene pairs (`Record.pair`) are drawn as one, other images on their own, always as many as the split has. Matching
    is done once; each replicate accumulates AP and AR anew.

    Args:
        split: the images.
        detections: of each detector, one entry a record in the same order.
        samples: replicates; 0 for none.
        seed: 0 or more.

    Returns:
        For each detector: group → "AP" (AP@[.50:.95]) and "AR100" → (1 + samples,), the split itself first; nan where a
        replicate has nothing to find.

    Raises:
        FaapError: if detections and split do not belong together, or a group has fewer than two images or scenes.
    """
    weights = _draw(split, samples, seed)
    return [_Curves(split, each).accumulate(weights) for each in detections]


def gap_changes(before: Replicates, after: Replicates, anchor: str, reference: str) -> dict[str, dict[str, Any]]:
    """Return the change of each gap with its error; see `paired_bootstrap`."""
    result = {}
    for name, metric in GAPS.items():
        old, new = (gap(values, metric, anchor, reference) for values in (before, after))
        change = new - old
        result[name] = {
            "baseline": float(old[0]),
            "perturbed": float(new[0]),
            "change": float(change[0]),
            "relative_change": float(change[0] / old[0]) if old[0] else None,
            "ci95": percentile_interval(change[1:]),
            "p_value": p_value(change[1:]),
        }
    return result


def paired_bootstrap(
    split: Split, baseline: Sequence[Detections], perturbed: Sequence[Detections], *, samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Change of the gap (reference − anchor) with its error, from the same redrawn images before and after.

    Args:
        split: the images.
        baseline: detections without the generator, one entry a record in the same order.
        perturbed: detections with it.
        samples: replicates, drawn as in `replicate`; 0 for none (then no interval and no p-value).
        seed: 0 or more.

    Returns:
        For "AP" (AP@[.50:.95]) and "AR" (AR@100): baseline and perturbed gap, change = perturbed − baseline,
        relative_change = change / baseline gap (None for a zero gap), ci95 = percentile interval of the change,
        p_value = 2·min(P(change* ≤ 0), P(change* ≥ 0)), one added to each count, at most 1. Replicates without ground
        truth for a group are left out.

    Raises:
        FaapError: as `replicate`.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
    """
    before, after = replicate(split, baseline, perturbed, samples=samples, seed=seed)
    return gap_changes(before, after, split.anchor, split.reference)


def gap_with_error(
    split: Split, detections: Sequence[Detections], *, samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """One detector's gap with its standard error, so that detectors can be compared.

    Args:
        split: the images.
        detections: one entry a record, in the same order.
        samples: bootstrap replicates, drawn as in `replicate`.
        seed: 0 or more.

    Returns:
        For "AP" (AP@[.50:.95]) and "AR" (AR@100): value, standard_error and ci95 of the gap (reference − anchor), and
        the same three for each group under "groups".

    Raises:
        FaapError: as `replicate`.
    """
    (by_group,) = replicate(split, detections, samples=samples, seed=seed)
    return {
        name: {
            **_estimate(gap(by_group, metric, split.anchor, split.reference)),
            "groups": {group: _estimate(values[metric]) for group, values in by_group.items()},
        }
        for name, metric in GAPS.items()
    }
