"""FACET's CSV: persons with the attributes that annotators saw, and several of them in an image."""

import csv
import json

import pytest
from PIL import Image

from faap.data import load_dataset
from faap.errors import FaapError

GENDERS = ("masc", "fem", "non_binary", "na")


def person(number, image, gender, box=(5, 6, 20, 30), **changes):
    x, y, width, height = box
    row = {
        "person_id": str(number),
        "filename": f"sa_{image}.jpg",
        "class1": "guitarist",
        "class2": "none",
        "bounding_box": json.dumps({"x": x, "y": y, "width": width, "height": height, "dict_attributes": {}}),
        **{f"gender_presentation_{name}": str(int(name == gender)) for name in GENDERS},
        **{f"skin_tone_{tone}": "0" for tone in (*range(1, 11), "na")},
        "visible_torso": "1",
        "visible_face": "1",
    }
    return row | {key: str(value) for key, value in changes.items()}


PEOPLE = [
    person(1, 1, "fem"),
    person(2, 1, "masc", (40, 6, 20, 30)),
    person(3, 2, "masc", skin_tone_4=2, skin_tone_5=1),
    person(4, 2, "na", (40, 6, 20, 30), skin_tone_2=1, skin_tone_3=1),
    person(5, 3, "non_binary", skin_tone_9=3),
    person(6, 4, "na"),
]


def write(root, people=PEOPLE, folder="annotations"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    with (root / folder / "annotations.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(people[0]))
        writer.writeheader()
        writer.writerows(people)
    for number in range(1, 5):
        images = root / f"imgs_{number % 3 + 1}"
        images.mkdir(exist_ok=True)
        Image.new("RGB", (80, 60), (number * 50, 90, 30)).save(images / f"sa_{number}.jpg")
    return root


@pytest.mark.parametrize("place", [".", "annotations/annotations.csv"])
def test_everyone_has_the_group_that_annotators_saw(tmp_path, place):
    dataset = load_dataset(write(tmp_path) / place)
    assert (dataset.layout, dataset.splits, dataset.anchor, dataset.reference) == ("FACET", ("test",), "fem", "masc")
    split = dataset.split("test")
    assert split.categories == {1: "person"}
    assert [record.path.name for record in split.records] == ["sa_1.jpg", "sa_2.jpg", "sa_3.jpg"]
    assert [record.owners for record in split.records] == [("fem", "masc"), ("masc", ""), None]
    assert [record.group for record in split.records] == ["", "masc", "non_binary"]
    assert split.counts() == {"fem": 1, "masc": 2, "non_binary": 1}
    assert (split.records[0].width, split.records[0].height) == (80, 60)
    assert split.records[0].boxes.tolist() == [[5, 6, 20, 30], [40, 6, 20, 30]]
    assert dataset.read("test").left_out == 1


def test_another_attribute_may_be_the_group(tmp_path):
    dataset = load_dataset(write(tmp_path), group_field="skin_tone", anchor="9", reference="4")
    split = dataset.split("test")
    assert [record.owners for record in split.records] == [("4", ""), None], "a tie belongs to nobody"
    assert split.records[1].group == "9"


def test_the_csv_alone_may_lie_beside_the_images(tmp_path):
    assert load_dataset(write(tmp_path, folder=".")).split("test").counts()["masc"] == 2


def test_training_is_refused_with_the_licence(tmp_path):
    with pytest.raises(FaapError, match=r"no split 'train'; it has test\. FACET's licence allows evaluation only"):
        load_dataset(write(tmp_path)).split("train")


BROKEN = {
    "no number": (person(7, 1, "fem", bounding_box="{"), r"line 3 \(person 7\): bbox should be four finite numbers"),
    "no height": (person(7, 1, "fem", bounding_box='{"x": 1}'), "bbox should be four finite numbers"),
    "outside": (person(7, 1, "fem", (70, 6, 20, 30)), "leaves its image, which is 80x60 pixels"),
    "no image": (person(7, 9, "fem"), "file_name 'sa_9.jpg' does not exist"),
    "a way out": (person(7, 1, "fem", filename="../sa_1.jpg"), "file_name '../sa_1.jpg' leaves the folder"),
    "no votes": (person(7, 1, "fem", gender_presentation_masc="yes"), "gender_presentation_masc should be a number"),
    "twice": (person(1, 2, "fem"), r"line 3 \(person 1\): the person_id is used by an earlier line"),
}


@pytest.mark.parametrize(("row", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_row_is_named(tmp_path, row, message):
    root = write(tmp_path, [PEOPLE[0], row, *PEOPLE[2:]])
    with pytest.raises(FaapError, match=message) as caught:
        load_dataset(root).split("test")
    assert "annotations.csv: line 3" in str(caught.value)
    dataset = load_dataset(root, skip_bad=True)
    assert sum(len(record.boxes) for record in dataset.split("test").records) == 4


def test_a_broken_image_is_named_once(tmp_path):
    root = write(tmp_path)
    (root / "imgs_2" / "sa_1.jpg").write_bytes(b"none")
    (problem,) = load_dataset(root).problems()
    assert (problem.kind, problem.record) == ("unreadable_image", "line 2 (person 1)")


def test_an_unknown_attribute_is_named_with_the_columns(tmp_path):
    with pytest.raises(
        FaapError, match=r"has no column hair_…; --group_field names the attribute \(columns: person_id"
    ):
        load_dataset(write(tmp_path), group_field="hair").split("test")


def test_a_part_of_an_attributes_name_is_refused(tmp_path):
    with pytest.raises(FaapError, match="'gender' is no attribute; did you mean 'gender_presentation'"):
        load_dataset(write(tmp_path), group_field="gender").split("test")
    with pytest.raises(FaapError, match=r"file_name 'sa_1\.jpg' does not exist in .*none; --images_dir"):
        load_dataset(write(tmp_path), images_dir="none").split("test")


def test_another_csv_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("image_id,gender\n1,female\n")
    with pytest.raises(FaapError, match=r"is not FACET's annotations\.csv"):
        load_dataset(tmp_path / "a.csv")


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "NA", ""])
def test_votes_that_are_missing_are_none(tmp_path, word):
    """Whatever the order of the columns: nan compares with nothing."""
    missing = {f"gender_presentation_{name}": word for name in GENDERS}
    people = [
        person(1, 1, "fem", **missing | {"gender_presentation_fem": 1}),
        person(2, 2, "masc", **missing | {"gender_presentation_masc": 1}),
        person(3, 3, "", **missing),
    ]
    assert load_dataset(write(tmp_path, people)).split("test").counts() == {"fem": 1, "masc": 1}
    assert load_dataset(tmp_path).read("test").left_out == 1
    with pytest.raises(FaapError, match="no object of group 'fem' to find; it has nothing"):
        load_dataset(write(tmp_path / "nobody", people[2:])).split("test")


@pytest.mark.parametrize("word", ["inf", "-1", "many"])
def test_votes_that_are_no_count_are_refused(tmp_path, word):
    people = [*PEOPLE, person(9, 2, "fem", gender_presentation_fem=word)]
    with pytest.raises(FaapError, match=f"gender_presentation_fem should be a number of votes, found '{word}'"):
        load_dataset(write(tmp_path, people)).split("test")
