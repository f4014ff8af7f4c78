"""Reading the split-folder layout, and what is said when it is broken."""

import json
import shutil
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faap.data import Problem, load_dataset
from faap.data.coco import read_coco
from faap.data.reading import Reading
from faap.errors import FaapError


def test_a_split_holds_both_groups_with_their_annotations(dataset_root):
    dataset = load_dataset(dataset_root)
    assert dataset.splits == ("train", "val", "test")
    split = dataset.split("val")
    assert split is dataset.split("val")
    assert (split.name, split.anchor, split.reference) == ("val", "female", "male")
    assert split.counts() == {"female": 5, "male": 4}
    assert split.categories == {1: "person"}
    assert [record.image_id for record in split.records] == [1, 2, 3, 4, 5, 101, 102, 103, 104]
    assert [record.image_id for record in split.group("male")] == [101, 102, 103, 104]
    third = split.records[2]
    assert third.path == dataset_root / "women_split" / "val" / "2.jpg"
    assert (third.width, third.height, third.group, third.pair) == (40, 30, "female", "2")
    assert third.boxes.tolist() == [[2, 6, 10, 12.5], [14, 6, 10, 12.5]]
    assert (third.labels.tolist(), third.areas.tolist(), third.crowd.tolist()) == ([1, 1], [100, 101], [False, False])
    assert split.records[0].boxes.shape == (0, 4)


def test_the_anchor_group_is_a_choice(dataset_root):
    split = load_dataset(dataset_root, anchor="male", reference="female").split("train")
    assert (split.anchor, split.reference, split.records[0].group) == ("male", "female", "female")


def test_colliding_image_ids_are_renumbered(write_dataset, tmp_path):
    root = write_dataset(tmp_path / "same", splits=("test",))
    path = root / "men_split" / "gender_men_test.json"
    content = json.loads(path.read_text())
    for entry in content["images"]:
        entry["id"] -= 100
    for entry in content["annotations"]:
        entry["image_id"] -= 100
    path.write_text(json.dumps(content))
    records = load_dataset(root).split("test").records
    assert [record.image_id for record in records] == list(range(1, 10))
    assert len(records[5 + 2].boxes) == 2


def test_promenade_is_built_when_asked_for(dataset_root, monkeypatch):
    module = types.ModuleType("faap.promenade")
    asked = []
    module.build_promenade = lambda scenes: asked.append(scenes) or dataset_root
    monkeypatch.setitem(sys.modules, "faap.promenade", module)
    assert load_dataset("promenade").root == load_dataset("promenade", scenes=5).root == dataset_root
    assert asked == [None, {"train": 5}]
    with pytest.raises(FaapError, match="scenes is 5; it is a size of promenade"):
        load_dataset(dataset_root, scenes=5)


def test_boxes_one_pixel_outside_are_cut(edit):
    root = edit(lambda c: c["annotations"].append(c["annotations"][0] | {"id": 7, "bbox": [-0.6, 29, 41.5, 2]}))
    (record,) = [r for r in load_dataset(root).split("train").records if r.image_id == 2]
    assert record.boxes[-1].tolist() == pytest.approx([0, 29, 40, 1])


def test_optional_fields_have_defaults(edit):
    def change(content):
        for entry in content["annotations"]:
            del entry["area"], entry["iscrowd"]
        for entry in content["images"]:
            del entry["scene"]

    record = load_dataset(edit(change)).split("train").records[1]
    assert (record.areas.tolist(), record.crowd.tolist(), record.pair) == ([125.0], [False], None)


def test_fingerprint_sees_every_annotation_but_not_the_place(dataset_root, tmp_path):
    split = load_dataset(dataset_root).split("test")
    moved = shutil.copytree(dataset_root, tmp_path / "moved")
    assert load_dataset(moved).split("test").fingerprint() == split.fingerprint()
    first = next(record for record in split.records if len(record.boxes))
    others = [
        replace(first, width=first.width + 1),
        replace(first, boxes=first.boxes + 1e-9),
        replace(first, labels=first.labels + 1),
        replace(first, areas=first.areas + 1),
        replace(first, crowd=~first.crowd),
        replace(first, pair="other"),
        replace(first, path=first.path.with_name("other.jpg")),
    ]
    variants = [replace(split, records=(other,)).fingerprint() for other in [first, *others]]
    assert len(set(variants)) == len(variants)
    assert replace(split, categories={1: "people"}).fingerprint() != split.fingerprint()


def first_annotation(**changes):
    return lambda content: content["annotations"][0].update(changes)


def first_image(**changes):
    return lambda content: content["images"][0].update(changes)


BROKEN = {
    "no images key": (lambda c: c.pop("images"), "there is no list 'images'"),
    "images no list": (lambda c: c.update(images={}), "there is no list 'images'"),
    "no annotations key": (lambda c: c.pop("annotations"), "there is no list 'annotations'"),
    "no categories key": (lambda c: c.pop("categories"), "there is no list 'categories'"),
    "entry no object": (lambda c: c["images"].insert(0, 3), r"images\[0\]: should be a JSON object, found 3"),
    "empty split": (lambda c: c.update(images=[], annotations=[]), "holds no image"),
    "image without id": (
        lambda c: c["images"][2].pop("id"),
        r"images\[2\]: id should be a whole number of at most 64 bits, but is missing",
    ),
    "image id a word": (first_image(id="a"), r"images\[0\]: id should be a whole number of at most 64 bits, found 'a'"),
    "image id twice": (
        lambda c: c["images"][1].update(id=1),
        "image 1: the id is used by an earlier one; ids must differ",
    ),
    "no file name": (
        lambda c: c["images"][0].pop("file_name"),
        "image 1: file_name should be the name of an image's file, but is missing",
    ),
    "file leaves folder": (first_image(file_name="../../x.jpg"), "image 1: file_name '../../x.jpg' leaves the folder"),
    "file hides leaving": (first_image(file_name="a/../../x.jpg"), "image 1: file_name .* leaves the folder"),
    "absolute file": (first_image(file_name="/etc/passwd"), "image 1: file_name '/etc/passwd' leaves the folder"),
    "file missing": (
        first_image(file_name="none.jpg"),
        "image 1: file_name 'none.jpg' does not exist in .*women_split/train",
    ),
    "file name of zeros": (first_image(file_name="a\0b"), "image 1: file_name .* does not exist"),
    "file name too long": (first_image(file_name="a" * 5000), "image 1: file_name .* does not exist"),
    "zero width": (first_image(width=0), "image 1: width should be a whole number of at least 1, found 0"),
    "broken height": (first_image(height=12.5), "image 1: height should be a whole number of at least 1, found 12.5"),
    "scene a list": (first_image(scene=[1]), r"image 1: scene should be a word or a whole number, found \[1\]"),
    "annotation without id": (
        lambda c: c["annotations"][0].pop("id"),
        r"annotations\[0\] of image 2: id should be a whole number of at most 64 bits, but is missing",
    ),
    "annotation id twice": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        "annotation 20 of image 2: the id is used",
    ),
    "unknown image": (
        first_annotation(image_id=77),
        "annotation 20 of image 77: image_id 77 is not the id of any image",
    ),
    "no category": (
        lambda c: c["annotations"][0].pop("category_id"),
        "annotation 20 of image 2: category_id should be a whole number .* is missing",
    ),
    "unknown category": (first_annotation(category_id=5), r"category_id 5 is unknown; the categories are 1 \(person\)"),
    "no box": (
        lambda c: c["annotations"][0].pop("bbox"),
        "annotation 20 of image 2: bbox should be four finite numbers",
    ),
    "NaN in box": (
        first_annotation(bbox=[1, 2, float("nan"), 4]),
        "annotation 20 of image 2: bbox should be four finite",
    ),
    "infinite box": (
        first_annotation(bbox=[1, 2, float("inf"), 4]),
        "annotation 20 of image 2: bbox should be four finite",
    ),
    "giant number": (first_annotation(bbox=[1, 2, 10**400, 4]), "annotation 20 of image 2: bbox should be four finite"),
    "box of words": (
        first_annotation(bbox=["a", 2, 3, 4]),
        "annotation 20 of image 2: bbox should be four finite numbers",
    ),
    "box of three": (first_annotation(bbox=[1, 2, 3]), "annotation 20 of image 2: bbox should be four finite numbers"),
    "zero box": (first_annotation(bbox=[1, 2, 0, 4]), r"annotation 20 of image 2: bbox \[1, 2, 0, 4\] has no area"),
    "negative box": (first_annotation(bbox=[1, 2, 5, -4]), "annotation 20 of image 2: bbox .* has no area"),
    "box outside": (
        first_annotation(bbox=[35, 2, 6.5, 4]),
        "annotation 20 of image 2: bbox .* leaves its image, which is 40x30",
    ),
    "box left of it": (first_annotation(bbox=[-1.5, 2, 5, 4]), "annotation 20 of image 2: bbox .* leaves its image"),
    "box in the rim": (
        first_annotation(bbox=[40.2, 2, 0.5, 4]),
        "annotation 20 of image 2: bbox .* lies outside its image",
    ),
    "area a word": (first_annotation(area="big"), "annotation 20 of image 2: area should be a number of at least 0"),
    "negative area": (first_annotation(area=-1), "annotation 20 of image 2: area should be a number of at least 0"),
    "crowd 2": (first_annotation(iscrowd=2), "annotation 20 of image 2: iscrowd should be 0 or 1, found 2"),
    "category without name": (
        lambda c: c["categories"][0].pop("name"),
        "category 1: name should be a word, but is missing",
    ),
    "category twice": (lambda c: c["categories"].append({"id": 1, "name": "x"}), "category 1: the id is used"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_record_is_named(edit, change, message):
    root = edit(change)
    with pytest.raises(FaapError, match=message) as caught:
        load_dataset(root).split("train")
    assert str(root / "women_split" / "gender_women_train.json") in str(caught.value)


def test_groups_that_disagree_on_a_category_are_refused(edit):
    root = edit(lambda c: c["categories"][0].update(name="woman"))
    with pytest.raises(
        FaapError, match=r"gender_men_train\.json: category 1 is 'person', but 1 is 'woman' in the other"
    ):
        load_dataset(root).split("train")


def test_one_mistake_in_the_categories_is_one_problem(write_dataset, tmp_path):
    root, names = write_dataset(tmp_path / "swapped", splits=("train",)), ["person", "dog", "cat"]
    for word, order in (("women", names), ("men", names[::-1])):
        path = root / f"{word}_split" / f"gender_{word}_train.json"
        categories = [{"id": number, "name": name} for number, name in enumerate(order, 1)]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"categories": categories}))
    kinds = [problem.kind for problem in load_dataset(root).read("train").problems]
    assert kinds == ["unknown_category"]


@pytest.mark.parametrize("content", ["{", "[]", "", "[" * 100_000, "\xff\xfe", "nan"])
def test_what_is_no_json_object_is_refused(dataset_root, tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(FaapError, match=r"a\.json: (not valid JSON|should be a JSON object)"):
        read_coco(path, [dataset_root], group="female")


def test_what_is_missing_on_disk_is_named(write_dataset, tmp_path):
    with pytest.raises(
        FaapError, match=r"nowhere: no such folder or file; give 'promenade'; a folder with women_split/"
    ):
        load_dataset(tmp_path / "nowhere")
    root = write_dataset(tmp_path / "part", splits=("train", "test"))
    with pytest.raises(FaapError, match=r"has no split 'tst'; it has train, test. Did you mean 'test'\?"):
        load_dataset(root).split("tst")
    (root / "men_split" / "gender_men_test.json").unlink()
    with pytest.raises(FaapError, match=r"gender_men_test.json: cannot be read: No such file"):
        load_dataset(root).split("test")
    shutil.rmtree(root / "men_split")
    with pytest.raises(FaapError, match=r"men_split/gender_men_train\.json: cannot be read: No such file"):
        load_dataset(root).split("train")
    (root / "men_split").mkdir()
    for path in root.glob("*/*.json"):
        path.unlink()
    with pytest.raises(FaapError, match=r"there is no .*gender_women_\{split\}\.json and .*gender_men_") as caught:
        load_dataset(root)
    assert "--annotations" not in str(caught.value)  # which is for other layouts


def test_groups_of_another_layout_are_refused(dataset_root):
    with pytest.raises(
        FaapError, match=r"no object of group 'femal'.*female .5 images., male.*Did you mean 'female'\?"
    ):
        load_dataset(dataset_root, anchor="femal").split("train")
    with pytest.raises(FaapError, match="both 'male'"):
        load_dataset(dataset_root, anchor="male")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
BY_NAME = {"group_field": "none.such", "groups": ("person", "woman")}
FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "file_name", "width", "height", "scene", "name")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mangled_annotations_never_give_anything_but_a_faap_error(dataset_root, tmp_path, data):
    source = dataset_root / "women_split" / "gender_women_train.json"
    content = json.loads(source.read_text())
    content["categories"] += [{"id": 0, "name": "person"}, {"id": 2, "name": "woman"}]
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(["images", "annotations", "categories"]))
        if data.draw(st.integers(0, 9)) == 0 or not isinstance(content[key], list) or not content[key]:
            content[key] = data.draw(JSON)
            continue
        position = data.draw(st.integers(0, len(content[key]) - 1))
        if isinstance(content[key][position], dict) and data.draw(st.integers(0, 4)):
            content[key][position][data.draw(st.sampled_from(FIELDS))] = data.draw(JSON)
        else:
            content[key][position] = data.draw(JSON)
    text = json.dumps(content).encode()
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut] + data.draw(st.binary(max_size=4)) + text[cut + data.draw(st.integers(0, 4)) :]
    path = tmp_path / "mangled.json"
    path.write_bytes(text)
    # the same file as one of a group, and as one that says its groups itself
    for options in ({"group": "female"}, {"group_field": "scene"}, {"group_field": "iscrowd"}, BY_NAME):
        try:
            reading = read_coco(path, [source.parent / "train"], **options)
        except Problem as problem:
            reading = Reading(problems=[problem])
        assert all("mangled.json" in str(problem) and problem.kind for problem in reading.problems)
        check_records(reading)


def check_records(reading):
    for record in reading.records:
        assert record.groups
        assert len(record.boxes) == len(record.labels) == len(record.areas) == len(record.crowd)
        assert set(record.labels.tolist()) <= set(reading.categories)
        assert (record.boxes[:, 2:] > 0).all()
        assert (record.boxes[:, :2] >= 0).all()
        assert (record.boxes[:, :2] + record.boxes[:, 2:] <= np.array([record.width, record.height]) + 1e-9).all()


def test_a_group_without_any_annotation_is_refused(tiny_promenade, tmp_path) -> None:
    root = shutil.copytree(tiny_promenade, tmp_path / "data")
    path = root / "women_split" / "gender_women_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    with pytest.raises(FaapError, match=r"the split 'train' has no object of group 'female' to find; it has female"):
        load_dataset(root).split("train")
