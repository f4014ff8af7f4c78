"""How many training images a worker brings a second, and what its time goes into.

    .venv/bin/python benchmarks/loader.py

JPEGs of 640x480 decoded, augmented as DETR does and normalised, to 800 pixels, in one process with one thread. Shares
are those of Python's profiler; the images a second are measured without it.
"""

import cProfile
import io
import json
import pstats
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import arguments
from PIL import Image

from faap.bench import pictures
from faap.data import FaapImages, Preprocessing

# Pillow's own functions, by the names under which Python's profiler has them
PARTS = {"decoding JPEGs": "'ImagingDecoder'", "resizing": "'resize' of 'ImagingCore'"}


def main() -> None:
    args = arguments(__doc__, threads=1, repeats=20, size="480x640")
    height, width = map(int, args.size.split("x"))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        split = pictures(Path(folder)).split("train")
        # photographs' worth of bytes, in place of Promenade's scenes
        records = []
        for number, record in enumerate(split.records[:8]):
            path = Path(folder, f"{number}.jpg")
            picture(rng, width, height).save(path, quality=90)
            records.append(replace(record, path=path, width=width, height=height))
        images = FaapImages(replace(split, records=tuple(records)), Preprocessing(), {1: 0}, training=True)

        def load(first: int) -> None:
            for epoch in range(first, first + args.repeats):
                for index in range(len(records)):
                    images[epoch, index]

        load(0)
        started = time.perf_counter()
        load(0)
        seconds = time.perf_counter() - started
        profiler = cProfile.Profile()
        profiler.runcall(load, 0)
    stats = pstats.Stats(profiler, stream=io.StringIO())
    rows = [(name, values[2]) for (_, _, name), values in stats.stats.items()]  # type: ignore[attr-defined]
    whole = sum(spent for _, spent in rows)
    shares = {part: sum(spent for name, spent in rows if key in name) / whole for part, key in PARTS.items()}
    shares["normalising and the rest"] = 1 - sum(shares.values())
    rate = args.repeats * len(records) / seconds
    print(json.dumps({"images_per_second_per_worker": rate, "shares": shares}, indent=1))


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth colours with grain: a JPEG of it is about as large as a photograph's."""
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray((smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
