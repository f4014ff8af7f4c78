"""How long paired replicates take, and what memory, beside other sizes than those that `faap bench` has.

    .venv/bin/python benchmarks/bootstrap.py [--images 6199] [--samples 1000] [--metrics AP,AR100]

Prints JSON.
"""

import json

from common import arguments

from faap.bench import IMAGES, SAMPLES, bootstrap
from faap.evaluation import METRICS

if __name__ == "__main__":
    args = arguments(__doc__, images=IMAGES, samples=SAMPLES, metrics=",".join(METRICS))
    sizes = {"images": args.images, "samples": args.samples, "metrics": args.metrics}
    print(json.dumps(sizes | bootstrap(args.images, args.samples, args.metrics.split(",")), indent=1))
