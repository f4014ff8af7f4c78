"""What a training image costs under each recipe, as a ratio to the frozen detector's own forward and backward pass.

    .venv/bin/python benchmarks/recipes.py

On Promenade, with each recipe's own batch size, loading left out; the recipes take turns.
"""

import json
from collections.abc import Sequence
from functools import partial

from common import arguments

import faap
from faap import bench
from faap.bench import Job, take_turns, through, training_step
from faap.config import recipe_names
from faap.data import Batch
from faap.detectors import FrozenDetector


def main() -> None:
    args = arguments(__doc__, threads=1, repeats=9, images=24)
    detector = faap.load_detector("promenade", args.device)
    dataset = faap.load_dataset("promenade")
    jobs: dict[str, Job] = {}
    ratios: dict[str, tuple[str, str]] = {}
    for name in recipe_names():
        recipe = faap.load_recipe(name, images_per_epoch=args.images)
        jobs[name], batches = training_step(recipe, detector, dataset)
        floor = f"detector, batches of {recipe.batch_size}"
        jobs[floor] = alone(detector, batches)
        ratios[name] = name, floor
    turns = bench.ratios(take_turns(jobs, args.repeats, args.device), ratios)
    rounded = {name: round(turns[name], 2) for name in ratios}
    print(json.dumps({"threads": args.threads, "step_over_detector": rounded}, indent=2))


def alone(detector: FrozenDetector, batches: Sequence[Batch]) -> Job:
    jobs = [through(partial(detector, pixel_mask=batch.pixel_mask), "boxes", batch.pixel_values) for batch in batches]
    return lambda: [job() for job in jobs]


if __name__ == "__main__":
    main()
