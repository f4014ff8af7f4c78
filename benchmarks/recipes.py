"""What a training image costs under each recipe, as a ratio to the frozen detector's own forward and backward pass.

    .venv/bin/python benchmarks/recipes.py

On Promenade, with each recipe's own batch size, loading left out; the recipes take turns.
"""

import json
import statistics
from collections.abc import Callable

import torch
from common import arguments

import faap
from faap.bench import Job, take_turns
from faap.config import recipe_names
from faap.data import Batch
from faap.training import Trainer


def main() -> None:
    args = arguments(__doc__, threads=1, repeats=9, images=24)
    detector = faap.load_detector("promenade", args.device)
    split = faap.load_dataset("promenade").split("train")
    jobs: dict[str, Job] = {}
    floors: dict[str, str] = {}

    def add(name: str) -> None:
        recipe = faap.load_recipe(name, images_per_epoch=args.images)
        trainer = Trainer(recipe, args.device, detector, split)
        batches: list[Batch] = [batch.to(args.device) for batch in trainer.loader]
        schedule = {key: values[-1] for key, values in recipe.schedules().items()}
        trainer.generator.train()
        trainer.objective.train()
        floors[name] = f"detector, batches of {recipe.batch_size}"
        jobs[name] = lambda: [trainer.step(batch, 0, schedule) for batch in batches]
        jobs[floors[name]] = alone(batches)

    def alone(batches: list[Batch]) -> Callable[[], None]:
        def job() -> None:
            for batch in batches:
                pixels = batch.pixel_values.clone().requires_grad_()
                out = detector(pixels, batch.pixel_mask)
                torch.autograd.grad(out.logits.sum() + out.boxes.sum(), pixels)

        return job

    for name in recipe_names():
        add(name)
    turns = take_turns(jobs, args.repeats, args.device)
    seconds = {name: statistics.median(values) for name, values in turns.items()}
    ratios = {name: round(seconds[name] / seconds[floor], 2) for name, floor in floors.items()}
    print(json.dumps({"threads": args.threads, "step_over_detector": ratios}, indent=2))


if __name__ == "__main__":
    main()
