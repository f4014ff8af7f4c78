"""What is said of files that cannot be read."""

import errno
from pathlib import Path

import pytest

from faap.errors import FaapError
from faap.files import read_text
from faap.recipes import read


def test_a_disk_that_fails_is_not_said_to_hold_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    (tmp_path / "a.json").touch()
    with pytest.raises(FaapError, match=r"a\.json: cannot be read: .*Input/output error"):
        read_text(tmp_path / "a.json")


def test_what_is_far_too_large_for_a_recipe_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "model.safetensors"
    large.write_bytes(b"\xff" * 500_000)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it is read"))
    with pytest.raises(FaapError, match=r"model\.safetensors: has more than 100,000 characters; it is no recipe"):
        read(large)
