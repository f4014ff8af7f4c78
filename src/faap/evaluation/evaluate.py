"""The whole evaluation of a generator: what becomes metrics.json."""

from collections.abc import Sequence
from typing import Any

from faap.data import Dataset, Split
from faap.detectors import FrozenDetector
from faap.detectors.base import unchanged
from faap.evaluation.arrival import AS_MADE, Arrival
from faap.evaluation.baseline import detect_baseline
from faap.evaluation.bootstrap import check_resampling, the_split_itself, too_few
from faap.evaluation.criteria import success_criteria, warnings_about
from faap.evaluation.detections import Detections, detect, mean_distance
from faap.evaluation.frame import MetricFrame
from faap.evaluation.gaps import GAPS, without_nan
from faap.evaluation.metrics import check_aligned, comparable_categories
from faap.evaluation.provenance import provenance
from faap.perturbation import Generator


def measurable(detector: FrozenDetector, dataset: Dataset, split: str, *, bootstrap: bool = True) -> Split:
    """Return a split with what a detector can be measured by: the classes that both know, since others it cannot name.

    Raises:
        FaapError: if the split does not exist, detector and data set share no category, or, for the bootstrap, a group
            has fewer than two images or scenes; so it is found out before the detector runs.
    """
    images = dataset.split(split)
    images = images.with_categories(detector.label_map(images.categories))
    if bootstrap:
        check_resampling(images)
    return images


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
    arrival: Arrival = AS_MADE,
    baseline: Sequence[Detections] | None = None,
    perturbed: Sequence[Detections] | None = None,
) -> dict[str, Any]:
    """Measure both groups with and without the generator, the gaps with their error, and the success criteria.

    Args:
        detector: the frozen detector.
        generator: put in front of it, on the same device.
        dataset: the data set.
        split: name of its split.
        batch_size: images at a time.
        bootstrap: replicates for intervals, p-values and verdicts; 0 for none.
        seed: of the bootstrap, 0 or more.
        absolute: hold the result against the original study's numbers instead of shares of the baseline.
        arrival: what is done to the images before the detector sees them, with and without the generator.
        baseline: the detector's detections without the generator, if they are known.
        perturbed: those with the generator, if they are known, and how far it moved the images, if that is.

    Returns:
        The content of metrics.json, ready for JSON (None for what cannot be computed): split, images {group: n},
        categories [those that are averaged over], categories_left_out {name: [groups that lack it]}, skipped_records
        (if broken ones are left out), baseline and perturbed {group: metrics}, the anchor group first and the reference
        group second, gap {AP, AR}, gaps {each group but the reference: {metric: the same keys}}, changes {group:
        {metric: the same keys}}, success, warnings [what makes the result worthless], perturbation, provenance,
        detector_sha256. The keys of a change are those of `MetricFrame`.

    Raises:
        FaapError: if the split does not exist, an image cannot be read, detector and data set share no category, or
            a group has fewer than two images or scenes to bootstrap from.
    """
    images = measurable(detector, dataset, split, bootstrap=bootstrap > 0)
    with unchanged(detector) as known:
        if baseline is None:
            baseline = detect_baseline(detector, images, batch_size=batch_size, arrival=arrival)
        check_aligned(images.records, baseline)
        if perturbed is None:
            perturbed = detect(detector, images, generator, batch_size=batch_size, with_distance=True, arrival=arrival)
    frame = MetricFrame(images, baseline, perturbed, samples=bootstrap, seed=seed)
    before, after = map(the_split_itself, frame.drawn)
    categories, left_out = comparable_categories(images)
    result: dict[str, Any] = {"split": split, "images": {group: len(images.positions(group)) for group in before}}
    result |= {"categories": categories, "categories_left_out": left_out}
    result |= {"skipped_records": len(dataset.read(split).problems)} if dataset.skip_bad else {}
    result |= {"baseline": before, "perturbed": after}
    result["gap"] = {name: frame.difference[images.anchor][metric] for name, metric in GAPS.items()}
    result |= {"gaps": frame.difference, "changes": frame.by_group}
    result["success"] = success_criteria(before, after, frame.drawn, absolute=absolute)
    result["warnings"] = warnings_about(before, after, absolute=absolute) + (too_few(images) if bootstrap else [])
    result["perturbation"] = {"epsilon": generator.epsilon, **vars(arrival), **mean_distance(perturbed)}
    result["provenance"] = provenance(detector, generator, dataset, split)
    return without_nan(result | {"detector_sha256": known})
