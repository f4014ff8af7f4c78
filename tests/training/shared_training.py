"""Trains a few steps of several recipes and leaves what came out; the test starts it in one process and in two."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import faap
from faap import distributed
from faap.data import Batch
from faap.evaluation import detect
from faap.evaluation.detections import mean_distance
from faap.perturbation import build_generator
from faap.training import Trainer
from faap.training.monitor import NullMonitor


class Log(NullMonitor):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def step(self, number: int, values: Any) -> None:
        self.values.append(dict(values))


def in_double_precision(trainer: Trainer) -> list[tuple[int, int]]:
    """Let a trainer step in float64; return a list that gets the height and width of every batch."""
    shapes: list[tuple[int, int]] = []
    trainer.generator.double()
    trainer.detector.double()  # the objective is single precision, of the whole batch in every process
    step = trainer.step

    def stepping(batch: Batch, *rest: Any) -> dict[str, float]:
        height, width = batch.pixel_mask.shape[1:]
        shapes.append((height, width))
        targets = [target | {"boxes": target["boxes"].double()} for target in batch.targets]
        return step(replace(batch, pixel_values=batch.pixel_values.double(), targets=targets), *rest)

    trainer.step = stepping  # type: ignore[method-assign]
    return shapes


def main(places: dict[str, str], out: Path, recipes: list[str]) -> None:
    torch.set_num_threads(1)
    device = distributed.resolve_device("cpu")
    split = faap.load_dataset(places["dataset_root"]).split("train")
    result = {}
    for name in recipes:
        # 12 images: batches of 8 and 4
        recipe = faap.load_recipe(name, **places, batch_size=8, images_per_epoch=12, lr_g=1e-3, epochs=5)
        trainer, log = Trainer(recipe, device, faap.load_detector(places["detr_checkpoint"]), split), Log()
        gradients: list[torch.Tensor] = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, kept=gradients: kept.append(
                torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"] if p.grad is not None])
            )
        )
        shapes = in_double_precision(trainer)
        result[name] = {
            "row": json.dumps(trainer.epoch(0, log)),
            "steps": log.values,
            "shapes": shapes,
            "gradients": gradients,
            "generator": trainer.generator.state_dict(),
            "objective": trainer.objective.state_dict(),
        }
    detector = faap.load_detector(places["detr_checkpoint"])
    test = faap.load_dataset(places["dataset_root"]).split("test")
    generator = build_generator("light", 0.1)
    generator.load_state_dict(torch.load(out / "generator.pth", weights_only=True))
    found = detect(detector, test, generator, batch_size=3, with_distance=True)  # 8 images: batches of 3, 3 and 2
    result["detections"] = {
        "image_ids": [each.image_id for each in found],
        "scores": [torch.from_numpy(each.scores) for each in found],
        "boxes": [torch.from_numpy(each.boxes) for each in found],
        "quality": mean_distance(found),
    }
    torch.save(result, out / f"{distributed.world()}_{distributed.rank()}.pth")
    distributed.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
