"""Ratios that the design promises, each measured in one run with interleaved repeats.

    python benchmarks/step.py --threads 2

DETR-R50 with random weights, float32, batch 4 at 320×416: what preparing the frozen detector saves (forward, and
backward to the input), and what the light generator and the original U-Net cost beside it (forward). And how many
images a second Promenade is built at.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from faap.data import Preprocessing
from faap.detectors.hugging_face import HuggingFaceDetector
from faap.detectors.prepare import prepare
from faap.perturbation import Generator
from faap.promenade import build_promenade


def detr() -> DetrForObjectDetection:
    torch.manual_seed(0)
    backbone = ResNetConfig(out_features=["stage4"])
    return DetrForObjectDetection(DetrConfig(use_timm_backbone=False, backbone_config=backbone)).eval()


def interleaved(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each job, the jobs taking turns."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if turn:  # the first is a warm-up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    stock, images = detr(), torch.randn(4, 3, 320, 416)
    mask = torch.ones(4, 320, 416, dtype=torch.bool)
    size = Preprocessing(shortest_edge=800, longest_edge=1333)
    prepared = HuggingFaceDetector(prepare(detr()), name="detr", preprocessing=size, checkpoint_sha256="")
    light, unet = Generator("light").eval(), Generator("unet").eval()

    def stock_step() -> None:
        x = images.clone().requires_grad_()
        out = stock(pixel_values=x, pixel_mask=mask.long())
        torch.autograd.grad(out.logits.sum() + out.pred_boxes.sum(), x)

    def prepared_step() -> None:
        x = images.clone().requires_grad_()
        out = prepared(x, mask)
        torch.autograd.grad(out.logits.sum() + out.boxes.sum(), x)

    @torch.no_grad()
    def forward(network: torch.nn.Module) -> None:
        network(images, mask)

    seconds = interleaved(
        {
            "stock step": stock_step,
            "prepared step": prepared_step,
            "prepared forward": lambda: forward(prepared),
            "light forward": lambda: forward(light),
            "unet forward": lambda: forward(unet),
        },
        args.repeats,
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        build_promenade(Path(folder), {"train": 150, "val": 75, "test": 75})
        rate = 600 / (time.perf_counter() - started)
    print(
        json.dumps(
            {
                "threads": args.threads,
                "prepared_over_stock": round(seconds["prepared step"] / seconds["stock step"], 3),
                "light_over_detector": round(seconds["light forward"] / seconds["prepared forward"], 3),
                "unet_over_detector": round(seconds["unet forward"] / seconds["prepared forward"], 3),
                "promenade_images_per_second": round(rate),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
