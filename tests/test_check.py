"""What `faap check` finds and says."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from faap import cli
from faap.check import check, print_check
from faap.data import load_dataset


@pytest.fixture
def root(tiny_promenade, tmp_path):
    return shutil.copytree(tiny_promenade, tmp_path / "data")


def change(root, group, split, edit):
    path = root / f"{group}_split" / f"gender_{group}_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def printed(result):
    out = io.StringIO()
    print_check(result, Console(file=out, width=120))
    return out.getvalue()


def test_what_is_there_is_counted(root):
    def edit(content):
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1] |= {"area": 96**2 + 1, "bbox": [1, 1, 120, 100]}
        content["annotations"][2]["area"] = 32**2 - 1

    change(root, "women", "val", edit)
    result = check(load_dataset(root))
    split = load_dataset(root).split("val")
    women = [record for record in split.records if record.group == "female"]
    kept = [(record.areas[i], record.boxes[i, 3]) for record in women for i in np.flatnonzero(~record.crowd)]
    found = result["splits"]["val"]["groups"]["female"]
    assert (result["problems"], result["counts"], result["layout"]) == ([], {}, "split folders")
    assert (found["images"], found["objects"], found["crowds"]) == (3, {"person": len(kept)}, 1)
    assert found["small"] == sum(area < 32**2 for area, _ in kept) > 0
    assert found["large"] == 1
    assert found["small"] + found["medium"] + found["large"] == len(kept)
    assert found["box_height"][1] == pytest.approx(np.median([height for _, height in kept]), abs=1e-4)
    assert (found["image_sizes"], found["image_aspect"]) == ([[160, 128]], [1.25, 1.25, 1.25])
    assert "Nothing is wrong with it" in printed(result)
    json.dumps(result, allow_nan=False)


def spoil(root):
    """Break one thing of each kind; return what should be found."""
    women, men = root / "women_split", root / "men_split"
    change(root, "women", "train", lambda c: c["images"][0].update(file_name="../x.jpg"))
    change(root, "women", "train", lambda c: c["images"][1].update(width=161))
    change(root, "women", "train", lambda c: c["annotations"][-1].update(category_id=9))
    change(root, "men", "train", lambda c: c["annotations"][-1].update(bbox=[0, 0, float("nan"), 3]))
    change(root, "men", "train", lambda c: c["annotations"][-2].update(bbox=[0, 0, 0, 3]))
    change(root, "men", "train", lambda c: c["annotations"][-3].update(bbox=[150, 0, 20, 3]))
    change(root, "men", "val", lambda c: c["annotations"].append(c["annotations"][0]))
    (women / "val" / "00000.jpg").unlink()
    # cut in the middle: its header is whole
    whole = (men / "val" / "00001.jpg").read_bytes()
    (men / "val" / "00001.jpg").write_bytes(whole[: len(whole) // 2])
    shutil.copy(women / "train" / "00003.jpg", women / "test" / "00000.jpg")
    Image.open(women / "train" / "00004.jpg").resize((160, 128)).save(men / "test" / "00001.jpg", quality=60)
    shutil.copy(women / "test" / "00002.jpg", men / "test" / "00002.jpg")
    return {
        "leaves_folder": ["gender_women_train.json"],
        "wrong_size": ["gender_women_train.json"],
        "unknown_category": ["gender_women_train.json"],
        "bad_box": ["gender_men_train.json"] * 3,
        "duplicate_id": ["gender_men_val.json"],
        "missing_image": ["gender_women_val.json"],
        "unreadable_image": ["00001.jpg"],
        "two_splits": ["00000.jpg"],
        "near_duplicate": ["00001.jpg"],
        "two_groups": ["00002.jpg"],
    }


def test_everything_that_is_wrong_is_found_with_file_and_record(root, capsys):
    expected = spoil(root)
    result = check(load_dataset(root))
    found = {}
    for problem in result["problems"]:
        found.setdefault(problem["kind"], []).append(problem["file"].rpartition("/")[2])
    assert found == expected
    assert result["counts"] == {kind: len(files) for kind, files in expected.items()}
    assert all(problem["record"] for problem in result["problems"] if problem["file"].endswith(".json"))
    assert cli.main(["check", str(root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == result
    text = printed(result)
    assert "bad_box: 3" in text
    assert "annotation" in text
    # without the pictures, what the annotations and headers show
    quick = check(load_dataset(root), images=False)["counts"]
    seen_only = {"unreadable_image", "two_splits", "near_duplicate", "two_groups"}
    assert quick == {kind: count for kind, count in result["counts"].items() if kind not in seen_only}


def test_long_lists_are_cut_and_say_so(root):
    change(root, "women", "train", lambda c: [entry.update(category_id=9) for entry in c["annotations"]])
    result = check(load_dataset(root), images=False)
    count = result["counts"]["unknown_category"]
    assert count > 5
    assert f"… and {count - 5} more" in printed(result)
    assert result["counts"]["empty_group"] == 1


def test_twins_of_two_groups_are_no_copies(root):
    assert check(load_dataset(root))["problems"] == []


def test_an_empty_split_or_group_is_found(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "1.jpg")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30, "gender": "female", "split": "train"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    result = check(load_dataset(tmp_path))
    assert [(problem["kind"], problem["record"]) for problem in result["problems"]] == [
        ("empty_group", "split train"),
        ("empty_split", "split val"),
        ("empty_split", "split test"),
    ]
    # what is wrong with a record hides no empty split
    content["annotations"].append(content["annotations"][0] | {"id": 2, "bbox": [1, 1, 0, 5]})
    (tmp_path / "data.json").write_text(json.dumps(content))
    assert check(load_dataset(tmp_path))["counts"] == {"bad_box": 1, "empty_group": 1, "empty_split": 2}
    (tmp_path / "data.json").write_text("[")
    assert check(load_dataset(tmp_path))["counts"] == {"unreadable_file": 1}


def test_images_of_several_groups_are_counted(tmp_path):
    """A woman and a man in the first image, one of each in the next two."""
    for number in (1, 2, 3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
    boxes = [(1, "male", 1), (1, "female", 20), (2, "female", 1), (3, "male", 1)]
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30, "split": "test"} for n in (1, 2, 3)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "bbox": [x, 1, 10, 20], "gender": group}
            for i, (image, group, x) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    result = check(load_dataset(tmp_path))
    found = result["splits"]["test"]
    assert found["mixed"] == 1
    assert [(values["images"], values["objects"]) for values in found["groups"].values()] == [(2, {"person": 2})] * 2
    assert "test: 1 images show several groups; the boxes of others are regions to ignore" in printed(result)


def test_a_split_that_repeats_another_is_said_to_and_still_counted(root):
    for word in ("women", "men"):
        shutil.rmtree(root / f"{word}_split" / "test")
        (root / f"{word}_split" / "test").symlink_to(root / f"{word}_split" / "val")
        shutil.copy(
            root / f"{word}_split" / f"gender_{word}_val.json", root / f"{word}_split" / f"gender_{word}_test.json"
        )
    result = check(load_dataset(root))
    assert result["counts"] == {"two_splits": 6}
    assert result["splits"]["test"]["images"] == 6


def test_facets_licence_is_shown(tmp_path):
    (tmp_path / "annotations.csv").write_text(
        'person_id,filename,bounding_box,gender_presentation_masc\n1,a.jpg,"[1, 2, 3, 4]",1\n'
    )
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    result = check(load_dataset(tmp_path))
    assert "FACET's licence allows evaluation only" in printed(result)
    assert result["counts"] == {"empty_group": 1}


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mangled_files_never_give_a_traceback(tiny_promenade, tmp_path, data):
    """Whatever is in the files, the command ends with 0, 1 or 2, and JSON stays JSON."""
    root = tmp_path / "data"
    shutil.rmtree(root, ignore_errors=True)
    (root / "pictures").mkdir(parents=True)
    source = tiny_promenade / "women_split"
    content = json.loads((source / "gender_women_val.json").read_text())
    for entry in content["images"]:
        shutil.copy(source / "val" / entry["file_name"], root / "pictures")
    where = data.draw(st.sampled_from(["images", "annotations"]))
    for entry in content[where]:
        entry["gender"] = data.draw(st.sampled_from(["female", "male"]))
    for _ in range(data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from(["images", "annotations", "categories"]))
        if isinstance(content[key], list) and content[key]:
            entry = data.draw(st.sampled_from(content[key]))
            names = [
                "gender",
                "split",
                "scene",
                "bbox",
                "iscrowd",
                "id",
                "image_id",
                "file_name",
                "area",
                "category_id",
            ]
            entry[data.draw(st.sampled_from(names))] = data.draw(VALUES)
        else:
            content[key] = data.draw(VALUES)
    (root / "data.json").write_text(json.dumps(content))
    options = ["--quick"] if data.draw(st.booleans()) else []
    if data.draw(st.booleans()):
        rows = data.draw(st.lists(st.lists(st.sampled_from(["1", "female", "", "x"]), max_size=3), max_size=4))
        text = "\n".join(["image_id,gender,split", *(",".join(row) for row in rows)])
        (root / "table.csv").write_text(text)
        options += ["--group_csv", "table.csv"]
    assert cli.main(["check", str(root), *options]) in (0, 1, 2)


def test_names_may_look_like_markup_or_be_unprintable(tmp_path, monkeypatch):
    entry = {"width": 40, "height": 30}
    names = ("[/x]", "[red]")
    for number in (1, 2):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
    content = {
        "images": [entry | {"id": n, "file_name": f"{n}.jpg", "gender": names[n - 1]} for n in (1, 2)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in (1, 2)],
        "categories": [{"id": 1, "name": "person"}],
    }
    content["images"].append(entry | {"id": 3, "file_name": "\ud800.jpg", "gender": "\ud800"})
    (tmp_path / "data.json").write_text(json.dumps(content))
    text = printed(check(load_dataset(tmp_path, anchor="[/x]", reference="[red]")))
    assert all(name in text for name in names)
    content["images"][0]["gender"] = "\ud800"
    (tmp_path / "data.json").write_text(json.dumps(content))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    assert cli.main(["check", str(tmp_path), "--quick"]) == 1
    sys.stdout.flush()
    assert "missing_image: 1" in written.getvalue().decode()


def test_one_picture_twice_in_a_split_is_found(root):
    folder = root / "women_split" / "val"
    shutil.copy(folder / "00000.jpg", folder / "00001.jpg")
    change(root, "women", "val", lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 1]))
    assert check(load_dataset(root))["counts"] == {"bad_box": 1, "duplicate_image": 1}


def test_categories_are_named_and_those_of_one_group_only(tmp_path):
    """Two men with a dog each, one woman; her bench is a crowd, which nobody has to find."""
    images, annotations = [], []
    for number, group in enumerate(("male", "male", "female"), start=1):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
        entry = {"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30}
        images.append(entry | {"gender": group, "split": "test"})
        for category in (1, 2) if group == "male" else (1, 3):
            crowd = int(category == 3)
            box = {"image_id": number, "category_id": category, "bbox": [1, 1, 10, 20], "iscrowd": crowd}
            annotations.append({"id": len(annotations), **box})
    names = [{"id": number, "name": name} for number, name in enumerate(("person", "dog", "bench"), start=1)]
    (tmp_path / "data.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    result = check(load_dataset(tmp_path), images=False)
    found = result["splits"]["test"]["groups"]
    assert {group: values["objects"] for group, values in found.items()} == {
        "male": {"person": 2, "dog": 2},
        "female": {"person": 1},
    }
    text = " ".join(printed(result).split())
    assert "people" not in text
    assert "dog: 2" in text
    assert "split test: only male has dog; gaps are of the categories that both groups have" in text
    assert "only female" not in text
    assert "split test: female has one image" in text


def test_pictures_of_a_still_camera_are_named_once_each(tmp_path):
    """Each looks like all others: what is counted is images, and not pairs of them."""
    scene = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    images = []
    for number in range(10):
        pixels = np.array(Image.fromarray(scene).resize((128, 96)))
        pixels[0, number] = 255 - pixels[0, number]
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        entry = {"id": number, "file_name": f"{number}.png", "width": 128, "height": 96}
        images.append(entry | {"gender": ("female", "male")[number % 2], "split": "train" if number < 6 else "val"})
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [9, 9, 50, 50]} for n in range(10)]
    data = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "data.json").write_text(json.dumps(data))
    found = [each for each in check(load_dataset(tmp_path))["problems"] if each["kind"] == "near_duplicate"]
    assert [each["file"].rpartition("/")[2] for each in found] == ["6.png", "7.png", "8.png", "9.png"]
    assert all("bits differ) and 5 more: one picture in train and val" in each["reason"] for each in found)


def test_a_category_that_a_third_group_takes_away_is_said(tmp_path):
    images = [
        {"id": n, "file_name": f"{n}.png", "width": 40, "height": 30, "gender": ("female", "male", "unsure")[n % 3]}
        for n in range(6)
    ]
    boxes = [{"image_id": n, "category_id": 1, "bbox": [1, 1, 10, 20]} for n in range(6)]
    boxes += [{"image_id": n, "category_id": 2, "bbox": [20, 1, 10, 20]} for n in range(6) if n % 3 < 2]
    for entry in images:
        Image.new("RGB", (40, 30), (40 * entry["id"], 0, 0)).save(tmp_path / entry["file_name"])
        entry["split"] = "test"
    names = [{"id": number, "name": name} for number, name in enumerate(("person", "dog"), start=1)]
    boxes = [{"id": n, **box} for n, box in enumerate(boxes)]
    (tmp_path / "data.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": names}))
    notes = check(load_dataset(tmp_path), images=False)["notes"]
    assert "split test: unsure has no dog; gaps are of the categories that all have" in notes
