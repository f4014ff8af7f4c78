"""Where a training step's time goes, as shares of it; as JSON and as a plot.

    .venv/bin/python benchmarks/step.py --out docs/performance/bench_profile.png

From the ranges that a step names for torch's profiler, so that a run of your own can be looked at in the same way.
DETR-R50 with random weights, as in `faap bench`.
"""

import json
from pathlib import Path

import torch
from common import arguments, one_step, parse_size, scenes
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile, record_function

from faap import bench
from faap.report.charts import REFERENCE_COLOUR, style

RANGES = {"perturb": "generator", "augment": "colour jitter", "detect": "detector", "loss": "losses"}


def main() -> None:
    args = arguments(__doc__, size="320x416", batch=4, out="")
    on_gpu = args.device.type == "cuda"
    with scenes() as data:
        step, _ = one_step(bench.prepared_detector(args.device, parse_size(args.size)), args.batch, data)
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        for _ in range(args.repeats):
            with record_function("step"):
                step()
                if on_gpu:
                    torch.cuda.synchronize()
    spent = {
        event.key: float(event.device_time_total if on_gpu else event.cpu_time_total) for event in seen.key_averages()
    }
    shares = {title: spent[name] / spent["step"] for name, title in RANGES.items()}
    # the way back through each operation of the way forth
    back = sum(time for name, time in spent.items() if name.startswith("autograd::engine::evaluate_function"))
    shares["backward"] = back / spent["step"]
    shares["clipping, optimizer, logging"] = 1 - sum(shares.values())
    print(json.dumps(shares, indent=1))
    if args.out:
        with style():
            draw(shares).savefig(Path(args.out), dpi=110)


def draw(shares: dict[str, float]) -> Figure:
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    rows = dict(reversed(shares.items()))
    bars = axes.barh(list(rows), [100 * share for share in rows.values()], color=REFERENCE_COLOUR)
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set_xlabel("share of a training step's time, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
