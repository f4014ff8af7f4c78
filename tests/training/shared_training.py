"""Trains a few steps of several recipes and leaves what came out; the test starts it in one process and in two."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import faap
from faap import distributed
from faap.data import Batch
from faap.evaluation.detections import detect_and_compare
from faap.perturbation import Generator
from faap.training import Trainer
from faap.training.monitor import NullMonitor


class Log(NullMonitor):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def step(self, number: int, values: Any) -> None:
        self.values.append(dict(values))


def watched(trainer: Any) -> list[tuple[int, int]]:
    """Return a list that gets the height and width of every batch the trainer steps on."""
    shapes: list[tuple[int, int]] = []
    step = trainer.step

    def noting(batch: Batch, *rest: Any) -> dict[str, float]:
        height, width = batch.pixel_mask.shape[1:]
        shapes.append((height, width))
        return step(batch, *rest)

    trainer.step = noting
    return shapes


def main(places: dict[str, str], out: Path, recipes: list[str]) -> None:
    torch.set_num_threads(1)
    device = distributed.resolve_device("cpu")
    detector = faap.load_detector(places["detr_checkpoint"], device)
    split = faap.load_dataset(places["dataset_root"]).split("train")
    result = {}
    for name in recipes:
        # 18 images: batches of 8, 8 and 2
        recipe = faap.load_recipe(name, **places, batch_size=8, images_per_epoch=18, lr_g=1e-3, epochs=5)
        torch.manual_seed(0)
        trainer, log = Trainer(recipe, device, detector, split), Log()
        gradients: list[torch.Tensor] = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, kept=gradients: kept.append(
                torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"] if p.grad is not None])
            )
        )
        shapes = watched(trainer)
        rows = [trainer.epoch(epoch, log) for epoch in range(2)]
        result[name] = {
            "rows": json.dumps(rows),
            "steps": log.values,
            "shapes": shapes,
            "first_gradient": gradients[0].clone(),
            "generator": trainer.generator.state_dict(),
            "objective": trainer.objective.state_dict(),
        }
    test = faap.load_dataset(places["dataset_root"]).split("test")
    generator = Generator()
    generator.load_state_dict(torch.load(out / "generator.pth", weights_only=True))
    found, quality = detect_and_compare(detector, test, generator, batch_size=3)  # 8 images: batches of 3, 3 and 2
    result["detections"] = {
        "image_ids": [each.image_id for each in found],
        "scores": [torch.from_numpy(each.scores) for each in found],
        "boxes": [torch.from_numpy(each.boxes) for each in found],
        "quality": quality,
    }
    torch.save(result, out / f"{distributed.world()}_{distributed.rank()}.pth")
    distributed.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
