"""What faap costs beside the detector alone: ratios, each measured in one run whose parts take turns.

A DETR-R50 of full size with random weights in float32, as nothing trained can be shipped, in front of it pictures of
Promenade stretched to its size: speed does not ask what the weights are.
"""

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
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

from faap.config import Recipe, load_recipe
from faap.data import Batch, Dataset, GroupBalancedBatches, Preprocessing, Record, Split, load, load_dataset
from faap.data.images import TRAINING_EDGES, plan_training
from faap.detectors import FrozenDetector
from faap.detectors.hugging_face import HuggingFaceDetector
from faap.detectors.prepare import prepare
from faap.distributed import resolve_device
from faap.evaluation import METRICS, Detections, MetricFrame, evaluate
from faap.export import export, load_exported
from faap.perturbation import build_generator
from faap.promenade import build_promenade
from faap.training.trainer import Trainer, seeded
from faap.weights import a_weight

SIZE = (320, 416)
# images and replicates of the bootstrap
IMAGES, SAMPLES, DETECTIONS = 6199, 1000, 100
LARGE = (800, 1066)
BATCH = 4
# what faap promises, the smaller the better: its target, and what it is
FIGURES = {
    "step_over_floor": (0.85, "a training step of infonce_4th / the stock detector's pass and gradient to its input"),
    "generator_over_detector": (0.06, "perturbing a batch / the prepared detector's forward pass"),
    "generator_over_detector_800x1066": (0.06, "the same for one image of 800x1066"),
    "evaluate_twice": (0.55, "evaluating a second generator / the first, whose baseline was still to be detected"),
    "padding_waste": (0.04, "padded share of pixels over an epoch, like shapes batched"),
    "bootstrap_seconds": (60, "1,000 paired replicates of nine metrics, 6,199 images with 100 detections each"),
    "bootstrap_gib": (2, "the largest memory of the process until then"),
}
# of which two jobs' seconds the first of them are ratios
_TIMED = [("step", "floor"), ("generator", "detector"), ("generator, large", "detector, large"), ("again", "first")]
RATIOS = dict(zip(FIGURES, _TIMED, strict=False))
# what is measured with --onnx, which promises nothing: two jobs, and what their ratio is
ONNX = {
    "generator_onnx_over_torch": ("generator, onnx", "generator", "perturbing a batch in onnxruntime / in PyTorch"),
    "both_onnx_over_torch": ("both, onnx", "both", "the same with the detector behind it"),
}
# width and height of the shapes that are common in COCO, and their shares; upright ones are rarer
_COCO_SIZES = np.array([(640, 480), (640, 427), (640, 360), (640, 640), (640, 512), (480, 640), (427, 640)])
_COCO_SHARES = np.array([0.42, 0.30, 0.05, 0.03, 0.02, 0.12, 0.06])

Job = Callable[[], object]
Size = tuple[int, int]


def bench(
    *, device: str = "auto", threads: int = 2, repeats: int = 5, onnx: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Measure what faap promises; six minutes on two cores.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: of torch, on the CPU.
        repeats: turns of what is timed; the median of the turns' ratios is reported.
        onnx: measure what `faap export` writes in onnxruntime, too, on the CPU.
        console: where to say how far it is.

    Returns:
        The numbers of `FIGURES`, and with `onnx` of `ONNX`, under "ranges" the lowest and highest of their turns,
        "seconds" (medians), "machine".
    """
    place = resolve_device(device)
    if console:
        console.print("drawing a thousand data sets…")
    drawn = bootstrap()
    with seeded(0), tempfile.TemporaryDirectory() as folder, patch.dict(os.environ), ExitStack() as afterwards:
        afterwards.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        jobs = _jobs(place, Path(folder), onnx)
        seconds = take_turns(jobs, repeats, place, console)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else _processor()
    machine = {"device": name, "threads": threads, "torch": torch.__version__, "transformers": transformers.__version__}
    wanted = RATIOS | ({name: (above, below) for name, (above, below, _) in ONNX.items()} if onnx else {})
    setting = f"DETR-R50, random weights, float32, batch {BATCH} at {SIZE[0]}x{SIZE[1]}"
    return {"machine": machine, "setting": setting, **ratios(seconds, wanted), "padding_waste": padding()} | drawn


def bootstrap(
    images: int | None = None, samples: int | None = None, metrics: Sequence[str] = METRICS
) -> dict[str, Any]:
    """Measure two detectors' metrics with interval, change and p-value; return seconds, and the process's memory."""
    split, found = _simulated(images or IMAGES)
    started = time.perf_counter()
    frame = MetricFrame(split, *found, samples=samples or SAMPLES, metrics=metrics)
    _ = frame.difference
    seconds, memory = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bootstrap_seconds": seconds, "bootstrap_gib": memory / 2 ** (30 if sys.platform == "darwin" else 20)}


def _simulated(images: int) -> tuple[Split, list[list[Detections]]]:
    """One to three objects an image, found with boxes off by some pixels, among mistakes with lower scores."""
    rng = np.random.default_rng(0)
    records: list[Record] = []
    found: list[list[Detections]] = [[], []]

    def boxes(count: int) -> np.ndarray[Any, Any]:
        return np.concatenate([rng.uniform(0, 300, (count, 2)), rng.uniform(10, 200, (count, 2))], axis=1)

    for i in range(images):
        count = int(rng.integers(1, 4))
        people, nobody, group = boxes(count), np.zeros(count, dtype=bool), ("female", "male")[i % 2]
        one, size = np.ones(DETECTIONS, dtype=np.int64), people[:, 2] * people[:, 3]
        records.append(Record(i, Path(f"{i}.jpg"), 640, 480, group, people, one[:count], size, nobody))
        for detector in found:
            rest = DETECTIONS - count
            guesses = np.concatenate([people + rng.normal(0, 4, people.shape), boxes(rest)]).clip(1)
            scores = np.concatenate([rng.uniform(0.3, 1, count), rng.beta(1, 6, rest)])
            detector.append(Detections(i, scores, one, guesses))
    return Split("test", tuple(records), {1: "person"}, "female", "male"), found


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


def training_step(recipe: Recipe, detector: FrozenDetector, scenes: Dataset) -> tuple[Job, list[Batch]]:
    """Return a job that makes the steps of an epoch, and the batches that it makes them with."""
    device = a_weight(detector).device
    trainer = Trainer(recipe, device, detector, scenes.split("train"))
    schedule = {name: values[-1] for name, values in recipe.schedules().items()}
    how: Any = {"batch_size": recipe.batch_size, "num_workers": 0, "device": device}
    fed = [trainer.feed(batch, 0) for batch in load(trainer.images, trainer.batches, **how)]
    step = trainer.recorded or trainer.step
    return lambda: [step(*each, schedule) for each in fed], [batch for batch, *_ in fed]


def through(forward: Callable[[Tensor], Any], boxes: str, pixels: Tensor) -> Job:
    """Return a detector's forward pass, and the gradient of its logits and boxes (by their name) to its input."""

    def job() -> None:
        images = pixels.clone().requires_grad_()
        out = forward(images)
        torch.autograd.grad(out.logits.sum() + getattr(out, boxes).sum(), images)

    return job


def take_turns(
    jobs: Mapping[str, Job], repeats: int, device: torch.device, console: Console | None = None
) -> dict[str, list[float]]:
    """Time jobs one after another, again and again.

    Args:
        jobs: what to time.
        repeats: turns that count; one more comes first, as a warm-up.
        device: a GPU is waited for.
        console: where to say which turn it is.

    Returns:
        Seconds of every turn of each job.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    wait: Job = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for turn in range(repeats + 1):
        if console:
            console.print(f"turn {turn} of {repeats}…" if turn else "warming up…")
        for name, job in jobs.items():
            wait()
            started = time.perf_counter()
            job()
            wait()
            seconds[name].append(time.perf_counter() - started)
    return {name: spent[1:] for name, spent in seconds.items()}


def ratios(seconds: Mapping[str, list[float]], wanted: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return ratios of timed jobs, (above, below): the medians of their turns, "ranges" of these, median "seconds"."""
    turns = {name: np.divide(seconds[above], seconds[below]) for name, (above, below) in wanted.items()}
    return {
        "ranges": {name: [float(values.min()), float(values.max())] for name, values in turns.items()},
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        **{name: float(np.median(values)) for name, values in turns.items()},
    }


def _jobs(device: torch.device, folder: Path, onnx: bool = False) -> dict[str, Job]:
    """Return what `RATIOS` are of."""
    scenes, stock, prepared = pictures(folder), stock_detector(device), prepared_detector(device)
    recipe = load_recipe("infonce_4th", batch_size=BATCH, images_per_epoch=BATCH)
    step, [batch] = training_step(recipe, prepared, scenes)
    pixels = batch.pixel_values
    generator = build_generator().eval().to(device)
    large = torch.randn(1, 3, *LARGE, device=device).clamp(-2, 2)

    again = partial(evaluate, prepared, generator, scenes, batch_size=BATCH)

    def first() -> None:
        os.environ["FAAP_CACHE_DIR"] = tempfile.mkdtemp(dir=folder)  # nothing is known of the detector yet
        again()

    jobs: dict[str, Job] = {}
    if onnx:
        for name, behind in (("generator", None), ("both", prepared)):
            export(build_generator().eval(), folder / f"{name}.onnx", detector=behind)
            jobs[f"{name}, onnx"] = partial(load_exported(folder / f"{name}.onnx"), pixels.cpu())
        jobs["both"] = torch.no_grad()(lambda: prepared(generator.perturb(pixels)))
    return jobs | {
        "floor": through(lambda images: stock(images), "pred_boxes", pixels),
        "step": step,
        "detector": torch.no_grad()(lambda: prepared(pixels)),
        "generator": torch.no_grad()(lambda: generator.perturb(pixels)),
        "detector, large": torch.no_grad()(lambda: prepared(large)),
        "generator, large": torch.no_grad()(lambda: generator.perturb(large)),
        "first": first,
        "again": again,
    }


def padding(upright: float = 2.0, *, alike: bool = True) -> float:
    """Return the padded share of an epoch's pixels, for images of COCO's sizes after DETR's augmentation.

    Args:
        upright: how much more often upright pictures come among the anchor group's 9,295 than among the reference
            group's 9,296.
        alike: batch like shapes.
    """
    rng = np.random.default_rng(0)
    sizes: list[Any] = []
    for count, factor in ((9295, upright), (9296, 1.0)):
        shares = np.where(_COCO_SIZES[:, 1] > _COCO_SIZES[:, 0], factor, 1) * _COCO_SHARES
        drawn = _COCO_SIZES[rng.choice(len(shares), count, p=shares / shares.sum())]
        drawn[:, 1] -= rng.integers(0, 8, count)  # many are a little smaller than their kind
        sizes += map(tuple, drawn.tolist())

    @cache
    def shape(epoch: int, index: int) -> Size:
        rng = np.random.default_rng([0, epoch, index])
        width, height = plan_training(sizes[index], Preprocessing(), rng, TRAINING_EDGES).size
        return height, width

    padded = valid = 0
    for batch in GroupBalancedBatches(range(9295), range(9295, 18591), 8, 0, shape=shape if alike else None):
        shapes = np.array([shape(*key) for key in batch])
        valid += shapes.prod(1).sum()
        padded += len(shapes) * shapes.max(0).prod()
    return float(1 - valid / padded)


def table(result: Mapping[str, Any]) -> Table:
    """Lay out the figures for the terminal."""
    rows = Table(*(Column(name, no_wrap=True) for name in ("figure", "value", "target")), "what it is")
    for name, (target, meaning) in FIGURES.items():
        rows.add_row(name, f"{result[name]:.3f}", f"≤ {target}", meaning)
    for name, (_, _, meaning) in ONNX.items():
        if name in result:
            rows.add_row(name, f"{result[name]:.3f}", "", meaning)
    return rows
