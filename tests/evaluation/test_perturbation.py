"""What an audit says of a generator: before and after on the same images, whom it harms, what it tells."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import faap
from faap.audit import audit_data
from faap.audit.errors import error_costs, find_errors
from faap.audit.perturbation import audit_perturbation, probe, who_is_found
from faap.cli import main
from faap.data import Split
from faap.errors import FaapError
from faap.evaluation import MetricFrame, detect
from faap.evaluation.matching import count_found
from faap.perturbation import build_generator, save_generator
from faap.promenade import detector_dir
from faap.report.audit import perturbation_sentences


@pytest.fixture(scope="module")
def generator():
    """One whose perturbation is at its bound nearly everywhere."""
    torch.manual_seed(0)
    made = build_generator("light", epsilon=0.1).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(30)
    return made


@pytest.fixture(scope="module")
def measured(tiny_promenade, generator):
    split = faap.load_dataset(tiny_promenade).split("test")
    detector = faap.load_detector("promenade")
    before = detect(detector, split)
    other = faap.load_detector(detector_dir("control"))
    frozen = detector.tensors_sha256(), other.tensors_sha256()
    found = audit_perturbation(detector, generator, split, before, samples=20, transfer=other)
    assert (detector.tensors_sha256(), other.tensors_sha256()) == frozen
    return split, detector, before, detect(detector, split, generator), found


def test_everything_is_before_and_after_on_the_same_images(measured, generator):
    split, detector, before, after, found = measured
    frame = MetricFrame(split, before, after, samples=20)
    assert found["gaps"]["female"]["AP"] == frame.difference["female"]["AP"]
    assert found["groups"]["male"]["AP50"] == frame.by_group["male"]["AP50"]
    weights = np.ones((len(split.group("female")), 1), dtype=np.int32)
    mine = [[found[i] for i in split.positions("female")] for found in (before, after)]
    for place, row in enumerate(found["errors"].values(), 1):
        women = split.group("female")
        errors = [[find_errors(*pair, [1]) for pair in zip(women, each, strict=True)] for each in mine]
        costs = [error_costs(women, each, [1], weights)[0, place, 0] for each in errors]
        assert [row["female"]["baseline"], row["female"]["perturbed"]] == pytest.approx(costs)
    through = faap.evaluation.arrival.Arrival(jpeg=75)
    pair = [detect(detector, split, each, arrival=through) for each in (None, generator)]
    assert (
        found["survival"]["JPEG 75"]["gaps"]
        == MetricFrame(split, *pair, samples=20, metrics=["AP", "AP50", "AR100"]).difference
    )
    control = faap.load_detector(detector_dir("control"))
    pair = [detect(control, split, each) for each in (None, generator)]
    assert found["transfer"]["gaps"]["female"]["AP"] == MetricFrame(split, *pair, samples=20).difference["female"]["AP"]


def test_who_is_found_less_is_counted_and_named(split_of):
    split, after, before = split_of(0, images=30)
    for group, row in who_is_found(split, before, after, 0.4).items():
        pairs = [(r, b, a) for r, b, a in zip(split.records, before, after, strict=True) if r.group == group]
        more = {r.path.name: count_found(r, a, 0.4) - count_found(r, b, 0.4) for r, b, a in pairs}
        assert row["images"] == len(more) == 30
        assert row["files"] == [name for name, by in more.items() if by < 0]
        assert (row["worse"], row["better"]) == (len(row["files"]), sum(by > 0 for by in more.values()))
        assert min(row["worse"], row["better"]) > 2


def test_the_size_is_that_of_the_perturbation(measured, generator):
    *_, found = measured
    assert found["linf_pixels"] <= 6.5
    assert 0.5 < found["at_bound"] <= 1
    # ±.1 of a standard deviation (.229, .224, .225) in each of 160·128·3 values, rounded to whole levels
    assert found["l2_pixels"] == pytest.approx(np.sqrt(160 * 128 * 3) * 5.8, rel=0.2)
    assert found["epsilon"] == generator.epsilon


def grouped(split_of, count=60):
    split, _, _ = split_of(0, images=count, paired=True)
    return split


def test_a_probe_finds_what_is_there_and_nothing_else(split_of):
    split = grouped(split_of)
    rng = np.random.default_rng(0)
    female = np.array([record.group == "female" for record in split.records])
    noise = rng.normal(size=(len(female), 30))
    nothing = probe(split, noise)
    assert nothing["ci95"][0] < nothing["chance"] == 0.5 < nothing["ci95"][1]
    assert nothing["images"] == len(female)
    noise[:, 3] += 6 * female
    assert probe(split, noise)["accuracy"] > 0.95
    # of a scene both twins are left out at once: what is the scene's own says nothing
    scenes = {pair: rng.normal(size=200) for pair in {record.pair for record in split.records}}
    own = np.stack([scenes[record.pair] for record in split.records])
    assert probe(split, own)["ci95"][0] <= 0.5
    few = [*split.positions("female")[:6], *split.positions("male")[:6]]
    assert probe(split.subset(few), noise[few]) is None
    third = tuple(replace(r, group="other") if i % 3 == 0 else r for i, r in enumerate(split.records))
    fewer = Split(split.name, third, split.categories, split.anchor, split.reference)
    assert probe(fewer, noise)["images"] == sum(record.group != "other" for record in third)


def test_what_survives_has_its_interval():
    def row(change, low, high):
        return {"change": change, "ci95": [low, high], "perturbed": 0.1 + change, "perturbed_ci95": [0.0, 0.1]}

    def gaps(*numbers):
        return {"gaps": {"female": {"AP": row(*numbers)}}}

    survival = {"JPEG 95": gaps(-0.06, -0.07, -0.05), "JPEG 75": gaps(-0.03, -0.07, 0.01)}
    found = gaps(-0.08, -0.09, -0.07) | {"epsilon": 0.1, "found": {}, "survival": survival}
    found |= {"groups": {"female": {"AP": row(0.08, 0.07, 0.09)}}, "probe": {"the perturbation": None}}
    audit = {"anchor": "female", "categories": ["person"], "score": 0.5, "perturbation": found}
    assert perturbation_sentences(audit)[-1] == (
        "The gap changes by −0.0800 (−0.0900 to −0.0700); where least of that survives (JPEG 75), by "
        "−0.0300 (−0.0700 to +0.0100), to +0.0700 (0.0000 to +0.1000)."
    )


def test_a_probe_does_not_take_the_images_of_a_scene_for_so_many_of_their_own(split_of):
    """Six frames of each of twelve scenes a group are right or wrong as a whole."""
    split, _, _ = split_of(0, images=72)
    scenes = np.arange(144) // 6
    records = tuple(replace(r, pair=f"scene {n}") for r, n in zip(split.records, scenes, strict=True))
    frames, rng, told = replace(split, records=records), np.random.default_rng(0), 0
    for _ in range(60):
        found = probe(frames, rng.normal(size=(24, 10))[scenes] + 0.1 * rng.normal(size=(144, 10)))
        told += found["ci95"][0] > found["chance"]
    assert told <= 9  # 17, taken for so many
    # whose scenes are all right is as sure as there are scenes; where each image is its own, Wilson's
    certain = probe(frames, np.repeat([[3.0], [-3.0]], 72, axis=0))
    wilson = binomtest(24, 24).proportion_ci(method="wilson")
    assert certain["ci95"] == pytest.approx([wilson.low, wilson.high])
    alone = probe(split, rng.normal(size=(144, 10)))
    wilson = binomtest(round(144 * alone["accuracy"]), 144).proportion_ci(method="wilson")
    assert alone["ci95"] == pytest.approx([wilson.low, wilson.high])
    assert probe(replace(frames, records=tuple(replace(r, pair=r.pair[:7]) for r in records)), np.eye(144)) is None


def test_the_command_says_it_and_counts_it_as_a_reading(tiny_promenade, generator, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: some\ndetr_checkpoint: promenade\n")
    save_generator(generator, run / "generator")
    words = ["audit", str(tiny_promenade), "--detr_checkpoint", "promenade", "--samples", "10"]
    words += ["--output_dir", str(tmp_path / "out"), "--generator", str(run / "generator")]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "With the generator (ε 0.1) the gap is" in shown
    result = json.loads((tmp_path / "out" / "audit.json").read_text())
    page = (tmp_path / "out" / "audit.html").read_text()
    for text in perturbation_sentences(result):
        assert text[:30] in page
    assert "<h2>The perturbation</h2>" in page
    row = json.loads((run / "readings.jsonl").read_text())
    assert row["generator_sha256"] == result["provenance"]["generator"]["sha256"]
    assert row["split_sha256"] == result["provenance"]["split_sha256"]
    other = build_generator("light", epsilon=0.1)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_generator(other, run / "generator")
    assert main(words) == 2
    assert "no longer a test" in capsys.readouterr().err
    assert main([*words, "--i_know"]) == 0
    warnings = json.loads((tmp_path / "out" / "audit.json").read_text())["warnings"]
    assert any("1 other generator of this run" in text for text in warnings)


def test_a_generator_needs_its_detector(tiny_promenade, tmp_path):
    dataset = faap.load_dataset(tiny_promenade)
    with pytest.raises(FaapError, match="measured in front of a detector: give --detr_checkpoint"):
        audit_data(dataset, predictions=tmp_path / "r.json", generator="promenade")
    with pytest.raises(FaapError, match="transfer is a generator's"):
        audit_data(dataset, detector="promenade", transfer="promenade")
