"""How often the bootstrap's 95 % interval covers a gap that is known, by the number of images.

    .venv/bin/python tools/measure_coverage.py

It writes docs/results/measured/coverage.json, from which tools/write_results.py fills in docs/evaluation.md's table.

Images of two groups come from one process: one to three people an image, each found with a chance and a score that
depend on the group, the box a few pixels off, and mistakes among them. What AP and AR are in truth is measured on many
images; then experiments of few images each are drawn, and in how many the interval holds the truth is counted.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from faap.data import Record, Split
from faap.evaluation import Detections, MetricFrame

SIZES = (10, 20, 40, 60, 100)
# chance of being found, and mean and spread of a found person's score before the logistic function
FOUND = {"female": (0.80, 0.5, 1.2), "male": (0.92, 1.3, 1.2)}
AFTER = {"female": (0.90, 1.1, 1.2), "male": (0.92, 1.3, 1.2)}
METRICS = ("AP", "AR100")
OUT = Path(__file__).parents[1] / "docs" / "results" / "measured" / "coverage.json"


def simulate(
    images: int, rng: np.random.Generator, *processes: dict[str, tuple[float, float, float]]
) -> tuple[Split, list[list[Detections]]]:
    """Draw images of each group, and what detectors find in them."""
    records, found = [], [[] for _ in processes]
    for group in FOUND:
        for _ in range(images):
            count = int(rng.integers(1, 4))
            boxes = np.concatenate([rng.uniform(0, 400, (count, 2)), rng.uniform(40, 160, (count, 2))], axis=1)
            areas, nobody = boxes[:, 2] * boxes[:, 3], np.zeros(count, bool)
            one = np.ones(count, np.int64)
            key = len(records) + 1
            records.append(Record(key, Path(f"{key}.jpg"), 600, 600, group, boxes, one, areas, nobody, None))
            shift, luck, score = rng.normal(0, 4, boxes.shape), rng.random(count), rng.normal(size=count)
            mistakes = int(rng.poisson(1.0))
            wrong = np.concatenate([rng.uniform(0, 400, (mistakes, 2)), rng.uniform(40, 160, (mistakes, 2))], axis=1)
            doubt = rng.normal(-1.0, 1.2, mistakes)
            for detections, process in zip(found, processes, strict=True):
                chance, mean, spread = process[group]
                kept = luck < chance
                scores = 1 / (1 + np.exp(-np.concatenate([mean + spread * score[kept], doubt])))
                everything = np.concatenate([(boxes + shift)[kept], wrong])
                detections.append(Detections(key, scores, np.ones(len(scores), np.int64), everything))
    return Split("test", tuple(records), {1: "person"}, "female", "male"), found


def gap(frame: MetricFrame, metric: str) -> dict[str, object]:
    return frame.difference["female"][metric]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=400)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--truth", type=int, default=40_000, help="images of each group that say what is true")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    split, found = simulate(args.truth, np.random.default_rng(0), FOUND, AFTER)
    true = MetricFrame(split, *found, samples=0, metrics=METRICS)
    truth = {metric: (gap(true, metric)["baseline"], gap(true, metric)["change"]) for metric in METRICS}
    rows = []
    for size in args.sizes:
        covered = dict.fromkeys([(metric, what) for metric in METRICS for what in ("baseline_ci95", "ci95")], 0)
        for experiment in range(args.experiments):
            split, found = simulate(size, np.random.default_rng([size, experiment]), FOUND, AFTER)
            frame = MetricFrame(split, *found, samples=args.samples, metrics=METRICS)
            for metric, what in covered:
                low, high = gap(frame, metric)[what]
                covered[metric, what] += low <= truth[metric][what == "ci95"] <= high
        shares = {f"{metric} {what}": round(count / args.experiments, 4) for (metric, what), count in covered.items()}
        rows.append({"images": size, "covered": shares})
        print(json.dumps(rows[-1]), flush=True)
    said = {"data_sets": args.experiments, "samples": args.samples, "truth": truth, "rows": rows}
    args.out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
