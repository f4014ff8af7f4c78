"""Error bars of gaps: images, or scene pairs, drawn again with replacement."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from faap.data import Split
from faap.errors import FaapError
from faap.evaluation.detections import Detections
from faap.evaluation.matching import Floats, Ranking, rank
from faap.evaluation.metrics import check_aligned, groups_of

# entries of the (detections × replicates) table worked on at once: large enough to be fast, some tens of megabytes
_TABLE = 2_000_000


class Resampling:
    """Bootstrap replicates of a split, as copies of each image.

    What is drawn is a cluster: the images that share `Record.pair` (both twins of a scene come and go together), or a
    single image without one. Clusters are drawn with replacement among those of the same composition of groups, so
    every replicate has as many images of each group as the split. Replicate b depends on (seed, b) alone.

    Args:
        split: the images.
        seed: 0 or more.

    Raises:
        FaapError: if the anchor or the reference group has fewer than two clusters, from which no error can be told.
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
                    f"group '{group}' has a single image or scene; errors are told from two or more, so add images"
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
    """Raise a FaapError if a split is too small to tell the error of its metrics."""
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

    def accumulate(self, weights: npt.NDArray[np.int32]) -> dict[str, Floats]:
        """group → (2, R) AP and AR under (images, R) weights: means over the categories that have ground truth."""
        result = {}
        for group, (mine, rankings) in self.groups.items():
            rows = max([len(ranking.image) for ranking in rankings] + [1])
            width = max(1, _TABLE // rows)
            parts = [weights[mine, start : start + width] for start in range(0, weights.shape[1], width)]
            values = np.concatenate([[ranking.accumulate(part) for ranking in rankings] for part in parts], axis=2)
            present = ~np.isnan(values)  # (categories, 2, R)
            counts = present.sum(axis=0)
            total = np.where(present, values, 0.0).sum(axis=0)
            result[group] = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
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


def _interval(replicates: Floats) -> list[float] | None:
    """95 % percentile interval of the finite replicates; None if fewer than two are."""
    finite = replicates[np.isfinite(replicates)]
    return [float(bound) for bound in np.percentile(finite, [2.5, 97.5])] if len(finite) > 1 else None


def _p_value(replicates: Floats) -> float | None:
    """Two-sided: twice the smaller share of replicates on either side of zero, each count raised by one."""
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < 2:
        return None
    tail = 1 + min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2.0 * tail / (1 + len(finite)))


def _estimate(values: Floats) -> dict[str, Any]:
    """A value with its error from (1 + samples,) numbers, the value itself first."""
    finite = values[1:][np.isfinite(values[1:])]
    return {
        "value": float(values[0]),
        "standard_error": float(finite.std(ddof=1)) if len(finite) > 1 else None,
        "ci95": _interval(finite),
    }


def paired_bootstrap(
    split: Split,
    baseline: Sequence[Detections],
    perturbed: Sequence[Detections],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Change of the gap (reference − anchor) with its error, from the same redrawn images before and after.

    Scene pairs (`Record.pair`) are drawn as one, other images on their own, always as many as the split has. Matching
    is done once; each replicate accumulates AP and AR anew. Replicates without ground truth for a group are left out.

    Args:
        split: the images.
        baseline: detections without the generator, one entry a record in the same order.
        perturbed: detections with it.
        samples: replicates; 0 for none (then no interval and no p-value).
        seed: 0 or more.

    Returns:
        For "AP" (AP@[.50:.95]) and "AR" (AR@100): baseline and perturbed gap, change = perturbed − baseline,
        relative_change = change / baseline gap (None for a zero gap), ci95 = percentile interval of the change,
        p_value = 2·min(P(change* ≤ 0), P(change* ≥ 0)), one added to each count, at most 1.

    Raises:
        FaapError: if detections and split do not belong together, or a group has fewer than two images or scenes.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
    """
    weights = _draw(split, samples, seed)
    before, after = (
        by_group[split.reference] - by_group[split.anchor]
        for by_group in (_Curves(split, detections).accumulate(weights) for detections in (baseline, perturbed))
    )
    result = {}
    for name, old, new in zip(("AP", "AR"), before, after, strict=True):
        change = new - old  # (1 + samples,)
        result[name] = {
            "baseline": float(old[0]),
            "perturbed": float(new[0]),
            "change": float(change[0]),
            "relative_change": float(change[0] / old[0]) if old[0] else None,
            "ci95": _interval(change[1:]),
            "p_value": _p_value(change[1:]),
        }
    return result


def gap_with_error(
    split: Split, detections: Sequence[Detections], *, samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """One detector's gap with its standard error, so that detectors can be compared.

    Args:
        split: the images.
        detections: one entry a record, in the same order.
        samples: bootstrap replicates, drawn as in `paired_bootstrap`.
        seed: 0 or more.

    Returns:
        For "AP" (AP@[.50:.95]) and "AR" (AR@100): value, standard_error and ci95 of the gap (reference − anchor), and
        the same three for each group under "groups".

    Raises:
        FaapError: as `paired_bootstrap`.
    """
    by_group = _Curves(split, detections).accumulate(_draw(split, samples, seed))
    gap = by_group[split.reference] - by_group[split.anchor]
    return {
        name: {
            **_estimate(gap[row]),
            "groups": {group: _estimate(values[row]) for group, values in by_group.items()},
        }
        for row, name in enumerate(("AP", "AR"))
    }
