"""Measuring a generator: one pass before and one after, and what is left in the folder."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

import faap
from faap.errors import FaapError
from faap.evaluation import Detections, detect, detect_baseline, evaluate
from faap.evaluation.matching import count_found
from faap.perturbation import build_generator, save_generator
from faap.report import measure, words
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


def test_a_generator_beside_it_is_measured_on_the_same_images(detector, generator, dataset, tmp_path):
    torch.manual_seed(1)
    other, place = build_generator("light", epsilon=0.05).eval(), Run(tmp_path / "other")
    save_generator(other, place.generator)
    row = {"epoch": 0, "images": 640, "seconds": 61.5, "schedule": {}, "train": {}}
    row["validation"] = {"baseline": {}, "perturbed": {}, "gap": {"AP": None}}
    place.write_log([row, row | {"epoch": 1}])
    place.config.write_text("")
    run = Run(tmp_path / "run")
    metrics = measure(detector, generator, dataset, run, beside=[str(place.path)])
    beside = metrics["beside"][str(place.path)]
    assert beside.pop("training") == {"images": 1280, "seconds": 123.0}
    alone = evaluate(detector, other, dataset)
    for each in (alone, beside):
        del each["provenance"]["date"]
    assert beside == alone
    assert beside["perturbation"]["psnr_db"] > metrics["perturbation"]["psnr_db"]
    assert run.read_metrics()["beside"][str(place.path)]["gap"] == alone["gap"]
    page = run.report.read_text()
    numbers = [alone["gap"]["AP"]["perturbed"], *(alone["perturbed"][group]["AP"] for group in ("female", "male"))]
    for text in ("Beside it", "1,280", *(words.number(each) for each in numbers)):
        assert text in page


def test_examples_are_the_most_found_the_most_lost_and_one_between(detector, dataset):
    split = dataset.split("test")
    nothing = [
        Detections(r.image_id, np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((0, 4))) for r in split.records
    ]
    whole = [Detections(r.image_id, np.full(len(r.labels), 0.9), r.labels, r.boxes) for r in split.records]
    positions = split.positions("female")
    before, after = list(nothing), list(nothing)
    before[positions[1]], after[positions[2]] = whole[positions[1]], whole[positions[2]]
    # below the threshold nobody is found
    after[positions[0]] = replace(whole[positions[0]], scores=np.full(len(split.records[positions[0]].labels), 0.4))
    examples = examples_of(detector, build_generator("light"), split, before, after)[:3]
    ids = [example.record.image_id for example in examples]
    assert (ids[0], ids[2]) == tuple(split.records[positions[i]].image_id for i in (2, 1))
    assert len(set(ids)) == 3
    assert [count_found(e.record, e.after, 0.5) - count_found(e.record, e.before, 0.5) for e in examples] == [
        len(split.records[positions[2]].labels),
        0,
        -len(split.records[positions[1]].labels),
    ]


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
    # nor is a training taken away from its own readings and figures
    with pytest.raises(faap.FaapError, match=r"run: is the training that is measured; .*--output_dir\.$"):
        measure(detector, generator, dataset, folder, move_aside=True, trained_in=Run(tmp_path / "." / "run"))
    assert not (tmp_path / "run.2").exists()


@pytest.mark.parametrize("begun", [False, True])
def test_nothing_is_written_where_a_training_is_at_work(begun, detector, generator, dataset, tmp_path):
    run = Run(tmp_path / "run")
    with run.locked():
        if begun:
            run.checkpoints.mkdir()
            run.checkpoint(0).touch()
        before = sorted(run.path.rglob("*"))
        with pytest.raises(FaapError, match="another process is at work there"):
            measure(detector, generator, dataset, run, move_aside=True)
        assert sorted(run.path.rglob("*")) == before
