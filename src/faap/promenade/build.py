"""Write Promenade to disk in the split-folder layout, once, under the user's cache folder."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from faap.errors import FaapError
from faap.files import cache_dir
from faap.promenade.scenes import HEIGHT, SPLITS, WIDTH, compose

SEED = 0
SCENES: Mapping[str, int] = {"train": 1600, "val": 250, "test": 700}  # for each of the two groups
FOLDERS = {"female": "women", "male": "men"}


def detector_dir(arm: str = "biased") -> Path:
    """Return the folder of a shipped detector, in `transformers` format.

    Args:
        arm: "biased" for the detector with the planted bias against women, "control" for its unbiased twin.

    Raises:
        FaapError: if there is no such detector.
    """
    directory = Path(str(resources.files("faap.promenade"))) / "assets" / f"detector_{arm}"
    if not directory.is_dir():
        raise FaapError(f"Promenade has no detector {arm!r}; it has 'biased' and 'control'.")
    return directory


def build_promenade(directory: Path | None = None, scenes: Mapping[str, int] | None = None) -> Path:
    """Return the folder of the benchmark, writing it first if it is not there yet.

    The folder is complete or absent: it is written beside its place and moved there in one step. Its name carries a
    hash of everything that determines the pictures, so a new version never reads an old one's files.

    Args:
        directory: parent folder; faap's cache folder by default.
        scenes: {split: scenes for each group}; `SCENES` by default.

    Returns:
        `<directory>/promenade-<hash>` with `women_split/` and `men_split/`.
    """
    scenes = SCENES if scenes is None else scenes
    home = cache_dir() if directory is None else directory
    target = home / f"promenade-{_fingerprint(scenes)}"
    if target.is_dir():
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".promenade-", dir=home))
    except OSError as error:
        advice = "set FAAP_CACHE_DIR to a folder of yours"
        raise FaapError(f"{home}: cannot be made or written to ({error.strerror}); {advice}.") from error
    try:
        _write(temporary, scenes)
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _fingerprint(scenes: Mapping[str, int]) -> str:
    package = resources.files("faap.promenade")
    digest = hashlib.sha256(json.dumps([SEED, sorted(scenes.items())]).encode())
    for name in ("people.py", "scenes.py", "build.py", "assets/people.webp", "assets/people.json"):
        digest.update((package / name).read_bytes())
    return digest.hexdigest()[:12]


def _write(root: Path, scenes: Mapping[str, int]) -> None:
    jobs = [(split, group, index) for split in SPLITS for group in FOLDERS for index in range(scenes[split])]
    files: dict[Path, dict[str, Any]] = {}
    for split, group, index in track(jobs, "Building Promenade", transient=True):
        folder = root / f"{FOLDERS[group]}_split"
        info = {"description": f"Promenade, {split}, {group}: rendered scenes, CC0-derived people"}
        empty = {"info": info, "images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
        annotations = files.setdefault(folder / f"gender_{FOLDERS[group]}_{split}.json", empty)
        scene = compose(SEED, split, index, group)
        image_id, name = 2 * index + 1 + (group == "male"), f"{index:05d}.jpg"
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(folder / split / name, quality=92, subsampling=0)
        image = {"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT}
        # training scenes have no twin
        annotations["images"].append(image if split == "train" else image | {"scene": f"{split}-{index}"})
        for person, (box, identity) in enumerate(zip(scene.boxes, scene.identities, strict=True)):
            place = {"bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0, "identity": identity}
            number = {"id": 10 * image_id + person, "image_id": image_id, "category_id": 1}
            annotations["annotations"].append(number | place)
    for path, content in files.items():
        path.write_text(json.dumps(content))
