"""How a step's time and memory grow with the batch, the area of an image and the queries; as JSON and as a plot.

    .venv/bin/python benchmarks/growth.py --out docs/performance/bench_growth.png

Relative to the first of each axis, whose steps take turns. DETR-R50 with random weights, as in `faap bench`.
"""

import json
import statistics
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from common import arguments, one_step, parse_size, peak_memory, scenes
from matplotlib.figure import Figure

from faap import bench
from faap.report.charts import ANCHOR_COLOUR, QUIET, REFERENCE_COLOUR, style


def main() -> None:
    args = arguments(__doc__, repeats=2, size="320x416", out="")
    device, (height, width) = args.device, parse_size(args.size)
    scaled = [(16 * round(s * height / 16), 16 * round(s * width / 16)) for s in (0.7, 1.0, 1.4, 2.0)]
    growth: dict[str, Any] = {}
    with scenes() as data:
        detector = cache(bench.prepared_detector)

        def step(batch: int = 2, size: bench.Size = (height, width), queries: int = 100) -> bench.Job:
            return one_step(detector(device, size, queries), batch, data)[0]

        axes = {
            "images in a batch": {n: step(batch=n) for n in (2, 4, 8)},
            "pixels of an image": {size[0] * size[1]: step(size=size) for size in scaled},
            "queries": {n: step(queries=n) for n in (50, 100, 200, 400)},
        }
        for name, steps in axes.items():
            turns = bench.take_turns({str(value): job for value, job in steps.items()}, args.repeats, device)
            seconds = [statistics.median(times) for times in turns.values()]
            memory = [peak_memory(job, device) for job in steps.values()]
            growth[name] = {
                "values": list(steps),
                "time": [value / seconds[0] for value in seconds],
                "memory": None if None in memory or not memory[0] else [value / memory[0] for value in memory],
            }
    print(json.dumps(growth, indent=1))
    if args.out:
        with style():
            draw(growth).savefig(Path(args.out), dpi=110)


def draw(growth: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, grown) in zip(figure.subplots(1, 3), growth.items(), strict=True):
        ratios = [value / grown["values"][0] for value in grown["values"]]
        for label, colour in (("time", REFERENCE_COLOUR), ("memory", ANCHOR_COLOUR)):
            if grown[label]:
                axes.plot(ratios, grown[label], color=colour, marker="o", label=label)
        axes.plot(ratios, ratios, color=QUIET, linestyle="--", linewidth=1, label="in proportion")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel(f"{name}, from {grown['values'][0]:,.0f}")
        axes.set_ylabel("a step's cost, times the first")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
