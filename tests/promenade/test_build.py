import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faap.data import load_dataset
from faap.errors import FaapError
from faap.files import cache_dir
from faap.promenade import Scene, build, build_promenade, compose, detector_dir

FEW = {"train": 4, "val": 2, "test": 3}


def test_layout_and_content(tmp_path: Path) -> None:
    root = build_promenade(tmp_path, FEW)
    dataset = load_dataset(root)
    for name, count in FEW.items():
        split = dataset.split(name)
        assert split.counts() == {"female": count, "male": count}
        for group in ("female", "male"):
            for index, record in enumerate(split.group(group)):
                scene = compose(build.SEED, name, index, group)
                assert np.array_equal(record.boxes, scene.boxes)
                with Image.open(record.path) as image:
                    error = np.abs(np.asarray(image, float) - scene.image).mean()
                assert error < 6  # JPEG
                assert (record.pair is None) == (name == "train")
    women, men = (dataset.split("test").group(group) for group in ("female", "male"))
    assert [record.pair for record in women] == [record.pair for record in men]


def test_annotation_file_is_coco(tmp_path: Path) -> None:
    root = build_promenade(tmp_path, FEW)
    content = json.loads((root / "women_split" / "gender_women_test.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "person"}]
    assert len({row["id"] for row in content["annotations"]}) == len(content["annotations"])
    assert all((root / "women_split" / "test" / row["file_name"]).is_file() for row in content["images"])


def test_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build_promenade(tmp_path, FEW)
    monkeypatch.setattr(build, "compose", lambda *_: pytest.fail("composed again"))
    assert build_promenade(str(tmp_path), FEW) == root


def test_other_sizes_are_another_folder(tmp_path: Path) -> None:
    assert build_promenade(tmp_path, FEW) != build_promenade(tmp_path, FEW | {"train": 5})


def test_interrupted_it_is_absent_and_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_promenade(tmp_path / "whole", FEW)
    monkeypatch.setattr(build, "PART", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1), raising=False)
    calls, real = list[tuple[str, int, str]](), build.compose

    def fails(seed: int, split: str, index: int, group: str) -> Scene:
        calls.append((split, index, group))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(seed, split, index, group)

    monkeypatch.setattr(build, "compose", fails)
    with pytest.raises(KeyboardInterrupt):
        build_promenade(tmp_path, FEW)
    assert [each.name for each in tmp_path.glob("[!.]*")] == ["whole"]
    again = build_promenade(tmp_path, FEW)
    # of the four parts that were begun, the last was not complete
    assert Counter(calls) == {(s, i, g): 1 + ((s, g) == ("train", "male") and i < 2) for s, i, g in calls}
    assert len(set(calls)) == 2 * sum(FEW.values())
    assert files_of(again) == files_of(whole)


def test_several_processes_write_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {"train": 2 * build.PART + 3, "val": 1, "test": 1}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3), raising=False)
    several = build_promenade(tmp_path / "several", many)
    monkeypatch.setattr(build, "compose", lambda *_: pytest.fail("not in this process"))
    assert build_promenade(tmp_path / "several", many) == several
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1), raising=False)
    assert files_of(several) == files_of(build_promenade(tmp_path / "one", many))


def test_a_process_that_writes_ends_with_the_one_that_waits_for_it(tmp_path: Path) -> None:
    many = json.dumps({"train": 100_000, "val": 1, "test": 1})
    command = [sys.executable, "-P", "-m", "faap.promenade", str(tmp_path), many, "1", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        try:
            assert process.wait(timeout=60) == 1
        finally:
            process.kill()


def test_a_process_that_fails_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(FaapError, match="a process that writes Promenade has failed"):
        build_promenade(tmp_path, FEW | {"train": 2 * build.PART})


def test_val_and_test_are_what_they_always_were() -> None:
    digest = hashlib.sha256()
    for split, index, group in itertools.product(("val", "test"), range(0, 250, 10), ("female", "male")):
        scene = compose(build.SEED, split, index, group)
        digest.update(scene.image.tobytes() + scene.boxes.tobytes())
    assert digest.hexdigest() == "81548510507751fb9b2dafce0acf4af545f1116e0ded706f3f542a6deb9a10ff"


def test_people_are_resized_in_one_direction_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which comes first, and so how each rounds, is Pillow's to choose and has changed."""
    resize, sizes = Image.Image.resize, list[tuple[tuple[int, int], tuple[int, int]]]()

    def recorded(image: Image.Image, size: tuple[int, int], *how: Any) -> Image.Image:
        if image.mode in ("RGBA", "RGBa"):
            sizes.append((image.size, size))
        return resize(image, size, *how)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    for index in range(5):
        compose(build.SEED, "test", index, "female")
    assert any(before[1] != after[1] for before, after in sizes)
    assert all(before[0] == after[0] or before[1] == after[1] for before, after in sizes)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FAAP_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "faap"
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_unknown_detector() -> None:
    with pytest.raises(FaapError, match="'biased' and 'control'"):
        detector_dir("fair")


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FaapError, match=r"file: cannot be made or written to .* set FAAP_CACHE_DIR"):
        build_promenade(tmp_path / "file", FEW)
