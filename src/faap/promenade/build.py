"""Write Promenade to disk in the split-folder layout, once, under the user's cache folder."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image
from rich.progress import Progress

from faap.errors import FaapError
from faap.files import cache_dir, write_text
from faap.promenade.scenes import HEIGHT, SPLITS, WIDTH, compose

SEED = 0
SCENES: Mapping[str, int] = {"train": 12_000, "val": 250, "test": 700}  # for each of the two groups
PART = 200  # scenes
FOLDERS = {"female": "women", "male": "men"}


_ASSETS = Path(str(resources.files("faap.promenade"))) / "assets"


def shipped_run() -> Path:
    """Return the folder of the run of `equal` whose generator ships with the package, without its checkpoints."""
    return _ASSETS / "equal"


def detector_dir(arm: str = "biased") -> Path:
    """Return the folder of a shipped detector, in `transformers` format.

    Args:
        arm: "biased" for the detector with the planted bias against women, "control" for its unbiased twin.

    Raises:
        FaapError: if there is no such detector.
    """
    directory = _ASSETS / f"detector_{arm}"
    if not directory.is_dir():
        raise FaapError(f"Promenade has no detector {arm!r}; it has 'biased' and 'control'.")
    return directory


def build_promenade(directory: str | Path | None = None, scenes: Mapping[str, int] | None = None) -> Path:
    """Return the folder of the benchmark, writing it first, with all cores, if it is not there yet.

    The folder is complete or absent: it is written beside its place and moved there in one step. Whoever is interrupted
    goes on from there the next time. Its name carries a hash of everything that determines the pictures, so a new
    version never reads an old one's files.

    Args:
        directory: parent folder; faap's cache folder by default.
        scenes: {split: scenes for each group}, where they are not as in `SCENES`.

    Returns:
        `<directory>/promenade-<hash>` with `women_split/` and `men_split/`.

    Raises:
        FaapError: if it cannot be written.
    """
    scenes = {**SCENES, **(scenes or {})}
    home = cache_dir() if directory is None else Path(directory)
    target = home / f"promenade-{_fingerprint(scenes)}"
    if target.is_dir():
        return target
    begun = home / f".{target.name}"
    try:
        begun.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{begun}.lock"):  # another process may be writing the same
            if not target.is_dir():
                _write(begun, scenes)
                _assemble(begun, scenes)
                begun.rename(target)
        shutil.rmtree(begun, ignore_errors=True)
        Path(f"{begun}.lock").unlink(missing_ok=True)
    except OSError as error:
        advice = "set FAAP_CACHE_DIR to a folder of yours"
        raise FaapError(f"{home}: cannot be made or written to ({error.strerror}); {advice}.") from error
    return target


def _fingerprint(scenes: Mapping[str, int]) -> str:
    package = resources.files("faap.promenade")
    digest = hashlib.sha256(json.dumps([SEED, sorted(scenes.items())]).encode())
    for name in ("people.py", "scenes.py", "build.py", "assets/people.webp", "assets/people.json"):
        digest.update((package / name).read_bytes())
    return digest.hexdigest()[:12]


def _parts(scenes: Mapping[str, int]) -> Iterator[tuple[str, str, range]]:
    for split, group in itertools.product(SPLITS, FOLDERS):
        for start in range(0, scenes[split], PART):
            yield split, group, range(start, min(start + PART, scenes[split]))


def _write(root: Path, scenes: Mapping[str, int]) -> None:
    """Write what is missing of a folder's parts, a process on each core."""
    parts = len(list(_parts(scenes)))
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, parts // 2)
    if workers < 2:
        write_parts(root, scenes)
        return
    command = [sys.executable, "-P", "-m", "faap.promenade", str(root), json.dumps(dict(scenes)), str(workers)]
    # their input stays open: the end of it tells them that nobody waits for them any more
    running = [subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE) for number in range(workers)]
    try:
        with Progress(transient=True) as progress:
            bar = progress.add_task("Building Promenade", total=parts)
            while any(each.poll() is None for each in running):
                progress.update(bar, completed=len(list(root.glob("*.json"))))
                time.sleep(0.2)
    finally:
        for each in running:
            each.kill()  # which does nothing to those that are done
            each.wait()
    if any(each.returncode for each in running):
        said = f"{root}: a process that writes Promenade has failed; what it printed says why"
        raise FaapError(f"{said}. FAAP_CACHE_DIR names another folder.")


def write_parts(root: Path, scenes: Mapping[str, int], workers: int = 1, number: int = 0) -> None:
    """Write the pictures of every so manieth part, and a JSON file with its annotations when it is complete."""
    for place, (split, group, indices) in enumerate(_parts(scenes)):
        file = root / f"{place}.json"
        if place % workers != number or file.exists():
            continue
        info = {"description": f"Promenade, {split}, {group}: rendered scenes, CC0-derived people"}
        found: dict[str, Any] = {"info": info, "images": [], "annotations": []}
        folder = f"{FOLDERS[group]}_split"
        (root / folder / split).mkdir(parents=True, exist_ok=True)
        for index in indices:
            scene = compose(SEED, split, index, group)
            image_id, name = 2 * index + 1 + (group == "male"), f"{index:05d}.jpg"
            Image.fromarray(scene.image).save(root / folder / split / name, quality=92, subsampling=0)
            image = {"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT}
            # training scenes have no twin
            found["images"].append(image if split == "train" else image | {"scene": f"{split}-{index}"})
            for person, (box, identity) in enumerate(zip(scene.boxes, scene.identities, strict=True)):
                about = {"bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0, "identity": identity}
                ids = {"id": 10 * image_id + person, "image_id": image_id, "category_id": 1}
                found["annotations"].append(ids | about)
        path = f"{folder}/gender_{FOLDERS[group]}_{split}.json"
        write_text(file, json.dumps({"path": path} | found | {"categories": [{"id": 1, "name": "person"}]}))


def _assemble(root: Path, scenes: Mapping[str, int]) -> None:
    """Join the annotations of all parts; they stay until the last file is there."""
    parts = [root / f"{place}.json" for place, _ in enumerate(_parts(scenes))]
    files: dict[str, dict[str, Any]] = {}
    for part in map(json.loads, map(Path.read_text, parts)):
        whole = files.setdefault(part.pop("path"), part)
        if whole is not part:
            whole["images"] += part["images"]
            whole["annotations"] += part["annotations"]
    for path, content in files.items():
        write_text(root / path, json.dumps(content))
    for each in parts:
        each.unlink()
