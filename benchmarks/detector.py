"""Stock, prepared and compiled detector, and a step of infonce_4th, at a size of your choice: ratios of one run.

    python benchmarks/detector.py --size 800x1066 --batch 2
    python benchmarks/detector.py --compile

DETR-R50 with random weights, as in `faap bench`.
"""

import argparse
import json
import time

import torch

from faap import bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="320x416", help="height x width in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, width = map(int, args.size.split("x"))

    stock, prepared = bench.stock_detector(device), bench.prepared_detector(device)
    step = bench._Step(prepared, device, args.batch, (height, width))
    pixels, mask = step.batch.pixel_values, step.batch.pixel_mask
    through = {
        "stock": bench._through(stock, pixels, mask),
        "prepared": bench._through(prepared, pixels, mask),
        "step": step,
    }
    first = None
    if args.compile:
        compiled = bench.prepared_detector(device)
        compiled.compile(dynamic=False)
        through["compiled"] = bench._through(compiled, pixels, mask)
        started = time.perf_counter()
        through["compiled"]()
        first = time.perf_counter() - started
    result = {"size": args.size, "batch": args.batch, "seconds": {}, "ranges": {}}
    seconds = bench.take_turns(through, args.repeats, device)
    ratios = {"prepared_over_stock": ("prepared", "stock"), "step_over_floor": ("step", "stock")}
    if args.compile:
        ratios["compiled_over_prepared"] = ("compiled", "prepared")
    bench._note(result, seconds, **ratios)
    with torch.no_grad():
        forward = {
            "stock forward": lambda: stock(pixel_values=pixels, pixel_mask=mask.long()),
            "prepared forward": lambda: prepared(pixels, mask),
        }
        seconds = bench.take_turns(forward, args.repeats, device)
    bench._note(result, seconds, prepared_forward_over_stock=("prepared forward", "stock forward"))
    result["first_compiled_seconds"] = first
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
