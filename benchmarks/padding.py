"""Padding among an epoch's pixels, with batches of like shapes and with random ones.

    .venv/bin/python benchmarks/padding.py --upright 4

18,591 images of COCO's common shapes after DETR's augmentation; `--upright` says how much more often upright pictures
come among the anchor group's than among the reference group's.
"""

import json

from common import arguments

from faap.bench import padding


def main() -> None:
    args = arguments(__doc__, upright=2.0)
    print(json.dumps({"alike": padding(args.upright), "random": padding(args.upright, alike=False)}, indent=1))


if __name__ == "__main__":
    main()
