"""Measuring a generator: one pass before and one after, and what is left in the folder."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

import faap
from faap.evaluation import detect, detect_baseline, evaluate
from faap.perturbation import build_generator
from faap.report import measure
from faap.report.measure import examples_of
from faap.runs import Run


@pytest.fixture
def detector(tiny_detector, tmp_path, monkeypatch):
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "cache"))
    return faap.load_detector(tiny_detector)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return build_generator("light", epsilon=0.1).eval()


@pytest.fixture(scope="module")
def dataset(tiny_promenade):
    return faap.load_dataset(tiny_promenade)


def test_each_image_goes_through_the_detector_once_before_and_once_after(detector, generator, dataset, tmp_path):
    seen = []
    detector.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    metrics = measure(detector, generator, dataset, tmp_path / "run")
    images = len(dataset.split("test").records)
    assert sum(seen) == 2 * images
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    # the baseline is kept, so another generator costs one pass
    again = measure(detector, generator, dataset, Run(tmp_path / "again"))
    assert sum(seen) == 3 * images
    del metrics["provenance"]["date"], again["provenance"]["date"]
    assert again == metrics
    alone = evaluate(detector, generator, dataset)
    del alone["provenance"]["date"]
    assert alone == metrics
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (
        metrics["provenance"]["split_sha256"],
        metrics["provenance"]["generator"]["sha256"],
        *metrics["warnings"],
    ):
        assert text in page


def test_examples_are_picked_from_what_was_found(detector, generator, dataset):
    split = dataset.split("test")
    before, after = detect_baseline(detector, split), detect(detector, split, generator)
    passes = []
    detector.register_forward_hook(lambda *_: passes.append(1))
    examples = examples_of(detector, generator, split, before, after)
    assert passes == []
    assert [example.record.group for example in examples] == ["female"] * 3 + ["male"] * 3
    for example in examples:
        position = [record.image_id for record in split.records].index(example.record.image_id)
        assert example.before is before[position]
        assert example.after is after[position]
        change = np.abs(example.perturbed.astype(int) - example.pixels)
        assert 0 < change.max() <= 6


def test_an_earlier_result_is_moved_aside_when_asked(detector, generator, dataset, tmp_path):
    folder, console = tmp_path / "run", Console(file=io.StringIO(), width=500)
    for _ in range(2):
        measure(detector, generator, dataset, folder, move_aside=True, console=console)
    assert (tmp_path / "run.1" / "metrics.json").is_file()
    assert (folder / "report.html").is_file()
    assert console.file.getvalue() == f"{folder} held an earlier result: it is now {folder}.1.\n"
    measure(detector, generator, dataset, folder)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("run")) == ["run", "run.1"]
    # what cannot be measured leaves the earlier result where it is
    with pytest.raises(faap.FaapError, match="no split 'tset'"):
        measure(detector, generator, dataset, folder, split="tset", move_aside=True)
    assert (folder / "metrics.json").is_file()
