"""How long 1,000 paired replicates take, and what memory, on 6,199 images with a hundred detections each.

    .venv/bin/python benchmarks/bootstrap.py [--metrics AP,AR100]

Prints JSON: seconds, and the process's largest memory, for two detectors' metrics with interval, change and p-value.
"""

import json
import resource
import time
from pathlib import Path

import numpy as np
from common import arguments

from faap.data import Record, Split
from faap.evaluation import METRICS, Detections, MetricFrame

DETECTIONS = 100


def simulated(images: int) -> tuple[Split, list[list[Detections]]]:
    """One to three objects an image, found with boxes off by some pixels, among mistakes with lower scores."""
    rng = np.random.default_rng(0)
    records: list[Record] = []
    found: list[list[Detections]] = [[], []]
    for i in range(images):
        count = int(rng.integers(1, 4))
        boxes = np.concatenate([rng.uniform(0, 300, (count, 2)), rng.uniform(10, 200, (count, 2))], axis=1)
        nobody = np.zeros(count, dtype=bool)
        group, labels = ("female", "male")[i % 2], np.ones(count, dtype=np.int64)
        records.append(Record(i, Path(f"{i}.jpg"), 640, 480, group, boxes, labels, boxes[:, 2] * boxes[:, 3], nobody))
        for detector in found:
            rest = DETECTIONS - count
            others = np.concatenate([rng.uniform(0, 300, (rest, 2)), rng.uniform(10, 200, (rest, 2))], axis=1)
            guesses = np.concatenate([boxes + rng.normal(0, 4, boxes.shape), others]).clip(1)
            scores = np.concatenate([rng.uniform(0.3, 1, count), rng.beta(1, 6, rest)])
            detector.append(Detections(i, scores, np.ones(DETECTIONS, dtype=np.int64), guesses))
    return Split("test", tuple(records), {1: "person"}, "female", "male"), found


def main() -> None:
    args = arguments(__doc__, images=6199, samples=1000, metrics=",".join(METRICS))
    split, found = simulated(args.images)
    started = time.perf_counter()
    frame = MetricFrame(split, *found, samples=args.samples, metrics=args.metrics.split(","))
    change = frame.difference["female"]["AP"]
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sizes = {"images": args.images, "detections": DETECTIONS, "samples": args.samples, "metrics": args.metrics}
    print(json.dumps(sizes | {"seconds": round(seconds, 1), "gib": round(memory, 2), "change": change}, indent=1))


if __name__ == "__main__":
    main()
