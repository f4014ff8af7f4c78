"""Users' own files, from the command line: each kind of detector file with another layout of data."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from faap import cli
from faap.evaluation import NONE_WORTH_IT
from faap.perturbation import build_generator, save_generator
from faap.promenade import build_promenade

SMALL = ["--epochs", "1", "--batch_size", "4", "--images_per_epoch", "4", "--device", "cpu"]


@pytest.fixture
def generator(tmp_path):
    save_generator(build_generator(), tmp_path / "generator")
    return str(tmp_path / "generator")


def metrics_of(folder):
    """What was measured there, but for the date and what is known of a training's epochs alone."""
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["provenance"]["date"]
    metrics["warnings"] = [each for each in metrics["warnings"] if each != NONE_WORTH_IT]
    return metrics


@pytest.fixture
def original(tmp_path):
    """A small checkpoint of the original DETR, with COCO's 91 classes."""
    place = Path(__file__).parent / "detectors" / "original_detr.py"
    spec = importlib.util.spec_from_file_location("original_detr", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    torch.save({"model": module.OriginalDetr().state_dict()}, tmp_path / "detr-r50-tiny.pth")
    return str(tmp_path / "detr-r50-tiny.pth")


def test_an_original_checkpoint_with_split_folders(original, tmp_path):
    few = build_promenade(tmp_path, {"train": 2, "val": 2, "test": 2})  # each is seen at 800 pixels
    places = ["--dataset_root", str(few), "--detr_checkpoint", original]
    run = tmp_path / "run"
    assert cli.main(["train", "infonce_4th", *places, *SMALL, "--train_edges", "96", "--output_dir", str(run)]) == 0
    assert cli.main(["evaluate", str(run), *places, "--output_dir", str(tmp_path / "again")]) == 0
    assert metrics_of(run) == metrics_of(tmp_path / "again")
    assert metrics_of(run)["categories"] == ["person"]


@pytest.fixture
def single_file(tiny_promenade, tmp_path):
    """All of the tiny Promenade in one JSON with another category beside, and its groups in a table."""
    root = tmp_path / "data"
    root.mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]}
    rows = []
    for word, group in (("women", "f"), ("men", "m")):
        for split in ("train", "val", "test"):
            source = tiny_promenade / f"{word}_split"
            part = json.loads((source / f"gender_{word}_{split}.json").read_text())
            for entry in part["images"]:
                name, key = f"{word}-{split}-{entry['file_name']}", len(rows) + 1
                shutil.copy(source / split / entry["file_name"], root / name)
                content["images"].append(entry | {"id": key, "file_name": name})
                rows.append({"file_name": name, "sex": group, "split": split})
                for annotation in part["annotations"]:
                    if annotation["image_id"] == entry["id"]:
                        new = {"id": len(content["annotations"]), "image_id": key, "category_id": 1}
                        content["annotations"].append(annotation | new)
    content["annotations"].append(content["annotations"][0] | {"id": 10**6, "category_id": 2})
    (root / "people.json").write_text(json.dumps(content))
    with (root / "groups.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


GROUPS = ["--group_csv", "groups.csv", "--group_field", "sex", "--anchor_group", "f", "--reference_group", "m"]


def test_a_conditional_detr_with_one_json_and_a_table(tiny_detector, single_file, tiny_promenade, tmp_path):
    places = ["--dataset_root", str(single_file), *GROUPS, "--detr_checkpoint", str(tiny_detector)]
    run = tmp_path / "run"
    assert cli.main(["train", "infonce_4th", *places, *SMALL, "--output_dir", str(run)]) == 0
    assert cli.main(["evaluate", str(run), *places, "--output_dir", str(tmp_path / "again")]) == 0
    metrics = metrics_of(run)
    assert metrics == metrics_of(tmp_path / "again")
    assert metrics["images"] == {"f": 4, "m": 4}
    assert metrics["categories"] == ["person"], "the detector knows no dog, so none is asked for"
    # the same pictures in split folders have the same metrics
    same = ["--dataset_root", str(tiny_promenade), "--detr_checkpoint", str(tiny_detector)]
    assert cli.main(["evaluate", str(run), *same, "--output_dir", str(tmp_path / "folders")]) == 0
    folders = metrics_of(tmp_path / "folders")
    assert list(metrics["baseline"].values()) == list(folders["baseline"].values())
    assert list(metrics["perturbed"].values()) == list(folders["perturbed"].values())
    # a resumed run finds its data by the checkpoint's settings
    checkpoint = run / "checkpoints" / "epoch_0000.pth"
    assert cli.main(["train", "infonce_4th", "--resume", str(checkpoint), "--epochs", "2"]) == 0


def test_facet_with_three_groups(tiny_detector, generator, tmp_path, capsys):
    root = tmp_path / "facet"
    (root / "annotations").mkdir(parents=True)
    (root / "imgs_1").mkdir()
    names = ("masc", "fem", "non_binary", "na")
    rows = []
    for number in range(12):
        Image.new("RGB", (80, 60), (number * 20, 90, 30)).save(root / "imgs_1" / f"sa_{number}.jpg")
        for person, left in enumerate((5, 45)):
            group = names[(number + person * (number % 2)) % 4]
            rows.append(
                {
                    "person_id": len(rows),
                    "filename": f"sa_{number}.jpg",
                    "bounding_box": json.dumps({"x": left, "y": 6, "width": 20, "height": 40}),
                    **{f"gender_presentation_{name}": int(name == group) for name in names},
                }
            )
    with (root / "annotations" / "annotations.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    places = ["--dataset_root", str(root), "--detr_checkpoint", str(tiny_detector)]
    assert cli.main(["evaluate", generator, *places, "--output_dir", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("FACET's licence allows evaluation only") == 1
    metrics = metrics_of(tmp_path / "out")
    assert list(metrics["baseline"]) == list(metrics["images"]) == ["fem", "masc", "non_binary"]
    assert "non_binary" in (tmp_path / "out" / "report.html").read_text()
    assert cli.main(["train", "infonce_4th", *places, *SMALL, "--output_dir", str(tmp_path / "run")]) == 2
    assert "FACET's licence allows evaluation only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_broken_data_is_refused_or_left_out(tiny_detector, tiny_promenade, generator, tmp_path, capsys):
    root = shutil.copytree(tiny_promenade, tmp_path / "data")
    path = root / "women_split" / "gender_women_test.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    content["annotations"][1]["category_id"] = 3
    path.write_text(json.dumps(content))
    places = ["--dataset_root", str(root), "--detr_checkpoint", str(tiny_detector)]
    # its header is whole, so that only decoding shows it
    image = root / "women_split" / "test" / content["images"][3]["file_name"]
    image.write_bytes(image.read_bytes()[:1500])
    said = []
    for command in (["train", "infonce_4th", *SMALL], ["evaluate", generator]):
        assert cli.main([*command, *places, "--output_dir", str(tmp_path / "out")]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert "2 records of the data set are broken" in said[0]
    assert "gender_women_test.json: annotation" in said[0]
    assert cli.main(["check", str(root), "--quick", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert all(f"{each['file']}: {each['record']}: {each['reason']}" in said[0] for each in problems)
    for command in (["train", "infonce_4th", *SMALL], ["evaluate", generator]):
        out = tmp_path / command[0]
        assert cli.main([*command, *places, "--skip-bad", "--output_dir", str(out)]) == 0
        assert "3 broken records are left out" in " ".join(capsys.readouterr().out.split())
        assert metrics_of(out)["skipped_records"] == 3
