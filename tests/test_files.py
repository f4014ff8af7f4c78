"""What is said of files that cannot be read."""

import errno
import json
import multiprocessing
import os
import queue
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faap.data import load_dataset
from faap.data.problems import read_bytes as coco_bytes
from faap.errors import FaapError
from faap.files import file_sha256, read_json, read_safetensors, read_tensors, read_text, write_text
from faap.recipes import read


def test_a_disk_that_fails_is_not_said_to_hold_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    (tmp_path / "a.json").touch()
    with pytest.raises(FaapError, match=r"a\.json: cannot be read: .*Input/output error"):
        read_text(tmp_path / "a.json")


def test_a_drive_that_flushes_no_folders_loses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, flushed = os.fsync, []

    def fsync(descriptor: int) -> None:
        flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if flushed[-1]:
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert write_text(tmp_path / "a.txt", "whole").read_text() == "whole"
    assert flushed == [False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_is_far_too_large_for_a_recipe_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "model.safetensors"
    large.write_bytes(b"\xff" * 500_000)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it is read"))
    with pytest.raises(FaapError, match=r"model\.safetensors: has more than 100,000 characters; it is no recipe"):
        read(large)


# what is no file, or too much of one


def in_seconds(seconds: int, act: Callable[[], object]) -> object:
    """Do something that may wait for ever, in a process of its own; return what it raises, in words."""
    context = multiprocessing.get_context("fork")
    said = context.Queue()

    def doing() -> None:
        try:
            act()
        except FaapError as error:
            said.put(str(error))

    process = context.Process(target=doing)
    process.start()
    try:
        return said.get(timeout=seconds)
    except queue.Empty:
        process.kill()
        return "nothing was said"


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("read", [read_text, read_json, read_tensors, read_safetensors, coco_bytes, file_sha256])
def test_what_never_ends_is_not_read(kind: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    place = tmp_path / "odd"
    os.mkfifo(place) if kind == "pipe" else place.symlink_to("/dev/zero")
    said = in_seconds(20, lambda: read(place))
    assert str(said).startswith(f"{place}: ")
    assert "pipe or a device" in str(said) or "it is no file" in str(said)


def test_a_device_is_no_place_for_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for _ in range(2):  # in its place a file would be for all programs
        with pytest.raises(FaapError, match="pipe: is a pipe or a device"):
            write_text(tmp_path / "pipe", "words")
    (tmp_path / "null").symlink_to(os.devnull)
    with pytest.raises(FaapError, match="null: is a pipe or a device"):
        write_text(tmp_path / "null", "words")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_a_text_has_an_end_that_is_known_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**32 + 1)  # of nothing
    with pytest.raises(FaapError, match=r"large\.json: has 4,294,967,297 bytes, more than the 4,294,967,296"):
        read_json(tmp_path / "large.json")
    with pytest.raises(FaapError, match=r"large\.json: has 4,294,967,297 bytes"):
        coco_bytes(tmp_path / "large.json")


def test_half_a_character_in_a_name_ends_nothing(tmp_path: Path, tiny_promenade: Path) -> None:
    write_text(tmp_path / "page.html", "caf\u00e9 \ud800")
    assert (tmp_path / "page.html").read_text("utf-8") == "caf\u00e9 \\ud800"
    content: dict[str, Any] = {"images": [], "annotations": []}
    for place, (word, group) in enumerate((("women", "female"), ("men", "male"))):
        part = json.loads((tiny_promenade / f"{word}_split" / f"gender_{word}_test.json").read_text())
        for image in part["images"]:
            name = str(tiny_promenade / f"{word}_split" / "test" / image["file_name"])
            shutil.copy(name, tmp_path / f"{word}-{image['file_name']}")
            told = {"file_name": f"{word}-{image['file_name']}", "gender": group, "scene": "\ud800"}
            content["images"].append(image | told | {"id": image["id"] + 1000 * place})
        for box in part["annotations"]:
            shifted = {"id": box["id"] + 10**6 * place, "image_id": box["image_id"] + 1000 * place}
            content["annotations"].append(box | shifted)
        content["categories"] = part["categories"]
    (tmp_path / "all.json").write_text(json.dumps(content))
    dataset = load_dataset(tmp_path, annotations="all.json")
    assert len(dataset.split("all").fingerprint()) == 64
    with pytest.raises(FaapError, match="has no object of group"):  # one scene is in one split
        [dataset.split(name) for name in ("train", "val", "test")]
