"""What faap costs beside the detector alone: ratios, each measured in one run whose parts take turns.

A DETR-R50 of full size with random weights in float32, as nothing trained can be shipped: speed does not ask what the
weights are.
"""

import ctypes
import gc
import itertools
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

import faap.data.dataset
import faap.data.images
from faap.config import Recipe, load_recipe
from faap.data import Batch, FaapImages, GroupBalancedBatches, Preprocessing, Record, Split, load_dataset
from faap.detectors.hugging_face import HuggingFaceDetector
from faap.detectors.prepare import prepare
from faap.detectors.set_loss import match_layers
from faap.distributed import resolve_device
from faap.evaluation import evaluate
from faap.files import replacing
from faap.perturbation import Generator
from faap.report.charts import ANCHOR_COLOUR, QUIET, REFERENCE_COLOUR, style
from faap.training.trainer import Trainer, forked_rng

SIZE = (320, 416)
LARGE = (800, 1066)
BATCH = 4
PEOPLE = 7  # in an image; COCO has 7.3 objects in one
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
    "prepared_over_stock": "the same of the prepared detector / of the stock detector",
    "generator_over_detector": "perturbing a batch / the prepared detector's forward pass",
    "generator_over_detector_800x1066": "the same for one image of 800x1066",
    "generator_over_stock": "perturbing a batch / the stock detector's forward pass",
    "unet_over_detector": "perturbing with the original U-Net / the prepared detector's forward pass",
    "peak_memory_over_floor": "memory of that step / of the stock detector's forward pass and gradient",
    "matching": "six decoder layers matched at once / layer by layer and image by image",
    "evaluate_twice": "evaluating a second generator / the first, whose baseline was still to be detected",
    "padding_waste": "padded share of pixels over an epoch, like shapes batched",
    "padding_waste_random": "the same with random batches",
}
# width, height and share of sizes as they are common in COCO; upright ones are rarer
_COCO_SIZES = (
    (640, 480, 0.36),
    (640, 427, 0.22),
    (640, 426, 0.08),
    (500, 375, 0.06),
    (640, 360, 0.04),
    (640, 640, 0.03),
    (640, 512, 0.02),
    (480, 640, 0.10),
    (427, 640, 0.06),
    (375, 500, 0.02),
    (640, 334, 0.01),
)

Job = Callable[[], object]


def bench(
    *, device: str = "auto", threads: int = 2, repeats: int = 5, console: Console | None = None
) -> dict[str, Any]:
    """Measure all ratios; five minutes on two cores.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: of torch, on the CPU.
        repeats: turns of what is timed; the median of the turns' ratios is reported.
        console: where to say what is being measured.

    Returns:
        The figures of `MEANING`, and under "ranges" the lowest and highest of their turns; "loader", "growth" and
        "profile"; "seconds" (medians) and "machine". Memory is None where the system does not tell it.
    """
    console = console or Console(quiet=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    place = resolve_device(device)
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
    try:
        with forked_rng():
            for part in (_steps, _growth, _matching, _evaluate_twice, _padding, _loader):
                started = time.perf_counter()
                part(result, place, repeats)
                console.print(f"{part.__name__[1:]}: {time.perf_counter() - started:.0f} s", highlight=False)
    finally:
        torch.set_num_threads(before)
    return result


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(": ")[2] if names else platform.processor() or platform.machine()


def stock_detector(device: torch.device, queries: int = 100) -> DetrForObjectDetection:
    """Build DETR-R50 as `transformers` does, with random weights."""
    torch.manual_seed(0)
    labels = {0: "person"} | {number: f"class {number}" for number in range(1, 91)}
    settings: dict[str, Any] = {"num_queries": queries, "id2label": labels, "use_timm_backbone": False}
    backbone: Any = ResNetConfig
    model: Any = DetrForObjectDetection(DetrConfig(**settings, backbone_config=backbone(out_features=["stage4"])))
    return model.eval().to(device)  # type: ignore[no-any-return]


def prepared_detector(device: torch.device, queries: int = 100) -> HuggingFaceDetector:
    """Build the same detector as faap loads it; images keep their size."""
    return HuggingFaceDetector(
        prepare(stock_detector(device, queries)),
        name="DETR-R50",
        preprocessing=Preprocessing(shortest_edge=None, longest_edge=None),
        checkpoint_sha256="",
    )


def _records(sizes: Sequence[tuple[int, int]], group: str, folder: Path = Path()) -> list[Record]:
    """Records with `PEOPLE` people each, of images that need not be there."""
    rng = np.random.default_rng(len(group))
    records = []
    for number, (width, height) in enumerate(sizes):
        corner = rng.uniform(0, 0.6, (PEOPLE, 2)) * (width, height)
        boxes = np.concatenate([corner, rng.uniform(0.1, 0.4, (PEOPLE, 2)) * (width, height)], 1)
        areas, crowd = boxes[:, 2] * boxes[:, 3], np.zeros(PEOPLE, dtype=bool)
        labels = np.ones(PEOPLE, dtype=np.int64)
        path = folder / f"{group}_{number}.jpg"
        records.append(Record(number, path, width, height, group, boxes, labels, areas, crowd, None))
    return records


def _split(women: Sequence[tuple[int, int]], men: Sequence[tuple[int, int]], folder: Path = Path()) -> Split:
    records = (*_records(women, "female", folder), *_records(men, "male", folder))
    return Split("train", records, {1: "person"}, "female", "male")


class _Step:
    """A whole training step of a recipe on a made-up batch."""

    def __init__(self, detector: HuggingFaceDetector, device: torch.device, batch: int, size: tuple[int, int]) -> None:
        height, width = size
        half = [(width, height)] * max(1, batch // 2)
        recipe: Recipe = load_recipe("infonce_4th", batch_size=2 * len(half))
        self.trainer = Trainer(recipe, device, detector, _split(half, half))
        self.trainer.generator.train()
        self.trainer.objective.train()
        self.schedule = {name: values[-1] for name, values in recipe.schedules().items()}
        rng = torch.Generator().manual_seed(0)
        boxes = torch.rand(batch, PEOPLE, 4, generator=rng) * 0.3 + 0.2
        self.batch = Batch(
            pixel_values=torch.randn(batch, 3, height, width, generator=rng).clamp(-2, 2),
            pixel_mask=torch.ones(batch, height, width, dtype=torch.bool),
            targets=[{"labels": torch.zeros(PEOPLE, dtype=torch.long), "boxes": each} for each in boxes],
            groups=tuple("female" if number < batch / 2 else "male" for number in range(batch)),
            image_ids=torch.arange(batch),
            sizes=torch.tensor([[height, width]] * batch),
            valid=torch.tensor([[height, width]] * batch),
        ).to(device)

    def __call__(self) -> None:
        self.trainer.step(self.batch, 0, self.schedule)


def _through(model: Any, pixels: Tensor, mask: Tensor) -> Job:
    """Forward pass and gradient to the input, of a stock or a prepared detector."""

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
            _wait(device)
            started = time.perf_counter()
            job()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _note(result: dict[str, Any], seconds: dict[str, list[float]], **ratios: tuple[str, str]) -> None:
    """Write ratios of timed jobs, (above, below), into the result: the median of their turns, and the range."""
    result["seconds"] |= {name: statistics.median(values) for name, values in seconds.items()}
    for name, (above, below) in ratios.items():
        turns = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        result[name] = statistics.median(turns)
        result["ranges"][name] = [min(turns), max(turns)]


def peak_memory(job: Job, device: torch.device) -> float | None:
    """Return how many bytes a job needs at most, beyond what is there before it; None where the system cannot tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        there = torch.cuda.memory_allocated(device)
        job()
        return float(torch.cuda.max_memory_allocated(device) - there)
    if not sys.platform.startswith("linux"):
        return None
    try:
        # what was freed goes back to the system, and the high-water mark to where we are
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):  # another C library, or a closed /proc
        return None
    there = _memory("VmRSS")
    job()
    return float(_memory("VmHWM") - there)


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _steps(result: dict[str, Any], device: torch.device, repeats: int) -> None:
    """The step against the floor, the generators against the detector, memory, and where the time goes."""
    stock, prepared = stock_detector(device), prepared_detector(device)
    step = _Step(prepared, device, BATCH, SIZE)
    pixels, mask = step.batch.pixel_values, step.batch.pixel_mask
    light, unet = Generator().eval().to(device), Generator("unet").eval().to(device)
    large = torch.randn(1, 3, *LARGE, device=device).clamp(-2, 2)
    floor = _through(stock, pixels, mask)
    seconds = take_turns({"floor": floor, "step": step, "prepared": _through(prepared, pixels, mask)}, repeats, device)
    _note(result, seconds, step_over_floor=("step", "floor"), prepared_over_stock=("prepared", "floor"))
    with torch.no_grad():
        seconds = take_turns(
            {
                "stock forward": lambda: stock(pixel_values=pixels, pixel_mask=mask.long()),
                "prepared forward": lambda: prepared(pixels, mask),
                "generator": lambda: light.perturb(pixels, mask),
                "unet": lambda: unet.perturb(pixels, mask),
                "prepared forward, large": lambda: prepared(large),
                "generator, large": lambda: light.perturb(large),
            },
            repeats,
            device,
        )
    _note(
        result,
        seconds,
        generator_over_detector=("generator", "prepared forward"),
        generator_over_detector_800x1066=("generator, large", "prepared forward, large"),
        generator_over_stock=("generator", "stock forward"),
        unet_over_detector=("unet", "prepared forward"),
    )
    ours, theirs = peak_memory(step, device), peak_memory(floor, device)
    result["peak_memory_over_floor"] = ours / theirs if ours and theirs else None
    trainer = step.trainer
    parts = {
        "generator": (trainer.generator, "perturb"),
        "colour jitter": (sys.modules[Trainer.__module__], "jitter"),
        "detector": (trainer.detector, "forward"),
        "losses": (trainer.objective, "forward"),
        "backward": (torch.Tensor, "backward"),
    }
    shares, _ = _profile(step, parts, repeats, device)
    result["profile"] = shares | {"clipping, optimizer, logging": 1 - sum(shares.values())}


def _profile(
    job: Job, parts: Mapping[str, tuple[Any, str]], repeats: int, device: torch.device
) -> tuple[dict[str, float], float]:
    """Return the shares of a job's time that it spends in functions, (owner, name) each; and its mean seconds."""
    spent: dict[str, list[float]] = {name: [] for name in parts}
    with ExitStack() as stack:
        for name, (owner, attribute) in parts.items():
            stack.enter_context(_clocked(spent[name], owner, attribute, device))
        job()
        for times in spent.values():
            times.clear()
        started = time.perf_counter()
        for _ in range(repeats):
            job()
        _wait(device)
        whole = time.perf_counter() - started
    return {name: sum(times) / whole for name, times in spent.items()}, whole / repeats


@contextmanager
def _clocked(times: list[float], owner: Any, attribute: str, device: torch.device) -> Iterator[None]:
    """Keep the seconds of every call of a function."""
    original = getattr(owner, attribute)

    def timed(*args: Any, **kwargs: Any) -> Any:
        _wait(device)
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            _wait(device)
            times.append(time.perf_counter() - started)

    with patch.object(owner, attribute, timed):
        yield


def _growth(result: dict[str, Any], device: torch.device, repeats: int) -> None:
    """Time and memory of a step against batch size, image area and queries, relative to one of them."""
    height, width = SIZE
    detectors = {queries: prepared_detector(device, queries) for queries in (50, 100, 200, 400)}
    axes: dict[str, dict[float, _Step]] = {
        "images in a batch": {n: _Step(detectors[100], device, n, SIZE) for n in (2, 4, 8)},
        "pixels of an image": {
            float(16 * round(s * height / 16) * 16 * round(s * width / 16)): _Step(
                detectors[100], device, 2, (16 * round(s * height / 16), 16 * round(s * width / 16))
            )
            for s in (0.7, 1.0, 1.4, 2.0)
        },
        "queries": {n: _Step(detector, device, 2, SIZE) for n, detector in detectors.items()},
    }
    growth = {}
    for name, steps in axes.items():
        seconds = take_turns({str(value): step for value, step in steps.items()}, max(1, repeats // 2), device)
        memory = [peak_memory(step, device) for step in steps.values()]
        growth[name] = {
            "values": list(steps),
            "seconds": [statistics.median(seconds[str(value)]) for value in steps],
            "bytes": memory,
        }
    result["growth"] = growth


def _matching(result: dict[str, Any], device: torch.device, repeats: int) -> None:
    detector = prepared_detector(device)
    step = _Step(detector, device, BATCH, SIZE)
    with torch.no_grad():
        out = detector(step.batch.pixel_values, step.batch.pixel_mask)
    logits = torch.stack([*(each[0] for each in out.aux), out.logits])
    boxes = torch.stack([*(each[1] for each in out.aux), out.boxes])
    targets, criterion = step.batch.targets, detector.criterion

    def one_by_one() -> None:
        for layer in range(len(logits)):
            for image in range(BATCH):
                here = (slice(layer, layer + 1), slice(image, image + 1))
                match_layers(logits[here], boxes[here], targets[image : image + 1], criterion)

    seconds = take_turns(
        {"matching": lambda: match_layers(logits, boxes, targets, criterion), "matching one by one": one_by_one},
        20 * repeats,
        device,
    )
    _note(result, seconds, matching=("matching", "matching one by one"))


def _picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth colours with grain: a JPEG of it is about as large as a photograph's."""
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray((smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def _evaluate_twice(result: dict[str, Any], device: torch.device, repeats: int) -> None:
    height, width = SIZE
    detector, rng = prepared_detector(device), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for group, name in (("female", "women"), ("male", "men")):
            place = Path(folder) / f"{name}_split" / "test"
            place.mkdir(parents=True)
            content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
            for record in _records([(width, height)] * 16, group):
                number = 2 * record.image_id + (group == "male")
                file = f"{number}.jpg"
                _picture(rng, width, height).save(place / file, quality=90)
                content["images"].append({"id": number, "file_name": file, "width": width, "height": height})
                for box in record.boxes.tolist():
                    annotation = {"id": len(content["annotations"]), "image_id": number, "category_id": 1}
                    content["annotations"].append(annotation | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
            (place.parent / f"gender_{name}_test.json").write_text(json.dumps(content))
        dataset = load_dataset(folder)
        seconds: dict[str, list[float]] = {"first evaluation": [], "second evaluation": []}
        for turn in range(max(2, repeats - 1)):
            with patch.dict(os.environ, {"FAAP_CACHE_DIR": str(Path(folder) / f"cache_{turn}")}):
                for times in seconds.values():
                    generator = Generator().to(device)
                    _wait(device)
                    started = time.perf_counter()
                    evaluate(detector, generator, dataset, "test", batch_size=BATCH)
                    times.append(time.perf_counter() - started)
    _note(result, seconds, evaluate_twice=("second evaluation", "first evaluation"))


def _coco_sizes(count: int, upright: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw image sizes; `upright` multiplies how often tall ones come."""
    shares = np.array([share * (upright if height > width else 1) for width, height, share in _COCO_SIZES])
    drawn = rng.choice(len(shares), count, p=shares / shares.sum())
    # many images are a little smaller than their kind
    return [(_COCO_SIZES[i][0], _COCO_SIZES[i][1] - int(rng.integers(0, 8))) for i in drawn]


def _padding(result: dict[str, Any], device: torch.device, repeats: int) -> None:
    """Women are more often in upright pictures; sizes after DETR's augmentation."""
    rng = np.random.default_rng(0)
    split = _split(_coco_sizes(9295, 2.0, rng), _coco_sizes(9296, 1.0, rng))
    images = FaapImages(split, Preprocessing(), {1: 0}, training=True)
    women, men = split.positions("female"), split.positions("male")
    for name, shape in (("padding_waste", images.shape), ("padding_waste_random", None)):
        batches = GroupBalancedBatches(women, men, 8, 0, shape=shape)
        padded = valid = 0
        for batch in batches:
            sizes = [images.shape(*key) for key in batch]
            valid += sum(height * width for height, width in sizes)
            padded += len(sizes) * math.prod(map(max, zip(*sizes, strict=True)))
        result[name] = 1 - valid / padded


def _loader(result: dict[str, Any], device: torch.device, repeats: int) -> None:
    """Training images of 640x480 for a detector of 800 pixels, in one process with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        split = _split([(640, 480)] * 4, [(640, 480)] * 4, Path(folder))
        for record in split.records:
            _picture(rng, record.width, record.height).save(record.path, quality=90)
        images = FaapImages(split, Preprocessing(), {1: 0}, training=True)
        turns = itertools.count()
        parts = {
            "decoding JPEGs": (faap.data.dataset, "read_image"),
            "resizing": (faap.data.images, "_resize"),
            "normalising": (faap.data.images, "_pixels"),
        }
        shares, seconds = _profile(
            lambda: [images[(epoch, i)] for epoch in (next(turns),) for i in range(len(images))],
            parts,
            4 * repeats,
            torch.device("cpu"),
        )
        torch.set_num_threads(threads)
    result["loader"] = {
        "images_per_second_per_worker": len(images) / seconds,
        "shares": shares | {"the rest": 1 - sum(shares.values())},
        "bound": max(shares, key=lambda name: shares[name]),
    }


def table(result: Mapping[str, Any]) -> Table:
    """Lay out the figures for the terminal."""
    rows = Table()
    rows.add_column("figure", no_wrap=True)
    rows.add_column("value", justify="right", no_wrap=True)
    rows.add_column("target", no_wrap=True)
    rows.add_column("what it is")
    for name, meaning in MEANING.items():
        target = f"≤ {TARGETS[name]}" if name in TARGETS else ""
        rows.add_row(name, "n/a" if result[name] is None else f"{result[name]:.3f}", target, meaning)
    loader = result["loader"]
    meaning = f"training images a worker; most of its time goes into {loader['bound']}"
    rows.add_row("loader", f"{loader['images_per_second_per_worker']:.0f}/s", "", meaning)
    return rows


def write(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Write the figures as JSON, and beside it how a step grows and where its time goes as pictures.

    Returns:
        The files.
    """
    pictures = {
        path.with_name(f"{path.stem}_growth.png"): _draw_growth,
        path.with_name(f"{path.stem}_profile.png"): _draw_profile,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for place, draw in pictures.items():
        with style():
            figure = draw(result)
        with replacing(place) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    return [path, *pictures]


def _draw_growth(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, grown) in zip(figure.subplots(1, 3), result["growth"].items(), strict=True):
        for label, key, colour in (("time", "seconds", REFERENCE_COLOUR), ("memory", "bytes", ANCHOR_COLOUR)):
            if None not in grown[key]:
                base = grown["values"][0]
                axes.plot(
                    [value / base for value in grown["values"]],
                    [value / grown[key][0] for value in grown[key]],
                    color=colour,
                    marker="o",
                    label=label,
                )
        ratios = [value / base for value in grown["values"]]
        axes.plot(ratios, ratios, color=QUIET, linestyle="--", linewidth=1, label="in proportion")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel(f"{name}, from {base:,.0f}")
        axes.set_ylabel("a step's cost, times the first")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _draw_profile(result: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    shares = dict(reversed(result["profile"].items()))
    bars = axes.barh(list(shares), [100 * share for share in shares.values()], color=REFERENCE_COLOUR)
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set_xlabel("share of a training step's time, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
