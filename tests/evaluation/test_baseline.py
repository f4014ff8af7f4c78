import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import faap
from faap.data import Split
from faap.detectors import FrozenDetector
from faap.evaluation import Detections, baseline, detect, detect_baseline


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "baselines"


@pytest.fixture(scope="module")
def loaded(tiny_detector: Path) -> FrozenDetector:
    return faap.load_detector(tiny_detector)


@pytest.fixture
def frozen(loaded: FrozenDetector) -> FrozenDetector:
    """A detector of the test's own, which it may change."""
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def split(tiny_promenade: Path) -> Split:
    return faap.load_dataset(tiny_promenade).split("test")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the detector is run."""
    counted: list[int] = []

    def counting(detector: FrozenDetector, split: Split, *, batch_size: int) -> list[Detections]:
        counted.append(batch_size)
        return detect(detector, split, batch_size=batch_size)

    monkeypatch.setattr(baseline, "detect", counting)
    return counted


def archive(**columns: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.array(column) for name, column in columns.items()})
    return buffer.getvalue()


def same(one: list[Detections], other: list[Detections]) -> bool:
    return len(one) == len(other) and all(
        a.image_id == b.image_id
        and all(
            getattr(a, name).dtype == getattr(b, name).dtype and np.array_equal(getattr(a, name), getattr(b, name))
            for name in ("scores", "labels", "boxes")
        )
        for a, b in zip(one, other, strict=True)
    )


def test_the_second_time_it_is_read_and_equal_to_the_bit(
    cache: Path, frozen: FrozenDetector, split: Split, runs: list[int]
) -> None:
    first, second = detect_baseline(frozen, split), detect_baseline(frozen, split)
    assert runs == [16]
    assert same(first, second)
    assert same(first, detect(frozen, split))
    assert len(list(cache.iterdir())) == 1


def test_what_could_change_the_detections_makes_it_run_again(
    cache: Path, frozen: FrozenDetector, split: Split, runs: list[int], tmp_path: Path
) -> None:
    detect_baseline(frozen, split)
    detect_baseline(frozen, split, batch_size=3)
    detect_baseline(frozen, split.subset(range(7)))
    other = replace(split, records=tuple(reversed(split.records)))
    assert same(detect_baseline(frozen, other), detect_baseline(frozen, split)[::-1])
    assert runs == [16, 3, 16, 16]
    # the same annotations, but another picture
    changed = tmp_path / split.records[0].path.name
    changed.write_bytes(split.records[1].path.read_bytes())
    moved = replace(split, records=(replace(split.records[0], path=changed), *split.records[1:]))
    assert moved.fingerprint() == split.fingerprint()
    assert not same(detect_baseline(frozen, moved), detect_baseline(frozen, split))
    assert len(runs) == 5
    frozen.preprocessing = replace(frozen.preprocessing, shortest_edge=64)
    detect_baseline(frozen, split)
    assert len(runs) == 6
    with torch.no_grad():
        next(frozen.model.parameters()).mul_(1.5)
    detect_baseline(frozen, split)
    assert len(runs) == 7
    frozen.model.config.decoder_attention_heads //= 2  # type: ignore[union-attr, operator]
    detect_baseline(frozen, split)
    assert len(runs) == 8
    frozen.model.model.backbone.model.embedder.pooler.stride = 1  # type: ignore[union-attr]
    detect_baseline(frozen, split)
    assert len(runs) == 9
    with torch.autocast("cpu", torch.bfloat16):
        detect_baseline(frozen, split)
    assert len(runs) == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"no zip",
        # a bit in the middle of the compressed numbers
        lambda content: (
            (half := len(content) // 2) and content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :]
        ),
        lambda content: archive(image_ids=[1], counts=[1]),
        lambda content: archive(**{name: {"an": "object"} for name in ("image_ids", "counts", "scores")}),
    ],
)
def test_a_broken_file_is_computed_again(
    cache: Path, frozen: FrozenDetector, split: Split, runs: list[int], damage: Callable[[bytes], bytes]
) -> None:
    first = detect_baseline(frozen, split)
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert same(detect_baseline(frozen, split), first)
    assert same(detect_baseline(frozen, split), first)
    assert len(runs) == 2


def test_a_detector_of_other_code_is_never_kept(
    cache: Path, frozen: FrozenDetector, split: Split, runs: list[int]
) -> None:
    class Mine(type(frozen)):  # type: ignore[misc]
        pass

    frozen.__class__ = Mine
    detect_baseline(frozen, split)
    detect_baseline(frozen, split)
    assert len(runs) == 2
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_done_without(
    frozen: FrozenDetector, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "file"))
    assert same(detect_baseline(frozen, split), detect(frozen, split))
