import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faap.data import load_dataset
from faap.errors import FaapError
from faap.files import cache_dir
from faap.promenade import build, build_promenade, compose, detector_dir

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
    assert build_promenade(tmp_path, FEW) == root


def test_other_sizes_are_another_folder(tmp_path: Path) -> None:
    assert build_promenade(tmp_path, FEW) != build_promenade(tmp_path, FEW | {"train": 5})


def test_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(6))
    real = build.compose

    def fails_later(*arguments: object) -> object:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "compose", fails_later)
    with pytest.raises(KeyboardInterrupt):
        build_promenade(tmp_path, FEW)
    assert list(tmp_path.iterdir()) == []


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
