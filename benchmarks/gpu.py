"""What a graphics card does of what is promised for one, in under six minutes; as JSON with the card's name.

    .venv/bin/python benchmarks/gpu.py --out docs/performance/gpu.json

DETR-R50 has random weights, as in `faap bench`: a training step of infonce_4th without jitter over the stock detector's
pass and input gradient, plain and recorded (--graph); the generator over the detector. Promenade is trained with
`equal` at two batch sizes, plain and recorded, measured in images a second, loading included; so is an evaluation. The
loss of bf16 is laid beside that of float32, step by step, and beside another seed's. --scenes makes all of it small.
"""

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, parse_size, scenes

import faap
from faap import bench
from faap.data import Dataset
from faap.evaluation import detect
from faap.files import write_text
from faap.perturbation import build_generator
from faap.training import Trainer
from faap.training.monitor import NullMonitor

SETTINGS = (("320x416", 4, "no"), ("800x1066", 8, "bf16"))


class Losses(NullMonitor):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, number: int, values: Any) -> None:
        self.values.append(values["total"])


def detr(device: torch.device, size: str, batch: int, precision: str, repeats: int, data: Dataset) -> dict[str, Any]:
    """Return ratios of a step, plain and recorded, and of the generator, at one setting."""
    half = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    stock, prepared = bench.stock_detector(device), bench.prepared_detector(device, parse_size(size))
    jobs, generator = dict[str, bench.Job](), build_generator().eval().to(device)
    for name, graph in (("step", False), ("recorded", True)):
        how = {"batch_size": batch, "images_per_epoch": batch, "aug_strength": "none", "precision": precision}
        recipe = faap.load_recipe("infonce_4th", **how, graph=graph)
        jobs[name], [images] = bench.training_step(recipe, prepared, data)
        for _ in range(5):
            jobs[name]()  # what is made once, and the recording
    pixels = images.pixel_values

    def in_precision(job: bench.Job) -> bench.Job:
        def run() -> None:
            with half:
                job()

        return run

    jobs["floor"] = in_precision(bench.through(lambda images: stock(images), "pred_boxes", pixels))
    jobs["detector"] = in_precision(torch.no_grad()(lambda: prepared(pixels)))
    jobs["generator"] = in_precision(torch.no_grad()(lambda: generator.perturb(pixels)))
    wanted = {"step_over_floor": ("step", "floor"), "recorded_over_floor": ("recorded", "floor")}
    wanted["generator_over_detector"] = ("generator", "detector")
    return bench.ratios(bench.take_turns(jobs, repeats, device), wanted)


def training(device: torch.device, data: Dataset, images: int, **changes: Any) -> tuple[float, list[float]]:
    """Return how many images a second an epoch of `equal` takes, after a first one, and all its losses."""
    recipe = faap.load_recipe("equal", images_per_epoch=images, epochs=2, lr_warmup_epochs=0, **changes)
    detector, losses = faap.load_detector("promenade", device), Losses()
    trainer = Trainer(recipe, device, detector, data.split("train"))
    trainer.epoch(0, losses)
    started = time.perf_counter()
    trainer.epoch(1, losses)
    return images / (time.perf_counter() - started), losses.values


def main() -> None:
    started = time.perf_counter()
    args = arguments(__doc__, scenes=12_000, out="")
    device, on_gpu = args.device, args.device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__}
    with scenes() as data:
        for size, batch, precision in SETTINGS if on_gpu else [("64x96", 2, "no")]:
            key = f"DETR-R50 {size}, batch {batch}, {precision.replace('no', 'float32')}"
            result[key] = detr(device, size, batch, precision, args.repeats, data)
    promenade = faap.load_dataset("promenade", scenes=args.scenes)
    rates: dict[str, float] = {}
    for batch in (64, 128):
        for graph in (False, True):
            images = max(1, min(args.scenes, 12_000) // batch) * batch
            rates[f"batch {batch}{', recorded' if graph else ''}"], _ = training(
                device, promenade, images, batch_size=batch, graph=graph
            )
    result["equal on Promenade, images a second"] = rates
    detector, test = faap.load_detector("promenade", device), promenade.split("test")
    for batch in (16, 128):
        begun = time.perf_counter()
        detect(detector, test, build_generator().to(device), batch_size=batch, num_workers=8 if on_gpu else 0)
        rates[f"evaluation, batch {batch}"] = len(test.records) / (time.perf_counter() - begun)
    if on_gpu:
        curves = [
            training(device, promenade, 6400, precision=p, seed=s)[1] for p, s in (("no", 0), ("bf16", 0), ("no", 1))
        ]
        apart = [
            np.abs(np.subtract(curves[0][50:], other[50:])).mean() / np.mean(curves[0][50:]) for other in curves[1:]
        ]
        result["loss, mean relative distance from float32"] = dict(zip(("bf16", "another seed"), apart, strict=True))
    result["minutes"] = (time.perf_counter() - started) / 60
    print(json.dumps(result, indent=1))
    if args.out:
        write_text(Path(args.out), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
