"""What a training image costs under each recipe, as a ratio to the frozen detector's own forward and backward pass.

    python benchmarks/recipes.py --threads 1

On Promenade, with each recipe's own batch size, loading left out; the recipes take turns.
"""

import argparse
import json
import statistics
from collections.abc import Callable

import torch

import faap
from faap.bench import take_turns
from faap.config import recipe_names
from faap.data import Batch
from faap.training import Trainer

IMAGES = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    detector = faap.load_detector("promenade")
    split = faap.load_dataset("promenade").split("train")
    jobs: dict[str, Callable[[], object]] = {}

    def add(name: str) -> None:
        recipe = faap.load_recipe(name, images_per_epoch=IMAGES)
        trainer = Trainer(recipe, torch.device("cpu"), detector, split)
        batches: list[Batch] = list(trainer.loader)
        schedule = {key: values[-1] for key, values in recipe.schedules().items()}
        trainer.generator.train()
        trainer.objective.train()
        jobs[name] = lambda: [trainer.step(batch, 0, schedule) for batch in batches]

        def alone() -> None:
            for batch in batches:
                pixels = batch.pixel_values.clone().requires_grad_()
                out = detector(pixels, batch.pixel_mask)
                torch.autograd.grad(out.logits.sum() + out.boxes.sum(), pixels)

        jobs[f"detector, batch {recipe.batch_size}"] = alone

    for name in recipe_names():
        add(name)
    turns = take_turns(jobs, args.repeats, torch.device("cpu"))
    seconds = {name: statistics.median(values) for name, values in turns.items()}
    floor = {name: seconds[f"detector, batch {faap.load_recipe(name).batch_size}"] for name in recipe_names()}
    ratios = {name: round(seconds[name] / floor[name], 2) for name in recipe_names()}
    print(json.dumps({"threads": args.threads, "step_over_detector": ratios}, indent=2))


if __name__ == "__main__":
    main()
