"""Is there a gap, how sure is it, and where does it come from: a detector's detections, taken apart."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

import faap
from faap.audit.confounders import FEWEST, balance, cells_of, describe, effective_size
from faap.audit.errors import KINDS, TOTALS
from faap.audit.examples import telling
from faap.audit.perturbation import audit_perturbation
from faap.audit.results import read_results
from faap.audit.scores import Scores
from faap.audit.side import Side, costs_of, sides_of
from faap.conform import Between, conform
from faap.data import Dataset, Split
from faap.detectors import load_detector
from faap.detectors.base import unchanged
from faap.distributed import resolve_device
from faap.errors import FaapError
from faap.evaluation import Detections, MetricFrame, detect_baseline
from faap.evaluation.bootstrap import draw, too_few
from faap.evaluation.criteria import NOTHING_TO_FIND, is_dead
from faap.evaluation.evaluate import measurable
from faap.evaluation.gaps import without_nan
from faap.evaluation.matching import Weights
from faap.evaluation.metrics import category_means, comparable_categories, in_order
from faap.evaluation.statistics import VISIBLE, Floats, percentile_interval
from faap.files import file_sha256
from faap.perturbation import load_generator
from faap.report.measure import is_test, read_before, refuse_choice, run_of
from faap.weights import tensors_sha256

DETECTOR, UNLABELLED = "the detector itself", "unlabelled objects"
# a cause is named from this share of the gap on; groups are compared if so many of the boxes of both have a counterpart
_WORTH_NAMING, _COMPARABLE = 0.1, 0.5


def audit(
    split: Split,
    detections: Sequence[Detections],
    *,
    score: float = 0.5,
    samples: int = 500,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a detector's groups, and take the gap between anchor and reference group apart.

    Args:
        split: the images, of any number of groups.
        detections: one entry a record, in the same order.
        score: from which on a deployment takes a detection for true.
        samples: bootstrap replicates; every number has its 95 % interval from them.
        seed: of the bootstrap, 0 or more.
        console: where to show a bar.

    Returns:
        The content of audit.json (docs/audit.md), ready for JSON.

    Raises:
        FaapError: an image cannot be read, detections and split do not belong together, a group has fewer than two
            images or scenes, or the groups have no category in common.
    """
    conform(score, Between(0, 1), "score")
    frame = MetricFrame(split, detections, samples=samples, seed=seed)
    names, left_out = comparable_categories(split)
    if not names:
        raise FaapError(f"the groups have no category in common, so nothing can be compared: {left_out}")
    weights = draw(split, samples, seed)
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as progress:
        with ThreadPoolExecutor(4) as pool:
            whom = "people" if list(split.categories.values()) == ["person"] else "objects"
            seen = pool.map(partial(describe, whom=whom), split.records)
            described = list(progress.track(seen, len(split.records), description="reading the images"))
        sides = sides_of(split, detections, weights)
        progress.add_task("taking the gap apart", total=None)
        result: dict[str, Any] = {
            "split": split.name,
            "anchor": split.anchor,
            "reference": split.reference,
            "images": {group: len(side.records) for group, side in sides.items()},
            "boxes": {group: len(side.image) for group, side in sides.items()},
            "categories": names,
            "categories_left_out": left_out,
            "score": score,
            "samples": samples,
        }
        result |= {"groups": frame.by_group, "gaps": frame.difference, "ratios": frame.ratio, "worst": frame.worst}
        result["errors"] = _errors(sides, split)
        pair = {group: sides[group] for group in (split.anchor, split.reference)}
        gaps = _gaps(pair.values())
        result["by_category"] = dict(zip(names, gaps, strict=True)) if len(names) > 1 else {}
        places = [in_order(split.positions(group), split.records, detections)[0] for group in pair]
        pictures = [[described[i] for i in each] for each in places]
        result |= _causes(pair, pictures, gaps, score)
        result["scores"] = _scores(sides, split, score)
        result["examples"] = [each for group, side in pair.items() for each in telling(side, group)]
    dead = [name for name, row in frame.by_group.items() if is_dead({key: row[key]["value"] for key in row})]
    said = [f"Of {', '.join(dead)} it finds nobody to speak of: right detector? right class names?"] if dead else []
    unknown = [name for name, row in frame.by_group.items() if np.isnan(row["AP"]["value"])]
    said += [NOTHING_TO_FIND.format(", ".join(unknown))] if unknown else []
    return without_nan(result | {"warnings": said + result["warnings"] + too_few(split)})


def audit_data(
    dataset: Dataset,
    *,
    split: str = "test",
    detector: str | Path = "",
    predictions: str | Path | None = None,
    generator: str | Path = "",
    transfer: str | Path = "",
    i_know: bool = False,
    device: str = "auto",
    num_workers: int = 0,
    console: Console | None = None,
    **options: Any,
) -> tuple[Split, dict[str, Any]]:
    """Audit a detector on one split, or what another found there.

    Args:
        dataset: with the split.
        split: its name.
        detector: as `load_detector` takes it.
        predictions: a COCO results file, in place of a detector.
        generator: as `load_generator` takes it; what it changes is measured, too.
        transfer: another detector, to measure the generator in front of.
        i_know: measure one more of a run's generators on a test split.
        device: auto, cpu, cuda or cuda:N.
        num_workers: processes that load images.
        console: where to show bars.
        options: of `audit`.

    Returns:
        The split with the categories that were measured, and the content of audit.json: that of `audit` with where it
        comes from.

    Raises:
        FaapError: as `audit`; or neither detector nor predictions are given, or both.
    """
    if bool(detector) == bool(predictions):
        raise FaapError("an audit is of a detector or of what it found: give --detr_checkpoint or --predictions.")
    if (generator and predictions) or (transfer and not generator):
        wrong = "a generator is measured in front of a detector" if predictions else "transfer is a generator's"
        raise FaapError(f"{wrong}: give --detr_checkpoint and --generator.")
    source: dict[str, Any] = {"dataset": str(dataset.root)}
    notes: list[str] = []
    added: dict[str, Any] = {}
    if predictions:
        images = dataset.split(split)
        found, notes = read_results(predictions, images, renumbered=dataset.read(split).renumbered)
        named = {label for each in found for label in each.labels.tolist()}
        if lacking := [name for key, name in images.categories.items() if key not in named]:
            notes.append(f"Left out, since {predictions} has no detection of them: {', '.join(lacking)}.")
        images = images.with_categories(named)
        result = audit(images, found, console=console, **options)
        source |= {"detector_name": Path(predictions).name, "predictions_sha256": file_sha256(Path(predictions))}
    else:
        place = resolve_device(device)
        loaded = load_detector(str(detector), place)
        images = measurable(loaded, dataset, split)
        loading: Any = {"num_workers": num_workers, "console": console}
        if generator:  # what cannot be used is said before anything is detected
            moving, trained_in = load_generator(str(generator)).to(place), run_of(generator)
            if not i_know:
                refuse_choice(trained_in, dataset.split(split), moving)
            loading["transfer"] = load_detector(str(transfer), place) if transfer else None
            source["generator"] = {"name": str(generator), "arch": moving.arch}
            source["generator"]["sha256"] = tensors_sha256(moving.state_dict())
        with unchanged(loaded) as known:
            found = detect_baseline(loaded, images, num_workers=num_workers, console=console)
            result = audit(images, found, console=console, **options)
            if generator:
                added["perturbation"] = audit_perturbation(loaded, moving, images, found, **loading, **options)
        source |= {"detector_name": loaded.name, "detector_file_sha256": loaded.file_sha256, "detector_sha256": known}
    source |= {"split_sha256": dataset.split(split).fingerprint(), "faap": faap.__version__}
    source["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    if added and trained_in and is_test(images):
        notes += read_before(trained_in, source)
        trained_in.add_reading(images.name, source)
    result["warnings"] = notes + result["warnings"]
    about = {"detector_name": source["detector_name"], "dataset": source["dataset"]}
    return images, about | result | without_nan(added) | {"provenance": source}


def _errors(sides: Mapping[str, Side], split: Split) -> dict[str, Any]:
    """What each kind of error costs each group, and of the AP50 gap the part that goes away with it."""
    base, *found = (dict(zip(sides, each, strict=True)) for each in zip(*costs_of(sides).values(), strict=True))
    kinds: dict[str, dict[str, Any]] = {}
    for kind, costs in zip((*KINDS, *TOTALS), found, strict=True):
        kinds[kind] = {"costs": costs, "of_gap": costs[split.anchor] - costs[split.reference]}
        if kind in KINDS:
            kinds[kind]["count"] = {group: _count(side, kind) for group, side in sides.items()}
    return {"AP50": base, "gap": base[split.reference] - base[split.anchor], "kinds": kinds}


def _count(side: Side, kind: str) -> int:
    number = KINDS.index(kind)
    return sum(len(each.missed) if kind == "missed" else int((each.kinds == number).sum()) for each in side.errors)


def _causes(
    sides: Mapping[str, Side], pictures: Sequence[Sequence[Mapping[str, Floats]]], gaps: Floats, score: float
) -> dict[str, Any]:
    """What is left of the gap once both groups are alike, in one property of the pictures or in all.

    Args:
        sides: the anchor group, the reference group.
        pictures: of each, what `describe` says of each image.
        gaps: what `_gaps` says of the two.
        score: from which on a detection of nothing may be of something unlabelled.
    """

    def named(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(sides, values, strict=True))

    pair = list(sides.values())
    names = list(dict.fromkeys(name for each in pictures for image in each for name in image))
    cells: list[list[Any]] = [[], []]
    means: dict[str, Any] = {}
    alike, lacking = list[int](), list[str]()
    for number, name in enumerate(names):
        values = [side.values(images, name) for side, images in zip(pair, pictures, strict=True)]
        placed = np.split(cells_of(np.concatenate(values)), [len(values[0])])
        for mine, place in zip(cells, placed, strict=True):
            mine.append(place)
        few = [not (known := np.isfinite(each)).all() and known.sum() < FEWEST for each in values]
        if few[0] == few[1]:
            alike.append(number)
        else:  # of one group alone: no box of the other has its like
            whose = list(sides)[few.index(True)]
            wrong = f"{name} is annotated for fewer than {FEWEST} boxes of {whose}"
            lacking.append(f"{wrong}: the groups cannot be made alike in it, and are so in all the rest.")
        means[name] = named([_mean(each, side.box_copies) for side, each in zip(pair, values, strict=True)])

    gap = _mean_gap(gaps)
    copies = [side.box_copies.astype(float) for side in pair]

    def compared(*numbers: int) -> tuple[dict[str, Any], list[Floats]]:
        factors = balance([[each[n] for n in numbers] for each in cells], copies)
        kept = [float((factor[:, 0] > 0).sum()) / max(len(factor), 1) for factor in factors]
        left = _mean_gap(_gaps(pair, factors), gaps) if min(kept) >= _COMPARABLE else gap * np.nan
        sizes = [effective_size(each * factor)[0] for each, factor in zip(copies, factors, strict=True)]
        return _cause(gap, left) | {"effective_boxes": named(sizes), "compared": named(kept)}, factors

    confounders = {name: compared(number)[0] | {"means": means[name]} for number, name in enumerate(names)}
    together, factors = compared(*alike)

    apart = [side.unexplained(score) for side in pair]
    rates = [_mean(np.array([*map(len, each)]), side.copies) for side, each in zip(pair, apart, strict=True)]
    # the group that has more of them gets as many an image as the other
    with np.errstate(invalid="ignore", divide="ignore"):
        worth = [np.where(mine > other, other / mine, 1.0) for mine, other in (rates, rates[::-1])]
    labelled = _gaps(pair, None, apart, worth)
    unlabelled = _cause(gap, _mean_gap(labelled)) | {"each_image": named(rates)}
    left = _mean_gap(_gaps(pair, factors, apart, worth), labelled)
    detector = _cause(gap, gap - (left if np.isfinite(together["left"][0]) else left * np.nan))

    causes = confounders | {UNLABELLED: unlabelled, DETECTOR: detector}
    sure = [
        name
        for name, each in causes.items()
        if _above_zero(each["explained"]) and (each["share"] or 0) >= _WORTH_NAMING
    ]
    first = sorted(sure, key=lambda name: -causes[name]["explained"][0]) if _above_zero(gap) else []
    found = {"gap": gap, "confounders": confounders, "all_confounders": together, "unlabelled": unlabelled}
    return found | {"detector": detector, "causes": first, "warnings": lacking}


def _gaps(
    pair: Iterable[Side], factors: Sequence[Floats] | None = None, apart: Any = (None, None), worth: Any = (1.0, 1.0)
) -> Floats:
    """The gap between anchor and reference group in each category, (categories, R); nan where either has no box."""
    parts = zip(pair, factors or (None, None), apart, worth, strict=True)
    anchor, reference = (side.average_precision(*each) for side, *each in parts)
    return reference - anchor


def _mean_gap(gaps: Floats, otherwise: Floats | float = np.nan) -> Floats:
    """The mean over the categories; one whose boxes are alike in nothing has the gap that it has otherwise."""
    return category_means({"gap": np.where(np.isnan(gaps), otherwise, gaps)})["gap"]


def _cause(gap: Floats, left: Floats) -> dict[str, Any]:
    share = float((gap - left)[0] / gap[0]) if abs(gap[0]) >= VISIBLE and np.isfinite(left[0]) else None
    return {"explained": gap - left, "left": left, "share": share}


def _above_zero(values: Floats) -> bool:
    return (percentile_interval(values[1:]) or [0])[0] > 0


def _mean(values: Floats, copies: Weights) -> Floats:
    """The mean over boxes, or images, of which a value is known; nan where none is, (R,)."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(values[known] @ copies[known] / copies[known].sum(axis=0))


def _scores(sides: Mapping[str, Side], split: Split, score: float) -> dict[str, Any]:
    """Recall and precision of each group at a threshold, their differences, and thresholds that make recall equal."""
    each = {group: Scores(side) for group, side in sides.items()}
    at = {group: one.at(score) for group, one in each.items()}
    reference, others = at[split.reference], [group for group in each if group != split.reference]
    return {
        "at": at,
        "difference": {group: {name: reference[name] - at[group][name] for name in reference} for group in others},
        "equal_recall": {group: each[group].equal_recall(reference["recall"]) for group in others},
        "calibration": {group: one.calibration() for group, one in each.items()},
    }
