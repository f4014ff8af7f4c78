"""Measuring a generator on one split: `metrics.json` and the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from faap import distributed
from faap.data import Dataset, FaapImages, Split, collate, denormalise
from faap.detectors import FrozenDetector
from faap.evaluation import detect, evaluate
from faap.files import atomic_write
from faap.perturbation import Generator, quantise
from faap.report import MAX_EXAMPLES, Example, write_report


def measure(
    detector: FrozenDetector,
    generator: Generator,
    dataset: Dataset,
    run_dir: Path,
    *,
    split: str = "test",
    absolute: bool = False,
) -> dict[str, Any]:
    """Measure a generator on one split and write `metrics.json` and `report.html` into a folder.

    Args:
        detector: frozen.
        generator: in front of it.
        dataset: with the split.
        run_dir: the folder; it is made if it is not there.
        split: its name.
        absolute: judge by the study's absolute targets instead of the relative ones.

    Returns:
        The content of `metrics.json`.
    """
    metrics = evaluate(detector, generator, dataset, split, absolute=absolute)
    examples = examples_of(detector, generator, dataset.split(split))
    if distributed.rank() == 0:
        with atomic_write(run_dir / "metrics.json") as temporary:
            temporary.write_text(json.dumps(metrics, indent=2) + "\n")
        write_report(run_dir, examples)
    return metrics


def examples_of(detector: FrozenDetector, generator: Generator, split: Split) -> list[Example]:
    """Return a few images of both groups, evenly spread over the split, with their detections before and after."""
    device = next(generator.parameters()).device
    half = MAX_EXAMPLES // 2
    chosen = []
    for group in (split.anchor, split.reference):
        positions = split.positions(group)
        chosen += [positions[i] for i in np.linspace(0, len(positions) - 1, min(half, len(positions))).astype(int)]
    few = split.subset(list(dict.fromkeys(chosen)))
    before, after = detect(detector, few), detect(detector, few, generator)
    images = FaapImages(few, detector.preprocessing, detector.label_map(few.categories))
    examples = []
    for i, record in enumerate(few.records):
        pixels = collate([images[i]]).pixel_values.to(device)
        with torch.no_grad():
            perturbed = quantise(generator.perturb(pixels))
        original, changed = (_to_uint8(values) for values in (pixels, perturbed))
        examples.append(Example(record, original, changed, before[i], after[i]))
    return examples


def _to_uint8(pixels: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Turn a (1, 3, H, W) normalised image into (H, W, 3) uint8."""
    image = denormalise(pixels)[0].permute(1, 2, 0)
    return image.mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
