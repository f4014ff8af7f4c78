"""The whole evaluation of a generator: what becomes metrics.json."""

import math
from collections.abc import Sequence
from typing import Any

from faap.data import Dataset
from faap.detectors import FrozenDetector
from faap.evaluation.baseline import detect_baseline
from faap.evaluation.bootstrap import check_resampling, paired_bootstrap
from faap.evaluation.criteria import success_criteria
from faap.evaluation.detections import Detections, detect_and_compare
from faap.evaluation.metrics import check_aligned, group_metrics
from faap.perturbation import Generator


def evaluate(
    detector: FrozenDetector,
    generator: Generator,
    dataset: Dataset,
    split: str = "test",
    *,
    batch_size: int = 16,
    bootstrap: int = 1000,
    seed: int = 0,
    absolute: bool = False,
    baseline: Sequence[Detections] | None = None,
) -> dict[str, Any]:
    """Measure both groups with and without the generator, the gaps with their error, and the success criteria.

    Args:
        detector: the frozen detector.
        generator: put in front of it, on the same device.
        dataset: the data set.
        split: name of its split.
        batch_size: images at a time.
        bootstrap: replicates for intervals and p-values; 0 for none.
        seed: of the bootstrap, 0 or more.
        absolute: hold the result against the original study's numbers instead of shares of the baseline.
        baseline: the detector's detections without the generator, if they are known.

    Returns:
        The content of metrics.json, ready for JSON (None for what cannot be computed): split, images {group: n},
        categories [those that data set and detector share], skipped_records (if broken ones are left out),
        baseline and perturbed {group: metrics}, the anchor group first and the reference group second, gap {AP, AR},
        success, perturbation, detector_sha256.

    Raises:
        FaapError: if the split does not exist, an image cannot be read, detector and data set share no category, or
            a group has fewer than two images or scenes to bootstrap from.
    """
    images = dataset.split(split)
    # what the detector cannot name it cannot find: only the classes that both know are measured
    images = images.with_categories(detector.label_map(images.categories))
    if bootstrap:
        # a data set too small for its errors is found out before the detector runs
        check_resampling(images)
    if baseline is None:
        baseline = detect_baseline(detector, images, batch_size=batch_size)
    check_aligned(images.records, baseline)
    perturbed, distance = detect_and_compare(detector, images, generator, batch_size=batch_size)
    before, after = group_metrics(images, baseline), group_metrics(images, perturbed)
    counts = images.counts()
    result: dict[str, Any] = _without_nan(
        {
            "split": split,
            "images": {group: counts[group] for group in before},
            "categories": list(images.categories.values()),
            **({"skipped_records": len(dataset.read(split).problems)} if dataset.skip_bad else {}),
            "baseline": before,
            "perturbed": after,
            "gap": paired_bootstrap(images, baseline, perturbed, samples=bootstrap, seed=seed),
            "success": success_criteria(
                before, after, anchor=images.anchor, reference=images.reference, absolute=absolute
            ),
            "perturbation": {"epsilon": generator.epsilon, **distance},
            "detector_sha256": detector.tensors_sha256(),
        }
    )
    return result


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
