"""What a perturbation does: how large it is, whom it helps and harms, what survives, whether it tells the group."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from scipy.stats import norm

from faap.audit.errors import KINDS, TOTALS
from faap.audit.side import costs_of, sides_of
from faap.data import STD, FaapImages, Split, collate
from faap.detectors import FrozenDetector
from faap.evaluation import Detections, MetricFrame, detect, detect_baseline
from faap.evaluation.arrival import Arrival
from faap.evaluation.bootstrap import check_resampling, draw
from faap.evaluation.detections import mean_distance, perturb_as_deployed
from faap.evaluation.matching import count_found
from faap.evaluation.metrics import by_group
from faap.evaluation.statistics import Floats, change
from faap.perturbation import Generator, quantise
from faap.weights import a_weight

ARRIVALS = {
    "JPEG 95": Arrival(jpeg=95),
    "JPEG 75": Arrival(jpeg=75),
    "resized to 90 %": Arrival(resize=0.9),
    "resized to 110 %": Arrival(resize=1.1),
}
# cells across and down that a perturbation is averaged in for the probe, and parts that the images are divided into
_CELLS, _FOLDS = 8, 5
# a change counts as at the bound from this share of it on
_AT_BOUND = 0.999


def audit_perturbation(
    detector: FrozenDetector,
    generator: Generator,
    split: Split,
    before: Sequence[Detections],
    *,
    score: float = 0.5,
    samples: int = 500,
    seed: int = 0,
    transfer: FrozenDetector | None = None,
    console: Console | None = None,
    **loading: Any,
) -> dict[str, Any]:
    """Measure what a generator changes, everything before and after on the same images.

    Args:
        detector: that it is in front of.
        generator: on the same device.
        split: the images.
        before: what the detector finds without it.
        score: from which on a deployment takes a detection for true.
        samples: bootstrap replicates.
        seed: of the bootstrap.
        transfer: a detector that it was not trained for.
        console: where to show bars.
        loading: further options of `detect`.

    Returns:
        The entry "perturbation" of audit.json (docs/audit.md).
    """
    options: Any = {"console": console} | loading
    drawn: Any = {"samples": samples, "seed": seed, "metrics": ["AP", "AP50", "AR100"]}
    after = detect(detector, split, generator, with_distance=True, **options)

    def moved(*found: Sequence[Detections]) -> dict[str, Any]:
        frame = MetricFrame(split, *found, **drawn)
        return {"gaps": frame.difference, "groups": frame.by_group}

    survival = {}
    for name, arrival in ARRIVALS.items():
        alone = detect_baseline(detector, split, arrival=arrival, **options)
        survival[name] = moved(alone, detect(detector, split, generator, arrival=arrival, **options))
    traces, sizes = _traces(detector, generator, split)
    result: dict[str, Any] = {"epsilon": generator.epsilon} | mean_distance(after) | sizes
    result |= moved(before, after) | {"survival": survival}
    result["errors"] = _errors(split, before, after, samples, seed)
    result["found"] = who_is_found(split, before, after, score)
    result["probe"] = {name: probe(split, values) for name, values in traces.items()}
    if transfer is not None:
        split = split.with_categories(transfer.label_map(split.categories))
        alone = detect_baseline(transfer, split, **options)
        result["transfer"] = {"detector": transfer.name} | moved(alone, detect(transfer, split, generator, **options))
    return result


def _errors(split: Split, before: Any, after: Any, samples: int, seed: int) -> dict[str, Any]:
    """What each kind of error costs each group, before and after."""
    weights = draw(split, samples, seed)
    costs = [costs_of(sides_of(split, found, weights)) for found in (before, after)]
    return {
        kind: {group: change(*(each[group][place] for each in costs)) for group in costs[0]}
        for place, kind in enumerate((*KINDS, *TOTALS), 1)
    }


def who_is_found(
    split: Split, before: Sequence[Detections], after: Sequence[Detections], score: float
) -> dict[str, Any]:
    """In how many images of each group more is found at a score than before, and in how many and which less."""
    result = dict[str, dict[str, Any]]()
    pairs = zip(by_group(split, before).items(), by_group(split, after).values(), strict=True)
    for (group, (_, records, old)), (_, _, new) in pairs:
        counts = [[count_found(*each, score) for each in zip(records, found, strict=True)] for found in (old, new)]
        more = [b - a for a, b in zip(*counts, strict=True)]
        worse = [record.path.name for record, by in zip(records, more, strict=True) if by < 0]
        result[group] = {"images": len(records), "better": sum(by > 0 for by in more)}
        result[group] |= {"worse": len(worse), "files": worse}
    return result


@torch.no_grad()
def _traces(detector: FrozenDetector, generator: Generator, split: Split) -> tuple[dict[str, Floats], dict[str, float]]:
    """Return what a probe reads, (images, …) each, and the mean L2 in levels of 255 and the share at the bound."""
    images = FaapImages(split, detector.preprocessing, detector.label_map(split.categories))
    device, parts, sizes = a_weight(generator).device, dict[str, list[Floats]](), []
    for start in range(0, len(images), 16):
        batch = collate([images[i] for i in range(start, min(start + 16, len(images)))]).to(device)
        pixels, mask = batch.pixel_values, batch.pixel_mask
        perturbed = perturb_as_deployed(generator, pixels, mask)
        rounded = quantise(perturbed)
        # each image without its padding, which is no part of it
        cut = [(slice(None), slice(0, height), slice(0, width)) for height, width in batch.valid.tolist()]
        moved = [(after - before)[c] for after, before, c in zip(rounded, pixels, cut, strict=True)]
        pooled = [F.adaptive_avg_pool2d(torch.cat([each, each.abs()]), _CELLS).flatten() for each in moved]
        found = {"the perturbation": torch.stack(pooled)}
        for name, values in (("features before", pixels), ("features after", rounded)):
            found[name] = detector(*detector.adapt(values, mask)).features.float().mean(1)
        for name, each in found.items():
            parts.setdefault(name, []).append(each.double().cpu().numpy())
        levels = 255 * torch.tensor(STD, device=device)[:, None, None]
        for each, unrounded, c in zip(moved, perturbed - pixels, cut, strict=True):
            bound = (unrounded[c].abs() >= _AT_BOUND * generator.epsilon).float().mean()
            sizes.append((float((each * levels).square().sum().sqrt()), float(bound)))
    length, bound_share = np.mean(sizes, axis=0).tolist()
    return {name: np.concatenate(each) for name, each in parts.items()}, {"l2_pixels": length, "at_bound": bound_share}


def probe(split: Split, values: Floats) -> dict[str, Any] | None:
    """How well a linear classifier (ridge) tells anchor from reference group, in images that it was not fitted to.

    Images of one scene lie in the same of five parts. Images of both groups, or of others, are left out.

    Args:
        split: the images.
        values: (images, D) what it reads.

    Returns:
        images, accuracy, ci95 (Wilson's, of fewer images where those of a scene are right or wrong together), and
        chance, the share of the larger group; None for too few scenes.
    """
    scene = np.zeros(len(values), dtype=int)
    for number, cluster in enumerate(cluster for stratum in check_resampling(split) for cluster in stratum):
        scene[cluster] = number
    mine = np.array([record.group in (split.anchor, split.reference) for record in split.records])
    values, scene = values[mine], scene[mine]
    target = np.array([1.0 if record.group == split.anchor else -1.0 for record in split.records])[mine]
    if min(len(np.unique(scene[target == side])) for side in (1, -1)) < 2 * _FOLDS:
        return None
    right = np.zeros(len(target))
    for part in range(_FOLDS):
        fitted = scene % _FOLDS != part
        mean, spread = values[fitted].mean(0), values[fitted].std(0) + 1e-12
        known, level = (values[fitted] - mean) / spread, target[fitted].mean()
        ridge = known.T @ known + 0.1 * len(known) * np.eye(known.shape[1])
        slope = np.linalg.solve(ridge, known.T @ (target[fitted] - level))
        said = (values[~fitted] - mean) / spread @ slope + level
        right[~fitted] = np.sign(said) == target[~fitted]
    accuracy, count, off = float(right.mean()), len(np.unique(scene)), right - right.mean()
    if off.any():
        count = len(right) / max(1.0, (np.bincount(scene, off) ** 2).sum() / (off**2).sum())
    z2 = norm.ppf(0.975) ** 2 / count
    half = np.sqrt(z2 * (accuracy * (1 - accuracy) + z2 / 4))
    ci95 = [float(accuracy + z2 / 2 + side * half) / (1 + float(z2)) for side in (-1, 1)]
    return {"images": len(target), "accuracy": accuracy, "ci95": ci95, "chance": (1 + abs(float(target.mean()))) / 2}
