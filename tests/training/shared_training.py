"""Trains a few steps of several recipes, and runs commands, in one process and in several, and leaves what came out.

Torch is imported once; what a launcher starts anew is a fork here, with what a launcher says to it.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import faap
from faap import cli, distributed
from faap.data import Batch
from faap.evaluation import detect
from faap.evaluation.detections import mean_distance
from faap.perturbation import build_generator
from faap.training import Trainer
from faap.training.monitor import NullMonitor

RECIPES = ("infonce_4th", "contrastive_1st", "infonce_3rd_fix2", "wgan_7th", "moco_4th")


class InDouble(Batch):
    @property
    def pixel_values(self) -> torch.Tensor:
        return super().pixel_values.double()


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
        height, width = batch.images.shape[2:]
        shapes.append((height, width))
        targets = replace(batch.targets, boxes=batch.targets.boxes.double())
        return step(InDouble(**vars(batch) | {"targets": targets}), *rest)

    trainer.step = stepping  # type: ignore[method-assign]
    return shapes


def train(places: dict[str, str], out: Path, recipes: list[str]) -> int:
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
    return 0


def together(processes: int, work: Callable[[], int], out: Path, name: str) -> None:
    """Do something in as many processes; leave each one's standard error and its exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launched = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        os.environ |= {key: str(value) for key, value in {**launched, "RANK": rank, "LOCAL_RANK": rank}.items()}
        place = out / f"{name}_{processes}_{rank}"
        os.dup2(os.open(f"{place}.err", os.O_WRONLY | os.O_CREAT), 2)
        status = 1
        try:
            status = work()
        finally:
            Path(f"{place}.status").write_text(str(status))
            sys.stderr.flush()
            os._exit(0)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, f"{name}: a process of {processes} was killed by signal {status}"


def told_to_stop(words: list[str]) -> int:
    """Run a command, of whose processes the second is sent SIGTERM in its sixth step, the second of an epoch."""
    step, made = Trainer.step, [0]

    def stepping(self: Trainer, *rest: Any) -> dict[str, torch.Tensor]:
        made[0] += 1
        if made[0] == 6 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *rest)

    Trainer.step = stepping  # type: ignore[method-assign]
    return cli.main(words)


def main(places: dict[str, str], out: Path) -> None:
    data, detector = (f"--{key}={places[key]}" for key in ("dataset_root", "detr_checkpoint"))
    # of three processes one gets two images of the last batch, and the others one
    for processes, recipes in ((1, RECIPES), (2, RECIPES), (3, RECIPES[:1])):
        together(processes, lambda recipes=recipes: train(places, out, list(recipes)), out, "train")  # type: ignore[misc]
    measure = ["evaluate", str(out / "generator"), data, detector, "--device=cpu"]
    for processes in (1, 2):
        words = [*measure, f"--output_dir={out}/measured_{processes}"]
        together(processes, lambda words=words: cli.main(words), out, "evaluate")  # type: ignore[misc]
    small = ["train", "moco_4th", data, detector, "--device=cpu", "--batch_size=4", "--images_per_epoch=16"]
    small += ["--epochs=2", "--queue_size=8", "--widths=8,8,8"]
    together(2, lambda: cli.main([*small, f"--output_dir={out}/whole"]), out, "whole")
    together(2, lambda: told_to_stop([*small, f"--output_dir={out}/cut"]), out, "stop")
    together(2, lambda: cli.main([*small, f"--output_dir={out}/cut"]), out, "again")
    wrong = ["train", "infonce_4th", "--dataset_root=/nowhere", detector, "--device=cpu"]
    together(2, lambda: cli.main(wrong), out, "wrong")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
