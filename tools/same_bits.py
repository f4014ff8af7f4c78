"""Show that a change of the code changes no training: the same loss rows, weights and metrics, bit by bit.

    .venv/bin/python tools/same_bits.py before.json        # at the old commit
    .venv/bin/python tools/same_bits.py after.json         # at the new one, on the same machine
    .venv/bin/python tools/same_bits.py --diff before.json after.json

Every recipe is trained for three short epochs on a small Promenade, with one thread. What `--diff` prints is what
differs; a key that only the new file has is listed as added. Exit status 1 if anything differs or is gone.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCENES = {"train": 24, "val": 8, "test": 8}


def tensors(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, hash) of every tensor in nested dicts and lists."""
    import torch

    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        yield place, hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode() + data).hexdigest()[:16]
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors(value[key], f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from tensors(each, f"{place}.{number}")


def record(folder: Path) -> dict[str, Any]:
    """Train every recipe and return what came out."""
    import torch
    from rich.console import Console

    import faap
    from faap.config import recipe_names
    from faap.promenade import build_promenade

    torch.set_num_threads(1)
    data = build_promenade(folder, SCENES)
    result = {}
    for name in recipe_names():
        recipe = faap.load_recipe(
            name,
            dataset_root=data,
            detr_checkpoint="promenade",
            epochs=3,
            images_per_epoch=16,
            output_dir=folder / name,
            device="cpu",
        )
        run = faap.train(recipe, console=Console(quiet=True))
        rows = [json.loads(line) for line in (folder / name / "train_log.jsonl").read_text().splitlines()]
        states = [torch.load(path, weights_only=True) for path in sorted((folder / name).glob("checkpoints/epoch_*"))]
        result[name] = {
            "log": [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
            "weights": [
                {part: dict(tensors(state[part])) for part in ("generator", "objective", "optimizer")}
                for state in states
            ],
            "epoch": run.epoch,
            "metrics": json.loads((folder / name / "metrics.json").read_text()),
        }
        print(f"{name}: trained", file=sys.stderr)
    return result


def differences(old: Any, new: Any, place: str = "") -> Iterator[tuple[bool, str]]:
    """Yield (whether it is a difference or only added, words) for every place where two records part."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{place}.{key}" if place else str(key)
            if key not in new:
                yield True, f"{inner}: gone"
            elif key not in old:
                yield False, f"{inner}: added"
            else:
                yield from differences(old[key], new[key], inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{place}[{number}]")
    elif old != new:
        yield True, f"{place}: {old!r} → {new!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--diff", action="store_true", help="compare two files instead of writing one")
    given = parser.parse_args()
    if not given.diff:
        with tempfile.TemporaryDirectory() as folder:
            given.files[0].write_text(json.dumps(record(Path(folder)), indent=1) + "\n")
        return 0
    found = list(differences(*(json.loads(path.read_text()) for path in given.files)))
    for _, words in found:
        print(words)
    return int(any(real for real, _ in found))


if __name__ == "__main__":
    sys.exit(main())
