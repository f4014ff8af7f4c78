"""What faap costs beside the detector alone: ratios, each measured in one run whose parts take turns.

A DETR-R50 of full size with random weights in float32, as nothing trained can be shipped, in front of it pictures of
Promenade stretched to its size: speed does not ask what the weights are.
"""

import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from faap.config import load_recipe
from faap.data import Batch, Dataset, GroupBalancedBatches, Preprocessing, load_dataset
from faap.data.images import TRAINING_EDGES, plan_training
from faap.detectors.hugging_face import HuggingFaceDetector
from faap.detectors.prepare import prepare
from faap.distributed import resolve_device
from faap.evaluation import evaluate
from faap.files import atomic_write
from faap.perturbation import build_generator
from faap.promenade import build_promenade
from faap.training.trainer import Trainer, forked_rng

SIZE = (320, 416)
LARGE = (800, 1066)
BATCH = 4
# what faap promises; the smaller the better
TARGETS = {
    "step_over_floor": 0.85,
    "generator_over_detector": 0.06,
    "generator_over_detector_800x1066": 0.06,
    "evaluate_twice": 0.55,
    "padding_waste": 0.04,
}
MEANING = {
    "step_over_floor": "a training step of infonce_4th / the stock detector's forward pass and gradient to its input",
    "generator_over_detector": "perturbing a batch / the prepared detector's forward pass",
    "generator_over_detector_800x1066": "the same for one image of 800x1066",
    "evaluate_twice": "evaluating a second generator / the first, whose baseline was still to be detected",
    "padding_waste": "padded share of pixels over an epoch, like shapes batched",
}
# width, height and share of the shapes that are common in COCO; upright ones are rarer
_COCO_SIZES = (
    (640, 480, 0.42),
    (640, 427, 0.30),
    (640, 360, 0.05),
    (640, 640, 0.03),
    (640, 512, 0.02),
    (480, 640, 0.12),
    (427, 640, 0.06),
)

Job = Callable[[], object]
Size = tuple[int, int]


def bench(
    *, device: str = "auto", threads: int = 2, repeats: int = 5, console: Console | None = None
) -> dict[str, Any]:
    """Measure the ratios that faap promises; four minutes on two cores.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: of torch, on the CPU.
        repeats: turns of what is timed; the median of the turns' ratios is reported.
        console: where to say what is being measured.

    Returns:
        The figures of `MEANING`, under "ranges" the lowest and highest of their turns, "seconds" (medians), "machine".
    """
    console, place, before = console or Console(quiet=True), resolve_device(device), torch.get_num_threads()
    result: dict[str, Any] = {
        "machine": {
            "device": torch.cuda.get_device_name(place) if place.type == "cuda" else _processor(),
            "threads": threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "setting": f"DETR-R50, random weights, float32, batch {BATCH} at {SIZE[0]}x{SIZE[1]}",
        "ranges": {},
        "seconds": {},
    }
    torch.set_num_threads(threads)
    try:
        with forked_rng(), tempfile.TemporaryDirectory() as folder:
            scenes = pictures(Path(folder))
            console.print("a training step and the generator, each against the detector…")
            _steps(result, place, repeats, scenes)
            console.print("evaluating twice…")
            _evaluate_twice(result, place, repeats, scenes, Path(folder))
            console.print("padding…")
            result["padding_waste"] = padding()
    finally:
        torch.set_num_threads(before)
    return result


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    _, _, name = (info.read_text() if info.exists() else "").partition("model name")
    return name.partition("\n")[0].lstrip("\t: ") or platform.processor() or platform.machine()


def stock_detector(device: torch.device, queries: int = 100) -> DetrForObjectDetection:
    """Build DETR-R50 as `transformers` does, with random weights."""
    torch.manual_seed(0)
    labels = {0: "person"} | {number: f"class {number}" for number in range(1, 91)}
    settings: dict[str, Any] = {"num_queries": queries, "id2label": labels, "use_timm_backbone": False}
    backbone: Any = ResNetConfig
    model: Any = DetrForObjectDetection(DetrConfig(**settings, backbone_config=backbone(out_features=["stage4"])))
    return model.eval().to(device)  # type: ignore[no-any-return]


def prepared_detector(device: torch.device, size: Size | None = None, queries: int = 100) -> HuggingFaceDetector:
    """Build the same detector as faap loads it; every image is stretched to (height, width), `SIZE` by default."""
    model, stretched = prepare(stock_detector(device, queries)), Preprocessing(size=size or SIZE)
    return HuggingFaceDetector(model, name="DETR-R50", preprocessing=stretched, file_sha256="")


def pictures(folder: Path) -> Dataset:
    """Return a small Promenade, which is written into the folder."""
    return load_dataset(build_promenade(folder, {"train": 8, "val": 1, "test": 16}))


def training_step(detector: HuggingFaceDetector, batch: int, scenes: Dataset) -> tuple[Job, Batch]:
    """Return a whole training step of infonce_4th, and the batch of an even number of scenes that it is made with."""
    device = next(detector.parameters()).device
    recipe = load_recipe("infonce_4th", batch_size=batch, images_per_epoch=batch)
    trainer = Trainer(recipe, device, detector, scenes.split("train"))
    trainer.generator.train()
    trainer.objective.train()
    schedule = {name: values[-1] for name, values in recipe.schedules().items()}
    images: Batch = next(iter(trainer.loader)).to(device)
    return lambda: trainer.step(images, 0, schedule), images


def through(model: Any, pixels: Tensor, mask: Tensor) -> Job:
    """Return the forward pass and gradient to the input, of a stock or a prepared detector."""

    def job() -> None:
        images = pixels.clone().requires_grad_()
        if isinstance(model, HuggingFaceDetector):
            ours = model(images, mask)
            total = ours.logits.sum() + ours.boxes.sum()
        else:
            out = model(pixel_values=images, pixel_mask=mask.long())
            total = out.logits.sum() + out.pred_boxes.sum()
        torch.autograd.grad(total, images)

    return job


def take_turns(jobs: Mapping[str, Job], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Time jobs one after another, again and again.

    Args:
        jobs: what to time.
        repeats: turns that count; one more comes first, as a warm-up.
        device: a GPU is waited for.

    Returns:
        Seconds of every turn of each job.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            spent = _timed(job, device)
            if turn:
                seconds[name].append(spent)
    return seconds


def _timed(job: Job, device: torch.device) -> float:
    wait: Job = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    job()
    wait()
    return time.perf_counter() - started


def note(result: dict[str, Any], seconds: Mapping[str, list[float]], **ratios: tuple[str, str]) -> None:
    """Write ratios of timed jobs, (above, below), into the result: the median of their turns, and the range."""
    result["seconds"] |= {name: statistics.median(values) for name, values in seconds.items()}
    for name, (above, below) in ratios.items():
        turns = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        result[name] = statistics.median(turns)
        result["ranges"][name] = [min(turns), max(turns)]


def _steps(result: dict[str, Any], device: torch.device, repeats: int, scenes: Dataset) -> None:
    """The step against the floor, and the generator against the detector."""
    stock, prepared = stock_detector(device), prepared_detector(device)
    step, batch = training_step(prepared, BATCH, scenes)
    pixels, mask = batch.pixel_values, batch.pixel_mask
    seconds = take_turns({"floor": through(stock, pixels, mask), "step": step}, repeats, device)
    note(result, seconds, step_over_floor=("step", "floor"))
    generator = build_generator().eval().to(device)
    large = torch.randn(1, 3, *LARGE, device=device).clamp(-2, 2)
    forward: dict[str, Job] = {
        "detector": lambda: prepared(pixels, mask),
        "generator": lambda: generator.perturb(pixels, mask),
        "detector, large": lambda: prepared(large),
        "generator, large": lambda: generator.perturb(large),
    }
    with torch.no_grad():
        seconds = take_turns(forward, repeats, device)
    note(
        result,
        seconds,
        generator_over_detector=("generator", "detector"),
        generator_over_detector_800x1066=("generator, large", "detector, large"),
    )


def _evaluate_twice(result: dict[str, Any], device: torch.device, repeats: int, scenes: Dataset, folder: Path) -> None:
    detector, generator = prepared_detector(device), build_generator().to(device)
    seconds: dict[str, list[float]] = {"first evaluation": [], "second evaluation": []}
    for turn in range(max(2, repeats - 1)):
        # nothing is known of the detector yet
        with patch.dict(os.environ, {"FAAP_CACHE_DIR": str(folder / f"cache_{turn}")}):
            for times in seconds.values():
                times.append(_timed(lambda: evaluate(detector, generator, scenes, batch_size=BATCH), device))
    note(result, seconds, evaluate_twice=("second evaluation", "first evaluation"))


def padding(upright: float = 2.0, *, alike: bool = True) -> float:
    """Return the padded share of an epoch's pixels, for images of COCO's sizes after DETR's augmentation.

    Args:
        upright: how much more often upright pictures come among the anchor group's 9,295 than among the reference
            group's 9,296.
        alike: batch like shapes.
    """
    rng = np.random.default_rng(0)
    sizes = []
    for count, factor in ((9295, upright), (9296, 1.0)):
        shares = np.array([share * (factor if height > width else 1) for width, height, share in _COCO_SIZES])
        for drawn in rng.choice(len(shares), count, p=shares / shares.sum()):
            width, height, _ = _COCO_SIZES[drawn]
            sizes.append((width, height - int(rng.integers(0, 8))))  # many are a little smaller than their kind

    @cache
    def shape(epoch: int, index: int) -> tuple[int, int]:
        planned = plan_training(sizes[index], Preprocessing(), np.random.default_rng([0, epoch, index]), TRAINING_EDGES)
        return planned.size[1], planned.size[0]

    padded = valid = 0
    for batch in GroupBalancedBatches(range(9295), range(9295, 18591), 8, 0, shape=shape if alike else None):
        shapes = [shape(*key) for key in batch]
        valid += sum(height * width for height, width in shapes)
        padded += len(shapes) * math.prod(map(max, zip(*shapes, strict=True)))
    return 1 - valid / padded


def table(result: Mapping[str, Any]) -> Table:
    """Lay out the figures for the terminal."""
    rows = Table(*(Column(name, no_wrap=True) for name in ("figure", "value", "target")), "what it is")
    for name, meaning in MEANING.items():
        rows.add_row(name, f"{result[name]:.3f}", f"≤ {TARGETS[name]}", meaning)
    return rows


def write(result: Mapping[str, Any], path: Path) -> Path:
    """Write the figures as JSON; return the path."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
