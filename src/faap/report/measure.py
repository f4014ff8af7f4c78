"""Measuring a generator on one split: `metrics.json` and the report."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from faap import distributed
from faap.data import Dataset, FaapImages, Split, collate, denormalise
from faap.detectors import FrozenDetector
from faap.detectors.base import unchanged
from faap.errors import FaapError
from faap.evaluation import Detections, detect, detect_baseline, evaluate
from faap.evaluation.arrival import AS_MADE, Arrival
from faap.evaluation.curves import curves_of
from faap.evaluation.detections import perturb_as_deployed
from faap.evaluation.evaluate import measurable
from faap.evaluation.matching import count_found
from faap.perturbation import Generator, load_generator, quantise
from faap.perturbation.storage import place_of
from faap.report.page import SCORE_THRESHOLD, Example, Pixels, write_report
from faap.runs import Run, cost_of, writing
from faap.weights import a_weight, tensors_sha256


def measure(
    detector: FrozenDetector,
    generator: Generator,
    dataset: Dataset,
    run: Run | str | Path,
    *,
    split: str = "test",
    absolute: bool = False,
    arrival: Arrival = AS_MADE,
    move_aside: bool = False,
    warnings: Sequence[str] = (),
    beside: Sequence[str] = (),
    trained_in: Run | None = None,
    num_workers: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a generator on one split and write `metrics.json` and `report.html` into a folder.

    That the test split was read is recorded in the run that the generator is from: by what is measured there, nobody
    may choose among generators and still say that it is a test.

    Args:
        detector: frozen.
        generator: in front of it.
        dataset: with the split.
        run: the folder; it is made if it is not there.
        split: its name.
        absolute: judge by the study's absolute targets instead of the relative ones.
        arrival: what is done to the images before the detector sees them, with and without the generator.
        move_aside: move an earlier result that is in the folder, as soon as there is a new one.
        warnings: what is to be said beside what the numbers say.
        beside: other generators, as `load_generator` takes them, to be measured on the same images and shown with it.
        trained_in: the run that the generator is from.
        num_workers: processes that load images.
        console: where to say that it was, and to show a bar.

    Returns:
        The content of `metrics.json`: that of `evaluate`, and "beside" {name: the same of another generator, with
        "training" {images, seconds} where a run says it}.
    """
    run = run if isinstance(run, Run) else Run(run)
    if move_aside and trained_in and trained_in.path.resolve() == run.path.resolve():
        raise FaapError(f"{run.path}: is the training that is measured; give another folder with --output_dir.")
    images = measurable(detector, dataset, split)
    loading: Any = {"num_workers": num_workers, "console": console, "arrival": arrival}
    with unchanged(detector):
        before = detect_baseline(detector, images, **loading)
        after = detect(detector, images, generator, with_distance=True, **loading)
    found: Any = {"baseline": before, "perturbed": after, "arrival": arrival}
    with console.status("drawing the images anew, for intervals") if console is not None else nullcontext():
        metrics = evaluate(detector, generator, dataset, split, absolute=absolute, **found)
        curves = curves_of(images, before, after) if distributed.rank() == 0 else ()
    metrics["warnings"] += [*warnings, *(read_before(trained_in, metrics["provenance"]) if is_test(images) else [])]
    for name in beside:
        other = load_generator(name).to(a_weight(generator).device)
        found["perturbed"] = detect(detector, images, other, with_distance=True, **loading)
        theirs = evaluate(detector, other, dataset, split, absolute=absolute, **found)
        metrics.setdefault("beside", {})[name] = theirs | cost_of(place_of(name))
    if distributed.rank() == 0:
        with writing(run.path), run.locked() if move_aside else nullcontext():  # a training has its own already
            if move_aside and (earlier := run.move_aside()) and console is not None:
                console.print(f"{run.path} held an earlier result: it is now {earlier}.", markup=False)
            run.write_metrics(metrics)
            if trained_in and is_test(images):
                trained_in.add_reading(images.name, metrics["provenance"])
            write_report(run, examples_of(detector, generator, images, before, after, arrival), curves)
    return metrics


def run_of(generator: str | Path) -> Run | None:
    """Return the run that a generator is from, as `load_generator` takes it; none of the one in the package."""
    return None if str(generator) == "promenade" else Run.of(place_of(generator))


def refuse_choice(run: Run | None, images: Split, generator: Generator) -> None:
    """Refuse to measure another generator of a run on a test split that one of them was measured on.

    Raises:
        FaapError: if it was.
    """
    if run and is_test(images) and set(run.read_on(images.fingerprint())) - {tensors_sha256(generator.state_dict())}:
        said = f"{run.path}: another of its generators was measured on this test split (see {run.readings.name})"
        advice = "choose by --split val, and measure the one that is chosen; or say --i_know, and the result says so"
        raise FaapError(f"{said}. A choice by what a test says is no longer a test: {advice}.")


def is_test(images: Split) -> bool:
    """Whether a split is for testing: all are but those that training and choosing are done with."""
    return images.name not in ("train", "val")


def read_before(run: Run | None, provenance: Mapping[str, Any]) -> list[str]:
    """Say that other generators of a run were measured on the same test images."""
    others = set(run.read_on(provenance["split_sha256"]) if run else []) - {provenance["generator"]["sha256"]}
    count = f"{len(others)} other generator{'s' * (len(others) > 1)} of this run"
    said = f"Measured on the same test images before: {count}. If that led to this one, it is no test."
    return [said] if others else []


def examples_of(
    detector: FrozenDetector,
    generator: Generator,
    split: Split,
    before: Sequence[Detections],
    after: Sequence[Detections],
    arrival: Arrival = AS_MADE,
) -> list[Example]:
    """Pick a few images of both groups, with what was found in them before and after.

    Of each group the one in which the number of people found rises most, the one in which it falls most, and between
    them the one in the middle of that order.
    """

    def lost(i: int) -> int:
        found, left = (count_found(split.records[i], each[i], SCORE_THRESHOLD) for each in (before, after))
        return found - left

    chosen: list[int] = []
    for group in (split.anchor, split.reference):
        ranked = sorted(split.positions(group), key=lost)
        chosen += ranked[0], ranked[len(ranked) // 2], ranked[-1]
    images = FaapImages(split, detector.preprocessing, detector.label_map(split.categories))
    examples, unshifted = [], replace(arrival, shift=None)  # as boxes are of the image where it was
    for i in dict.fromkeys(chosen):
        batch = collate([images[i]]).to(a_weight(generator).device)
        pixels = batch.pixel_values
        with torch.no_grad():
            perturbed = quantise(perturb_as_deployed(generator, pixels))
        pixels, perturbed = (unshifted.apply(each, batch.valid) for each in (pixels, perturbed))
        examples.append(Example(split.records[i], to_uint8(pixels), to_uint8(perturbed), before[i], after[i]))
    return examples


def to_uint8(pixels: torch.Tensor) -> Pixels:
    """Turn a (1, 3, H, W) normalised image into (H, W, 3) uint8."""
    return denormalise(pixels)[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
