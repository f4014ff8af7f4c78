"""Stock, prepared and compiled detector, generators, and a step of infonce_4th, at a size of your choice.

    .venv/bin/python benchmarks/detector.py --size 800x1066 --batch 2
    .venv/bin/python benchmarks/detector.py --compile

DETR-R50 with random weights, as in `faap bench`; ratios of one run, and the memory of a step over the stock detector's.
"""

import json
import time
from typing import Any

import torch
from common import arguments, one_step, parse_size, peak_memory, scenes

from faap import bench
from faap.perturbation import build_generator


def main() -> None:
    args = arguments(__doc__, size="320x416", batch=4, compile=False)
    device, size = args.device, parse_size(args.size)
    stock, prepared = bench.stock_detector(device), bench.prepared_detector(device, size)
    with scenes() as data:
        step, batch = one_step(prepared, args.batch, data)
    pixels = batch.pixel_values
    light, unet = (build_generator(arch).eval().to(device) for arch in ("light", "unet"))

    floor = bench.through(lambda images: stock(pixel_values=images), "pred_boxes", pixels)
    jobs: dict[str, bench.Job] = {
        "stock": floor,
        "prepared": bench.through(lambda images: prepared(images), "boxes", pixels),
        "step": step,
    }
    ratios = {"prepared_over_stock": ("prepared", "stock"), "step_over_floor": ("step", "stock")}
    first: dict[str, float] = {}
    if args.compile:
        compiled = bench.prepared_detector(device, size)
        compiled.compile(dynamic=False)
        jobs["compiled"] = bench.through(lambda images: compiled(images), "boxes", pixels)
        ratios["compiled_over_prepared"] = ("compiled", "prepared")
        started = time.perf_counter()
        jobs["compiled"]()
        first["first_compiled_seconds"] = time.perf_counter() - started
    alone = torch.no_grad()
    jobs |= {
        "stock forward": alone(lambda: stock(pixel_values=pixels)),
        "prepared forward": alone(lambda: prepared(pixels)),
        "light": alone(lambda: light.perturb(pixels)),
        "unet": alone(lambda: unet.perturb(pixels)),
    }
    ratios |= {
        "prepared_forward_over_stock": ("prepared forward", "stock forward"),
        "generator_over_detector": ("light", "prepared forward"),
        "unet_over_detector": ("unet", "prepared forward"),
    }
    result: dict[str, Any] = {"size": args.size, "batch": args.batch, **first}
    result |= bench.ratios(bench.take_turns(jobs, args.repeats, device), ratios)
    ours, theirs = peak_memory(step, device), peak_memory(floor, device)
    result["peak_memory_over_floor"] = ours / theirs if ours and theirs else None
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
