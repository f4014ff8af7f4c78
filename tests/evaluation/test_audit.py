"""The audit on pictures with a planted cause, and from a file of results alone."""

import io
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console

import faap
from faap.audit import audit, audit_data, read_results
from faap.audit.audit import DETECTOR, UNLABELLED, _cause
from faap.audit.confounders import FEWEST
from faap.audit.errors import TOTALS, find_errors
from faap.audit.examples import telling
from faap.audit.scores import Scores
from faap.audit.side import Side
from faap.cli import main
from faap.data import Record, Split
from faap.errors import FaapError
from faap.evaluation import Detections, MetricFrame, detect
from faap.promenade import compose, detector_dir, scenes
from faap.report.audit import _draw_scores, audit_page, audit_summary, cause_sentence, sentences

SCENES, SEED = 110, 11


def scene(cause, index, group):
    """A scene of the composer; for the cause "smaller" women's people are the small ones that it draws."""
    found = compose(SEED, "test", index, group)
    while cause == "smaller" and group == "female" and found.boxes[:, 3].max() > 45:
        index += 1000
        found = compose(SEED, "test", index, group)
    return found


def planted(cause, folder, monkeypatch):
    """A split of as many images of women as of men, in which one thing is worse for women."""
    rng = np.random.default_rng(SEED)
    if cause == "smaller":
        monkeypatch.setattr(scenes, "SHORTEST", 24)
    records = []
    for group in ("female", "male"):
        women = group == "female"
        for index in range(SCENES):
            found = scene(cause, index, group)
            image, boxes, conditions = Image.fromarray(found.image), found.boxes, {}
            kept = np.ones(len(boxes), dtype=bool)
            if cause == "occluded":
                hidden = rng.random(len(boxes)) < (0.6 if women else 0.1)
                for x, y, w, h in boxes[hidden]:
                    ImageDraw.Draw(image).rectangle((x - 1, y + 0.45 * h, x + w, y + h), fill=(90, 90, 80))
                conditions = {"occluded": hidden.astype(float)}
            if cause == "darker":
                dark = rng.random() < (0.8 if women else 0.2)
                light = rng.uniform(0.02, 0.2) if dark else rng.uniform(0.2, 1)
                image = Image.fromarray((np.asarray(image) * light).astype(np.uint8))
            if cause == "unlabelled" and women:
                kept = rng.random(len(boxes)) > 0.35
            path = folder / f"{group}_{index}.png"
            image.save(path)
            boxes = boxes[kept]
            record = Record(
                image_id=len(records) + 1,
                path=path,
                width=160,
                height=128,
                group=group,
                boxes=boxes,
                labels=np.ones(len(boxes), dtype=np.int64),
                areas=boxes[:, 2] * boxes[:, 3],
                crowd=np.zeros(len(boxes), dtype=bool),
                pair=None if cause == "smaller" else str(index),
                conditions={name: values[kept] for name, values in conditions.items()},
            )
            records.append(record)
    return Split("test", tuple(records), {1: "person"}, "female", "male")


@pytest.mark.parametrize(
    ("cause", "detector", "name"),
    [
        ("smaller", "control", "box size"),
        ("occluded", "control", "occluded"),
        ("darker", "control", "brightness"),
        ("unlabelled", "control", UNLABELLED),
        ("biased", "biased", DETECTOR),
        ("nothing", "control", None),
    ],
)
def test_the_planted_cause_is_named_first(cause, detector, name, tmp_path, monkeypatch):
    split = planted(cause, tmp_path, monkeypatch)
    loaded = faap.load_detector(detector_dir(detector))
    before = loaded.tensors_sha256()
    result = audit(split, detect(loaded, split), samples=200)
    assert loaded.tensors_sha256() == before
    assert result["causes"][:1] == ([] if name is None else [name])
    if name is None:
        assert "No cause is named" in sentences(result)[0] or "no cause is named" in sentences(result)[0]
        return
    assert result["gap"]["ci95"][0] > 0
    assert name.capitalize() in sentences(result)[1]
    if name == DETECTOR:
        assert result["causes"] == [DETECTOR]
        assert "below mistakes" in sentences(result)[2]
    else:
        assert result["detector"]["share"] < 0.5
        every = result["confounders"] | {UNLABELLED: result["unlabelled"]}
        assert every[name]["share"] > 0.5
        low, high = every[name]["left"]["ci95"]
        assert low < 0.05
        assert high < result["gap"]["value"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Thirty scenes with what the biased detector finds in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "SCENES", 30)
        split = planted("biased", tmp_path_factory.mktemp("small"), patch)
    return split, detect(faap.load_detector(detector_dir("biased")), split)


@pytest.fixture(scope="module")
def audited(small):
    return audit(*small, samples=40)


def test_every_number_of_the_groups_is_the_metric_frames(small, audited):
    frame = MetricFrame(*small, samples=40)
    assert audited["groups"]["female"]["AP"] == frame.by_group["female"]["AP"]
    assert audited["gaps"]["female"]["AP75"] == frame.difference["female"]["AP75"]
    assert audited["gap"]["value"] == pytest.approx(frame.difference["female"]["AP"]["value"], abs=1e-12)
    np.testing.assert_allclose(audited["gap"]["ci95"], frame.difference["female"]["AP"]["ci95"], atol=1e-12)
    assert audited["errors"]["AP50"]["male"]["value"] == pytest.approx(frame.by_group["male"]["AP50"]["value"])
    assert any("30 of female" in text for text in audited["warnings"])
    json.dumps(audited, allow_nan=False)


def test_parts_add_up_and_twins_differ_in_nothing_that_is_theirs_alike(audited):
    parts = [*audited["confounders"].values(), audited["unlabelled"], audited["detector"]]
    known = [each for each in parts if each["share"] is not None]
    assert len(known) > 8
    for each in known:
        total = each["explained"]["value"] + each["left"]["value"]
        assert total == pytest.approx(audited["gap"]["value"], abs=1e-12)
    people = audited["confounders"]["people in the image"]
    assert people["explained"]["value"] == 0
    assert people["means"]["female"] == people["means"]["male"]
    assert people["effective_boxes"] == audited["boxes"]


def test_a_threshold_is_counted(small, audited):
    split, found = small
    for group, row in audited["scores"]["at"].items():
        right = wrong = boxes = 0
        for record, detected in zip(split.records, found, strict=True):
            if record.group == group:
                one = replace(
                    detected, **{n: getattr(detected, n)[detected.scores >= 0.5] for n in ("scores", "labels", "boxes")}
                )
                frame = find_errors(record, one, [1])
                right, wrong, boxes = right + frame.hits.sum(), wrong + (~frame.hits).sum(), boxes + len(record.boxes)
        assert row["recall"]["value"] == pytest.approx(right / boxes)
        assert row["precision"]["value"] == pytest.approx(right / (right + wrong))
    table = audited["scores"]["calibration"]["male"]
    assert sum(row["right"] for row in table[5:]) == right
    assert sum(row["wrong"] for row in table[5:]) == wrong


def test_the_threshold_of_equal_recall_has_it_and_no_higher_one_has(small, audited):
    split, found = small
    side = Side(*(split.group("female"), [found[i] for i in split.positions("female")]), np.ones((30, 1), int), [1])
    scores, wanted = Scores(side), np.array([audited["scores"]["at"]["male"]["recall"]["value"]])
    threshold = scores.equal_recall(wanted)["threshold"][0]
    assert audited["scores"]["equal_recall"]["female"]["threshold"]["value"] == threshold
    assert scores.at(threshold)["recall"][0] >= wanted[0] - 1e-9 > scores.at(np.nextafter(threshold, 1))["recall"][0]
    assert scores.equal_recall(wanted)["precision"][0] == scores.at(threshold)["precision"][0]
    assert np.isnan(scores.equal_recall(np.array([1.01]))["threshold"][0])


def test_nobody_is_found_at_no_threshold_in_particular(small):
    result = audit(*small, samples=0, score=1)
    assert result["scores"]["at"]["male"]["recall"]["value"] == 0
    for each in result["scores"]["equal_recall"]["female"].values():
        assert each["value"] is each["ci95"] is None
    assert "needs a threshold" not in sentences(result)[-1]
    assert "needs a threshold" not in page_of(result, small[0])
    assert "needs a threshold" in page_of(audit(*small, samples=0), small[0])


@pytest.mark.parametrize(("women", "left_out"), [(0, True), (FEWEST - 1, True), (FEWEST, False)])
def test_what_is_annotated_of_one_group_alone_takes_away_no_verdict(women, left_out, small):
    split = replace(small[0], records=tuple(replace(each, pair=None) for each in small[0].records * 4))
    found = small[1] * 4
    without = audit(split, found, samples=0)
    assert without["detector"]["share"] is not None
    records, known = [], {"female": women, "male": 200}
    for each in split.records:
        here = np.arange(len(each.boxes)) < known[each.group]
        known[each.group] -= here.sum()
        records.append(replace(each, conditions={"occluded": np.where(here, 1.0, np.nan)}))
    result = audit(replace(split, records=tuple(records)), found, samples=0)
    assert result["confounders"]["occluded"]["share"] is None
    said = f"occluded is annotated for fewer than {FEWEST} boxes of female"
    assert any(said in text for text in result["warnings"]) == left_out
    assert (result["detector"] == without["detector"]) == left_out


def test_a_category_whose_boxes_are_alike_in_nothing_keeps_its_gap(record, tmp_path):
    """People are found alike; hats, of women and of men never occluded alike, are found on men alone."""
    records, found = [], []
    for n, group in enumerate(["female"] * 30 + ["male"] * 30):
        hats = n % 30 < 12
        boxes, labels = [[10, 10, 40, 60], [120, 60, 30, 30]][: 1 + hats], [1, 7][: 1 + hats]
        hidden = np.array([n % 2, 2 if group == "female" else 3][: 1 + hats], dtype=float)
        records.append(replace(record(n + 1, group, boxes, labels), conditions={"occluded": hidden}))
        seen = 1 if group == "female" else len(boxes)
        found.append(Detections(n + 1, np.ones(seen), np.array(labels[:seen]), np.array(boxes[:seen], dtype=float)))
    split = painted(Split("test", tuple(records), {1: "person", 7: "hat"}, "female", "male"), tmp_path)
    result = audit(split, found, samples=40)
    assert result["by_category"]["hat"]["value"] == pytest.approx(1)
    assert result["gap"]["value"] == pytest.approx(0.5)
    assert result["confounders"]["occluded"]["compared"] == {"female": 30 / 42, "male": 30 / 42}
    assert result["confounders"]["occluded"]["left"]["value"] == pytest.approx(0.5)
    assert result["causes"] == [DETECTOR]


@pytest.mark.filterwarnings("error")
def test_a_group_without_anything_to_find_is_said(small):
    split, found = small
    nobody = [
        each.with_boxes(np.zeros(len(each.boxes), dtype=bool)) if each.group == "female" else each
        for each in split.records
    ]
    result = audit(replace(split, records=tuple(nobody)), found, samples=5)
    assert result["warnings"][0].startswith("There is nothing to find of group female")
    assert result["gap"]["value"] is None
    page_of(result, split)


def test_nothing_is_a_share_of_a_gap_that_is_shown_as_zero():
    assert _cause(np.full(3, 1e-17), np.zeros(3))["share"] is None
    assert _cause(np.full(3, 5e-5), np.zeros(3))["share"] == 1


def painted(split, folder):
    """The split with pictures for its images."""
    pixels = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "any.png")
    return replace(split, records=tuple(replace(record, path=folder / "any.png") for record in split.records))


def page_of(result, split):
    about = {"detector_name": "some", "dataset": "data", "provenance": {}}
    json.dumps(result, allow_nan=False)
    return audit_page(about | result, split)


def test_groups_categories_and_owners_of_every_kind(split_of, tmp_path):
    split, found, _ = split_of(3, images=30, groups=("female", "male", "a third group"))
    rng = np.random.default_rng(0)
    records = [
        replace(each, group="", owners=tuple(rng.permutation(["female", "male", "", "male"])[: len(each.boxes)]))
        if len(each.boxes) > 2 and rng.random() < 0.5
        else each
        for each in split.records
    ]
    split = painted(replace(split, records=tuple(records)), tmp_path)
    result = audit(split, found, samples=20)
    assert set(result["groups"]) == set(result["errors"]["AP50"]) == {"female", "male", "a third group"}
    assert set(result["gaps"]) == set(result["scores"]["equal_recall"]) == {"female", "a third group"}
    assert set(result["by_category"]) == {"person", "bicycle"}
    assert "objects in the image" in result["confounders"]  # which counts bicycles, too
    assert "people in the image" not in result["confounders"]
    frame = MetricFrame(split, found, samples=20)
    assert result["gap"]["value"] == pytest.approx(frame.difference["female"]["AP"]["value"], abs=1e-12)
    for group, each in result["errors"]["AP50"].items():
        assert each["value"] == pytest.approx(frame.by_group[group]["AP50"]["value"], abs=1e-12)
    page = page_of(result, split)
    assert "worst group" in page
    assert "AP gap by category" in page


@pytest.mark.parametrize("blind", [("female",), ("female", "male")])
def test_a_detector_that_finds_nobody_is_audited(blind, split_of, tmp_path):
    split, found, _ = split_of(3)
    split = painted(split, tmp_path)
    nothing = {"scores": np.zeros(0), "labels": np.zeros(0, dtype=np.int64), "boxes": np.zeros((0, 4))}
    found = [replace(d, **nothing) if r.group in blind else d for d, r in zip(found, split.records, strict=True)]
    result = audit(split, found, samples=40)
    assert f"Of {', '.join(blind)} it finds nobody" in result["warnings"][0]
    assert result["groups"]["female"]["AP"]["value"] == 0
    assert "–" not in sentences(result)[-1]
    page_of(result, split)


def test_a_category_that_few_images_have_takes_nobody_their_intervals(split_of, tmp_path):
    split, found, _ = split_of(3, images=40, crowds=False)
    kept = [set(), set()]
    records = []
    for record in split.records:
        rare = kept[record.group == "male"]
        if (record.labels == 7).any() and len(rare) < 2:
            rare.add(record.image_id)
            records.append(record)
        else:
            records.append(record.with_boxes(record.labels == 1))
    split = painted(replace(split, records=tuple(records)), tmp_path)
    result = audit(split, found, samples=60)
    frame = MetricFrame(split, found, samples=60)
    assert result["by_category"]["bicycle"]["ci95"] is None
    assert result["by_category"]["person"]["ci95"] is not None
    assert result["gap"]["value"] == pytest.approx(frame.difference["female"]["AP"]["value"], abs=1e-12)
    np.testing.assert_allclose(result["gap"]["ci95"], frame.difference["female"]["AP"]["ci95"], atol=1e-12)
    np.testing.assert_allclose(
        result["errors"]["AP50"]["male"]["ci95"], frame.by_group["male"]["AP50"]["ci95"], atol=1e-12
    )
    assert all(each["costs"]["female"]["ci95"] for each in result["errors"]["kinds"].values())


def test_groups_without_a_category_in_common_are_refused(split_of, tmp_path):
    split, found, _ = split_of(3)
    records = [each.with_boxes(each.labels == (1 if each.group == "female" else 7)) for each in split.records]
    with pytest.raises(FaapError, match="no category in common"):
        audit(painted(replace(split, records=tuple(records)), tmp_path), found, samples=5)


def test_what_the_groups_differ_in_is_told_with_its_interval(audited):
    for cause, found in (
        ("box size", audited["confounders"]["box size"]["means"]),
        (UNLABELLED, audited["unlabelled"]["each_image"]),
    ):
        for low, high in (each["ci95"] for each in found.values()):
            assert f"({low:.4f} to {high:.4f})" in cause_sentence(audited, cause)


def test_without_replicates_nothing_is_said_for_sure(small):
    result = audit(*small, samples=0)
    assert result["causes"] == []
    assert "nothing can be said of chance" in sentences(result)[0]
    page_of(result, small[0])


def of_gap(value):
    return {"value": value, "standard_error": 0.01, "ci95": [value - 0.01, value + 0.01]}


@pytest.mark.parametrize(
    ("gaps", "total", "begin", "part"),
    [
        ({"duplicate": 0.08, "missed": 0.09}, (0.15, 0.10), "ranks female people below", "Most of it is duplicate"),
        ({"duplicate": 0.07, "missed": 0.09}, (0.15, 0.10), "ranks", "The largest part is duplicate errors, 0.0700"),
        ({"duplicate": 0.08, "missed": 0.09}, (0.15, 0.16), "It misses more female people", ""),
        ({"duplicate": -0.08}, (0.15, 0.10), "ranks", ""),
        ({"duplicate": 0.08}, (0.009, 0.005), "", ""),
    ],
)
def test_what_is_wrong_is_what_makes_more_of_the_gap(gaps, total, begin, part, audited):
    kinds = {kind: each | {"of_gap": of_gap(gaps.get(kind, -0.1))} for kind, each in audited["errors"]["kinds"].items()}
    for name, value in zip(TOTALS, total, strict=True):
        kinds[name] = kinds[name] | {"of_gap": of_gap(value)}
    every = sentences(audited | {"causes": [DETECTOR], "errors": audited["errors"] | {"kinds": kinds}})
    said = [text for text in every if "would go away without" in text]
    assert len(said) == bool(begin)
    for text in said:
        assert begin in text
        assert f"{max(total):.4f} ({max(total) - 0.01:.4f} to {max(total) + 0.01:.4f}) would go away" in text
        assert f"without {TOTALS[total[1] > total[0]]}" in text
        # each number with its interval
        assert re.search(r"which cost \S+ \(\S+ to \S+\) female and \S+ \(\S+ to \S+\) male AP50\.", text)
        assert part in text
        assert (" errors, " in text) == bool(part)


def results_of(found):
    return [
        {"image_id": each.image_id, "category_id": label, "bbox": box, "score": score}
        for each in found
        for label, box, score in zip(each.labels.tolist(), each.boxes.tolist(), each.scores.tolist(), strict=True)
    ]


def test_a_file_of_results_says_the_same_as_the_detector(tiny_promenade, tmp_path):
    dataset = faap.load_dataset(tiny_promenade)
    split, direct = audit_data(dataset, detector="promenade", samples=20)
    entries = results_of(detect(faap.load_detector("promenade"), split))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(np.random.default_rng(0).permutation(entries).tolist()))
    _, read = audit_data(dataset, predictions=path, samples=20)
    own = ("detector_name", "provenance")
    assert {k: v for k, v in read.items() if k not in own} == {k: v for k, v in direct.items() if k not in own}
    assert read["detector_name"] == "results.json"
    with pytest.raises(FaapError, match="give --detr_checkpoint or --predictions"):
        audit_data(dataset)


def test_results_name_images_as_the_file_does(tmp_path, monkeypatch, capsys):
    entries, path = [GOOD | {"image_id": 1}], tmp_path / "r.json"
    for word in ("women", "men"):
        folder = tmp_path / f"{word}_split" / "test"
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 30), (9, 90, 30 if word == "men" else 200)).save(folder / "1.jpg")
        annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 5, 10, 20]}]
        images = [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
        (folder.parent / f"gender_{word}_test.json").write_text(json.dumps(content))
    path.write_text(json.dumps(entries))
    with pytest.raises(FaapError, match="faap numbers these images itself"):
        audit_data(faap.load_dataset(tmp_path), predictions=path)
    # the embedded benchmark, too, can be audited from a file
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("faap.promenade.build.SCENES", {"train": 2, "val": 2, "test": 4})
    split = faap.load_dataset("promenade").split("test")
    path.write_text(json.dumps([GOOD | {"image_id": record.image_id} for record in split.records]))
    words = ["audit", "promenade", "--predictions", str(path), "--samples", "5", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    assert "r.json" in capsys.readouterr().out


def test_categories_that_a_file_never_names_are_left_out_and_said(tiny_promenade, tmp_path):
    dataset = faap.load_dataset(tiny_promenade)
    split = dataset.split("test")
    dataset._splits["test"] = replace(split, categories=split.categories | {7: "bicycle"})
    path = tmp_path / "r.json"
    path.write_text(json.dumps([GOOD | {"image_id": record.image_id} for record in split.records]))
    images, result = audit_data(dataset, predictions=path, samples=5)
    assert images.categories == split.categories
    assert "no detection of them: bicycle" in " ".join(result["warnings"])


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_results_are_sorted_to_their_images(small, tmp_path):
    split, _ = small
    others = [GOOD | {"image_id": 999}, GOOD | {"category_id": 5}, GOOD | {"image_id": 3, "score": 1}, GOOD]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(others))
    found, notes = read_results(path, split)
    assert [len(each.scores) for each in found[:4]] == [1, 0, 1, 0]
    assert found[2].scores.tolist() == [1.0]
    assert found[0].boxes.tolist() == [[1, 2, 3, 4]]
    assert [note.split(" ")[0] for note in notes[:2]] == ["1", "1"]
    assert f"no detection in {len(split.records) - 2} of" in notes[2]


def test_results_may_name_images_by_their_files(small, tmp_path):
    split, found = small
    path, entries = tmp_path / "r.json", results_of(found)
    path.write_text(json.dumps(entries))
    known, _ = read_results(str(path), split)
    names = {record.image_id: record.path for record in split.records}
    for called in ("name", "stem"):  # Ultralytics writes the latter
        named = [each | {"image_id": getattr(names[each["image_id"]], called)} for each in entries]
        path.write_text(json.dumps([*named, GOOD | {"image_id": "of-another-split"}]))
        for renumbered in (False, True):
            read, notes = read_results(path, split, renumbered=renumbered)
            for one, other in zip(read, known, strict=True):
                assert one.image_id == other.image_id
                assert one.boxes.tolist() == other.boxes.tolist()
            assert "1 of the" in notes[0]
    path.write_text(json.dumps([*named, entries[0]]))
    with pytest.raises(FaapError, match="some images have names, and others numbers"):
        read_results(path, split)
    path.write_text(json.dumps(named))
    twice = replace(split, records=(*split.records, replace(split.records[0], image_id=10**6)))
    with pytest.raises(FaapError, match="is the name of several images; give their ids"):
        read_results(path, twice)


def test_boxes_that_leave_their_images_are_no_corners(small, tmp_path):
    path = tmp_path / "r.json"
    leaving = [[2, 3, 160, 128], [-8, -9, 190, 150], [90, 50, 30, 120], [90, 50, 180, 20]]
    path.write_text(json.dumps([GOOD | {"bbox": box} for box in leaving]))
    assert read_results(path, small[0])[0][0].boxes.tolist() == leaving
    path.write_text(json.dumps([GOOD | {"bbox": [90, 50, 130, 100]}, *[GOOD] * 9]))
    assert len(read_results(path, small[0])[0][0].boxes) == 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "r.json: not JSON"),
        ("{}", "r.json"),
        ("[]", "none of its 0 detections is of the test split"),
        ("[3]", r"r.json\[0\]"),
        ([GOOD, GOOD | {"score": 1.5}], r"r.json\[1\]: score"),
        ([GOOD, GOOD | {"score": "0.5"}], r"r.json\[1\]: score"),
        ([GOOD, GOOD | {"score": float("nan")}], r"r.json\[1\]: score"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"r.json\[0\]: bbox"),
        ([GOOD, GOOD | {"bbox": [1, 2, -3, 4]}], r"r.json\[1\]: bbox should be \[x, y, width, height\]"),
        ([GOOD | {"image_id": 1.5}], r"r.json\[0\]: image_id"),
        ([GOOD | {"image_id": "1"}], r"r.json\[0\]: image_id: is '1'; it should be .* the name of a file, such as"),
        ([GOOD | {"image_id": 10**30}], r"r.json\[0\]: image_id"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], r"r.json\[0\]: has no entry 'score'"),
        ([GOOD] * 4 + [GOOD | {"bbox": []}] * 5, r"r.json\[4\]: bbox"),
        ([GOOD | {"bbox": [1, 2, 3, 4, 0.5, 1, 2, 3, 4]}], r"r.json\[0\]: bbox"),
        ([GOOD | {"image_id": [1, 1], "category_id": [1, 1]}], r"r.json\[0\]: image_id"),
        ([GOOD, GOOD | {"image_id": True}], r"r.json\[1\]: image_id"),
        ([GOOD, GOOD | {"score": True}], r"r.json\[1\]: score"),
        ([GOOD | {"image_id": 999}], "none of its 1 detections is of the test split"),
        ([GOOD | {"bbox": [0.1, 0.2, 0.3, 0.4]}] * 2, r"r.json: its boxes lie in \[0, 1\]"),
        ([GOOD | {"bbox": [90, 50, 130, 100]}, *[GOOD] * 8], r"1 of its boxes, .*would fit as \[left, top, right, bot"),
    ],
)
def test_bad_results_are_named(content, said, small, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(FaapError, match=said):
        read_results(path, small[0])


def test_the_page_stands_alone_and_shows_text_as_text(audited, small):
    split, _ = small
    about = {"detector_name": "<script>x</script>", "dataset": "a & b", "provenance": {"date": "now"}}
    page = audit_page(about | audited, split)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for each in audited["examples"]:
        assert f"{each['group']}, {each['kind']}" in page
    for text in sentences(audited):
        assert text[:40] in page


def test_a_group_that_is_a_number_is_called_a_group(small):
    split, found = small
    names = {"female": "6", "male": "2"}
    records = tuple(replace(record, group=names[record.group]) for record in split.records)
    split = replace(split, records=records, anchor="6", reference="2")
    result = {"detector_name": "yolo", "dataset": "data", "provenance": {}} | audit(split, found, samples=40)
    console = Console(file=io.StringIO(), width=300)
    console.print(audit_summary(result))
    for text in (console.file.getvalue(), audit_page(result, split)):
        assert "Group 6 people are found worse" in text
        assert "of group 6 and" in text
        assert "gap (group 2 − group 6)" in text
        assert not re.search(r"(?<![Gg]roup) [62] (people|images|−)", text)


def test_the_chart_of_scores_holds_every_group(audited):
    rows = {group: [dict(row) for row in each] for group, each in audited["scores"]["calibration"].items()}
    for row in rows["male"]:
        row |= {"right": 900, "wrong": 800}
    panels = _draw_scores(audited | {"scores": audited["scores"] | {"calibration": rows}}).axes
    for panel, most in zip(panels, (900, 800), strict=False):
        low, high = panel.get_ylim()
        assert low == 0
        assert high >= most


def test_the_terminal_shows_every_number_in_eighty_columns(audited):
    rows = {name: {"value": -0.3466, "ci95": [-0.4839, -0.1578]} for name in ("AP", "AP50", "AP75", "AR100")}
    data = audited | {"detector_name": "yolo", "dataset": "data", "gaps": {"dark adult": rows, "medium": rows}}
    console = Console(file=io.StringIO(), width=80)
    console.print(audit_summary(data))
    text = console.file.getvalue()
    assert "AR100\n" in text
    assert text.count("−.4839 to −.1578\n") == 2


def test_the_command_writes_numbers_and_page(tiny_promenade, tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        "audit",
        str(tiny_promenade),
        "--detr-checkpoint",
        "promenade",
        "--samples",
        "10",
        "--output-dir",
        str(out),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "what explains the gap" in said
    assert "audit.html" in said
    written = json.loads((out / "audit.json").read_text())
    assert written["provenance"]["detector_sha256"]
    assert (out / "audit.html").is_file()
    for score in ("nan", "1.5"):
        assert main([*words, "--score", score]) == 2
        assert "score" in capsys.readouterr().err
    assert main(["audit", str(tiny_promenade)]) == 2
    assert "--detr_checkpoint or --predictions" in capsys.readouterr().err


def test_a_detector_that_changes_while_it_is_audited_is_noticed(tiny_promenade, tmp_path, monkeypatch):
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path))
    detector = faap.load_detector("promenade")
    forward = type(detector).forward

    def drifting(self, *pixels):
        with torch.no_grad():
            next(self.parameters()).add_(1e-6)
        return forward(self, *pixels)

    monkeypatch.setattr(type(detector), "forward", drifting)
    monkeypatch.setattr(sys.modules[audit.__module__], "load_detector", lambda *_: detector)
    with pytest.raises(FaapError, match="has changed while it was used"):
        audit_data(faap.load_dataset(tiny_promenade), detector="x", samples=0)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong(record):
    one = replace(record(1, "female", [[10, 10, 40, 40], [100, 10, 60, 60]]), crowd=np.array([False, True]))
    boxes = np.array([[10.0, 10, 40, 40], [110, 20, 20, 20], [10, 90, 20, 20]])
    found = Detections(1, np.array([0.9, 0.8, 0.7]), np.ones(3, int), boxes)
    scores = Scores(Side([one], [found], np.ones((1, 1), int), [1]))
    assert scores.scores.tolist() == [0.9, 0.7]
    assert scores.right.tolist() == [True, False]
    assert scores.at(0.5)["precision"].tolist() == [0.5]


def test_of_missed_objects_the_largest_is_shown_with_the_box_that_comes_nearest(record):
    one = record(1, "female", [[10, 10, 20, 20], [100, 10, 60, 60], [10, 100, 30, 30]])
    boxes = np.array([[300.0, 300, 9, 9], [130, 40, 200, 200], [150, 60, 200, 200]])
    found = Detections(1, np.array([0.9, 0.2, 0.3]), np.ones(3, int), boxes)
    chosen = {each["kind"]: each for each in telling(Side([one], [found], np.ones((1, 1), int), [1]), "female")}
    missed = chosen["missed"]
    assert (missed["object"], missed["box"], missed["score"]) == ([100, 10, 60, 60], [130, 40, 200, 200], 0.2)
    assert chosen["background"]["score"] == 0.9
    alone = replace(found, boxes=boxes + 400)
    chosen = {each["kind"]: each for each in telling(Side([one], [alone], np.ones((1, 1), int), [1]), "female")}
    assert (chosen["missed"]["box"], chosen["missed"]["score"]) == (None, None)
