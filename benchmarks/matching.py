"""Six decoder layers of a batch matched at once, against layer by layer and image by image.

    .venv/bin/python benchmarks/matching.py

DETR-R50 with random weights, as in `faap bench`; seven people an image, as COCO has objects.
"""

import json

import torch
from common import arguments, one_step, parse_size, scenes

from faap import bench
from faap.detectors.set_loss import match_layers

PEOPLE = 7


def main() -> None:
    args = arguments(__doc__, repeats=100, size="320x416", batch=4)
    detector = bench.prepared_detector(args.device, parse_size(args.size))
    with scenes() as data:
        _, batch = one_step(detector, args.batch, data)
    with torch.no_grad():
        out = detector(batch.pixel_values, batch.pixel_mask)
    logits = torch.stack([*(each[0] for each in out.aux), out.logits])
    boxes = torch.stack([*(each[1] for each in out.aux), out.boxes])
    rng = torch.Generator().manual_seed(0)
    targets = [
        {
            "labels": torch.zeros(PEOPLE, dtype=torch.long, device=args.device),
            "boxes": (torch.rand(PEOPLE, 4, generator=rng) * 0.3 + 0.2).to(args.device),
        }
        for _ in range(args.batch)
    ]

    def one_by_one() -> None:
        for layer in range(len(logits)):
            for image in range(args.batch):
                here = (slice(layer, layer + 1), slice(image, image + 1))
                match_layers(logits[here], boxes[here], targets[image : image + 1], detector.criterion)

    jobs = {"at once": lambda: match_layers(logits, boxes, targets, detector.criterion), "one by one": one_by_one}
    seconds = bench.take_turns(jobs, args.repeats, args.device)
    print(json.dumps(bench.ratios(seconds, {"matching": ("at once", "one by one")}), indent=1))


if __name__ == "__main__":
    main()
