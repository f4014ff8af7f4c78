"""COCO JSON whose images or annotations carry the group, or a table does."""

import json
from collections import Counter

import pytest
from PIL import Image

from faap.data import load_dataset
from faap.errors import FaapError

GROUPS = ("her", "him")


def content(count, first_id=1):
    """Images 40x30 with one person each, alternately of the two groups; nothing says so yet."""
    numbers = range(first_id, first_id + count)
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in numbers],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 5, 10, 20]} for n in numbers],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}],
    }


def write(folder, data, name="data.json", images="."):
    (folder / images).mkdir(parents=True, exist_ok=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(data))
    for entry in data["images"]:
        Image.new("RGB", (40, 30), (entry["id"] * 7 % 255, 90, 30)).save(folder / images / entry["file_name"])
    return folder


def with_field(data, where, field="gender", groups=GROUPS):
    for position, entry in enumerate(data[where]):
        entry[field] = groups[position % len(groups)]
    return data


def opened(root, **options):
    return load_dataset(root, anchor="her", reference="him", **options)


@pytest.mark.parametrize("where", ["images", "annotations"])
def test_images_or_annotations_may_carry_the_group(tmp_path, where):
    root = write(tmp_path, with_field(content(8), where, "sex"))
    split = opened(root / "data.json", group_field="sex").split("all")
    assert [record.group for record in split.records] == ["her", "him"] * 4
    assert all(record.owners is None for record in split.records)
    assert split.counts() == {"her": 4, "him": 4}
    assert split.records[3].boxes.tolist() == [[4, 5, 10, 20]]


@pytest.mark.parametrize("where", ["images", "annotations", "table"])
def test_groups_of_two_fields_are_those_of_people_who_are_in_both(tmp_path, where):
    tones = ("dark", "light", "light", "dark", "dark", "NaN")
    said = [{"sex": GROUPS[n % 2], "tone": tone} for n, tone in enumerate(tones)]
    data, options = content(6), {"group_field": "sex + tone"}
    if where == "table":
        lines = [f"{n},{each['sex']},{each['tone']}" for n, each in enumerate(said, 1)]
        options["group_csv"] = "groups.csv"
    else:
        for entry, each in zip(data[where], said, strict=True):
            entry |= {"attributes": each}
    root = write(tmp_path, data)
    if where == "table":
        (root / "groups.csv").write_text("\n".join(["image_id,sex,tone", *lines]))
    dataset = load_dataset(root, anchor="her dark", reference="him light", **options)
    found = dataset.read("all").records
    assert [record.group for record in found][:5] == ["her dark", "him light", "her light", "him dark", "her dark"]
    assert not any("NaN" in record.group for record in found)
    wrong = load_dataset(root, anchor="her dark", reference="him light", **options | {"group_field": "sex+tine"})
    with pytest.raises(FaapError, match="tine"):
        wrong.split("all")


def test_what_annotations_say_of_visibility_goes_with_their_boxes(tmp_path):
    data = with_field(content(4), "images")
    data["annotations"][0] |= {"occluded": True, "attributes": {"truncation": 0.25}}
    data["annotations"][1] |= {"occluded": 0, "visibility": "low"}
    data["annotations"] += [
        data["annotations"][0] | {"id": 9, "category_id": 2, "occluded": False, "bbox": [1, 1, 5, 5]}
    ]
    first, second, third, _ = opened(write(tmp_path, data)).split("all").records
    assert first.conditions["occluded"].tolist() == [1, 0]
    assert first.conditions["truncation"].tolist() == [0.25, 0.25]
    assert {name: values.tolist() for name, values in second.conditions.items()} == {"occluded": [0]}
    assert third.conditions == {}
    assert first.with_boxes(first.labels == 2).conditions["occluded"].tolist() == [0]


@pytest.mark.parametrize(("said", "names"), [((1, 0), ("1", "0")), ((True, False), ("true", "false"))])
def test_groups_may_be_numbers_or_truth_values(tmp_path, said, names):
    root = write(tmp_path, with_field(content(4), "images", groups=said))
    assert load_dataset(root, anchor=names[0], reference=names[1]).split("all").counts() == dict.fromkeys(names, 2)


def test_one_file_a_split_is_found(tmp_path):
    for place, images in (
        ("{}.json", "."),
        ("annotations/{}.json", "images/{}"),
        ("annotations/instances_{}2017.json", "{}2017"),
    ):
        root = tmp_path / images.strip("{}./").replace("/", "_")
        for number, name in enumerate(("train", "val")):
            write(root, with_field(content(4, 10 * number + 1), "images"), place.format(name), images.format(name))
        dataset = opened(root)
        assert dataset.splits == ("train", "val")
        assert [record.image_id for record in dataset.split("val").records] == [11, 12, 13, 14]


def test_places_can_be_told(tmp_path):
    for number, name in enumerate(("train", "test")):
        data = with_field(content(4, 10 * number + 1), "images")
        write(tmp_path, data, f"labels/{name}_gender.json", f"pictures/{name}-set")
    dataset = opened(tmp_path, annotations="labels/{split}_gender.json", images_dir="pictures/{split}-set")
    assert dataset.splits == ("train", "test")
    assert dataset.split("test").records[0].path == tmp_path / "pictures" / "test-set" / "11.jpg"
    with pytest.raises(FaapError, match=r"there is no .*labels/nothing\.json; --annotations names"):
        opened(tmp_path, annotations="labels/nothing.json")


def test_a_single_file_is_divided_by_names_and_always_alike(tmp_path):
    data = with_field(content(400), "images")
    dataset = opened(write(tmp_path, data))
    parts = {name: {record.image_id for record in dataset.split(name).records} for name in dataset.splits}
    assert dataset.splits == ("train", "val", "test", "all")
    assert parts["train"] | parts["val"] | parts["test"] == parts["all"]
    assert sum(len(parts[name]) for name in ("train", "val", "test")) == len(parts["all"]) == 400
    assert 30 <= len(parts["val"]) <= 90
    assert 30 <= len(parts["test"]) <= 90
    # other images do not change where an image goes
    half = data | {"images": data["images"][:200], "annotations": data["annotations"][:200]}
    again = opened(write(tmp_path / "half", half)).split("test")
    assert {record.image_id for record in again.records} == {key for key in parts["test"] if key <= 200}


def test_twins_go_to_the_same_part(tmp_path):
    data = with_field(content(60), "images")
    for position, entry in enumerate(data["images"]):
        entry["scene"] = position // 2
    dataset = opened(write(tmp_path, data))
    places = Counter(record.pair for name in ("train", "val", "test") for record in dataset.read(name).records)
    homes = Counter(pair for name in ("train", "val", "test") for pair in {r.pair for r in dataset.read(name).records})
    assert set(places.values()) == {2}
    assert set(homes.values()) == {1}


def test_a_single_file_may_say_its_splits(tmp_path):
    data = with_field(content(8), "images")
    for position, entry in enumerate(data["images"]):
        entry["split"] = ("train", "validation", "test", "train")[position // 2]
    dataset = opened(write(tmp_path, data))
    assert {name: [r.image_id for r in dataset.split(name).records] for name in ("train", "val", "test")} == {
        "train": [1, 2, 7, 8],
        "val": [3, 4],
        "test": [5, 6],
    }


@pytest.mark.parametrize("key", ["image_id", "file_name"])
def test_a_table_gives_images_their_group(tmp_path, key):
    root = write(tmp_path, content(6))
    rows = [
        f"{n if key == 'image_id' else f'{n}.jpg'} ,{GROUPS[n % 2]},{'test' if n > 2 else 'train'}" for n in range(1, 7)
    ]
    (root / "groups.csv").write_text("\ufeff" + "\n".join([f"{key}, sex,split", *rows]) + "\n", encoding="utf-8")
    dataset = opened(root, group_csv="groups.csv", group_field="sex")
    assert [record.group for record in dataset.split("all").records] == ["him", "her"] * 3
    assert [record.image_id for record in dataset.split("train").records] == [1, 2]


def table(root, text):
    (root / "groups.csv").write_text(text)
    return opened(root, group_csv="groups.csv")


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_spreadsheets_table_is_read(tmp_path, sign):
    rows = [f'"image_id"{sign}"gender"{sign}"note"{sign}', f'1{sign}"her"{sign}"a b"', f'"2"{sign}him{sign}', ""]
    assert table(write(tmp_path, content(2)), "\r\n".join(rows)).split("all").counts() == {"her": 1, "him": 1}


@pytest.mark.parametrize(
    "text",
    [
        "image_id,gender\n1,her\n2,him\n,\n,\n",
        "image_id,gender\n1,her,\n2,him,\n",
        'image_id, "gender"\n1, "her"\n2, "him"\n',
        "image_id;gender;height, cm\n1;her;1,7\n2;him;1,8\n",
        "image_id,gender\n1,her\n2,him\n1,Her\n",
        "image_id,gender\n1.0,her\n2.0,him\n",
    ],
    ids=[
        "rows of nothing",
        "a comma at the end",
        "blanks after commas",
        "a comma in a name",
        "groups in another case",
        "ids as pandas writes them beside gaps",
    ],
)
def test_what_changes_nothing_in_a_table_is_no_mistake(tmp_path, text):
    assert table(write(tmp_path, content(2)), text).split("all").counts() == {"her": 1, "him": 1}


def test_a_row_that_is_longer_than_its_header_is_not_read_from_the_left(tmp_path):
    """R's write.table has no name for the column of row numbers, which would be taken for what comes first."""
    root = write(tmp_path, content(2))
    rows = '"image_id","gender","width"\n"1",2,"her",40\n"2",1,"him",40\n'
    with pytest.raises(FaapError, match=r"groups\.csv: line 2: has 4 cells, and the first line 3; each column should"):
        table(root, rows).split("all")


def test_a_tables_split_may_be_capitalised(tmp_path):
    text = "image_id,gender,Split\n1,her,Train\n2,him,train\n3,her,TEST\n4,him,test\n"
    dataset = table(write(tmp_path, content(4)), text)
    assert [record.image_id for record in dataset.split("test").records] == [3, 4]


def test_a_table_may_write_paths_as_windows_or_find_do(tmp_path):
    data = content(4)
    root = write(tmp_path, data, images="a/b")
    for entry, name in zip(data["images"], ("a/b/1.jpg", "a\\b\\2.jpg", "a/b/3.jpg", "a/b/4.jpg"), strict=True):
        entry["file_name"] = name
    (root / "data.json").write_text(json.dumps(data))
    text = "path,gender\na\\b\\1.jpg,her\na/b/2.jpg,him\n./a/b/3.jpg,her\n.\\a\\b\\4.jpg,him\n"
    assert [record.group for record in table(root, text).split("all").records] == ["her", "him"] * 2


BROKEN_TABLES = {
    "of other images": (
        "id,gender\n1.5,her\n2.5,him\n",
        r"image 1: the table says no group for it \(field 'gender', 1.jpg; its first image is '1.5'\)",
    ),
    "no key": ("picture,gender\n1,her\n", "has no column that names images: one of image_id, .*it has picture, gender"),
    "no group": ("image_id,gendr\n1,her\n", "has no column 'gender'; --group_field.*Did you mean 'gendr'"),
    "a name twice": ("image_id,gender,gender\n1,her,him\n", "should name each column once"),
    "empty": ("", "has no column that names images"),
    "two groups": (
        "id,gender\n1,her\n2,him\n1,him\n",
        "line 4: image 1 is in group 'him' here and in 'her' in an earlier",
    ),
    "two splits": ("id,gender,split\n1,her,val\n1,her,test\n", "line 3: image 1 is in split 'test' here and in 'val'"),
    "nobody": ("id,gender\n,her\n", "line 2: column id is empty"),
    "missing row": (
        "id,gender\n1,her\n",
        r"image 2: the table says no group for it \(field 'gender', 2.jpg; its first image is '1'\)",
    ),
    "an id of no integer": (f"id,gender\n{'1' * 5000},her\n", "image 1: the table says no group for it"),
    "short row": ("id,gender\n1,her\n2\n", r"image 2: the table says no group"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN_TABLES.values(), ids=BROKEN_TABLES.keys())
def test_a_broken_table_is_named(tmp_path, text, message):
    root = write(tmp_path, content(2))
    with pytest.raises(FaapError, match=message):
        table(root, text).split("all")


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FaapError, match=r"none\.csv: cannot be read: No such file"):
        opened(write(tmp_path, content(2)), group_csv="none.csv").split("all")
    (tmp_path / "data.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FaapError, match=r"data\.csv: not valid CSV"):
        opened(tmp_path, group_csv="data.csv").split("all")


def test_people_may_have_groups_of_their_own(tmp_path):
    data = content(3)
    person = {"category_id": 1, "bbox": [20, 5, 10, 20]}
    data["annotations"] += [{"id": 11, "image_id": 1} | person, {"id": 12, "image_id": 2, "iscrowd": 1} | person]
    data["annotations"].append({"id": 13, "image_id": 2, "category_id": 2, "bbox": [1, 1, 5, 5]})
    for key, group in ((1, "her"), (2, "her"), (3, "him"), (11, "him")):
        next(entry for entry in data["annotations"] if entry["id"] == key)["gender"] = group
    data["images"].append({"id": 4, "file_name": "4.jpg", "width": 40, "height": 30})
    dataset = opened(write(tmp_path, data))
    split, reading = dataset.split("all"), dataset.read("all")
    both, her, him = split.records
    assert (both.group, both.owners, both.groups) == ("", ("her", "him"), ("her", "him"))
    assert (her.group, her.owners, her.crowd.tolist()) == ("her", ("her", ""), [False, True])
    assert (him.group, him.owners) == ("him", None)
    assert split.categories == {1: "person"}, "a category in which nobody has a group is left out"
    assert reading.left_out == 1, "and so is an image"
    assert any("categories that say no group are left out: dog (1)" in note for note in reading.notes)
    assert split.counts() == {"her": 2, "him": 2}
    assert [record.crowd.tolist() for record in split.group("her")] == [[False, True], [False, True]]
    assert [record.crowd.tolist() for record in split.group("him")] == [[True, False], [False]]
    assert both.crowd.tolist() == [False, False]


def test_a_person_without_group_is_named_and_counts_for_nobody(tmp_path):
    data = with_field(content(5), "annotations")
    del data["annotations"][4]["gender"]
    data["annotations"].append({"id": 9, "image_id": 1, "category_id": 1, "bbox": [20, 5, 10, 20]})
    root = write(tmp_path, data)
    with pytest.raises(
        FaapError,
        match=r"2 records.*\n.*annotation 5 of image 5: has no group \(field 'gender'\).*\n.*annotation 9 of image 1",
    ):
        opened(root).split("all")
    split = opened(root, skip_bad=True).split("all")
    assert [record.owners for record in split.records] == [("her", ""), None, None, None]


def test_an_image_says_the_group_of_people_that_do_not(tmp_path):
    data = with_field(content(4), "images")
    data["annotations"][0]["gender"] = "him"
    assert [record.group for record in opened(write(tmp_path, data)).split("all").records] == [
        "him",
        "him",
        "her",
        "him",
    ]


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path):
    root = write(tmp_path, with_field(content(2), "images", "sex"))
    with pytest.raises(FaapError, match=r"data\.json: no image and no annotation has a field 'gender'.*file_name.*sex"):
        opened(root).split("all")


def test_a_missing_group_is_named_with_those_that_are_there(tmp_path):
    root = write(tmp_path, with_field(content(4), "images"))
    with pytest.raises(FaapError, match=r"'all' has no object of group 'she' to find; it has her \(2 images\), him"):
        load_dataset(root, anchor="she", reference="him").split("all")


def test_broken_records_can_be_left_out(tmp_path):
    data = with_field(content(6), "images")
    data["images"][0]["file_name"] = "none.jpg"
    data["annotations"][1]["bbox"] = [1, 2, 0, 4]
    data["images"][2]["gender"] = None
    root = write(tmp_path, data)
    (root / "none.jpg").unlink()
    with pytest.raises(
        FaapError, match=r"3 records of the data set are broken. `faap check` lists them all; --skip-bad"
    ):
        opened(root).split("all")
    dataset = opened(root, skip_bad=True)
    split = dataset.split("all")
    assert [(record.image_id, len(record.boxes)) for record in split.records] == [(2, 0), (4, 1), (5, 1), (6, 1)]
    assert [problem.kind for problem in dataset.read("all").problems] == ["missing_image", "missing_group", "bad_box"]


def test_several_files_without_a_word_are_refused(tmp_path):
    root = write(tmp_path, content(2))
    (root / "other.json").write_text("{}")
    with pytest.raises(
        FaapError, match=r"no layout that faap knows; it has data\.json, other\.json; --annotations names"
    ):
        load_dataset(root)
    with pytest.raises(FaapError, match="is a file, and annotations names another"):
        load_dataset(root / "data.json", annotations="other.json")
    for path in root.glob("*.json"):
        path.unlink()
    with pytest.raises(FaapError, match="no layout that faap knows; give 'promenade'"):
        load_dataset(root)


def test_an_image_in_two_splits_or_groups_stays_in_the_first(tmp_path):
    data = with_field(content(6), "images")
    splits = ("train", "train", "val", "val", "test", "test")
    for entry, split in zip(data["images"], splits, strict=True):
        entry["split"] = split
    data["images"] += [
        data["images"][0] | {"id": 7, "split": "test"},
        data["images"][1] | {"id": 8, "gender": "her"},
        data["images"][2] | {"id": 9},
    ]
    data["annotations"] += [data["annotations"][0] | {"id": n, "image_id": n} for n in (7, 8, 9)]
    dataset = opened(write(tmp_path, data))
    assert [(problem.kind, problem.file.name) for problem in dataset.problems()] == [
        ("two_groups", "2.jpg"),
        ("duplicate_image", "3.jpg"),
        ("two_splits", "1.jpg"),
    ]
    assert dataset.problems() == dataset.problems()
    assert [record.image_id for record in dataset.read("all").records] == [*range(1, 7)]
    assert [len(dataset.read(name).problems) for name in dataset.splits] == [1, 1, 1, 3]
    dataset.skip_bad = True
    assert [record.image_id for name in ("train", "val", "test") for record in dataset.split(name).records] == [
        *range(1, 7)
    ]


def test_categories_can_be_left_out_with_their_boxes(tmp_path):
    data = with_field(content(2), "annotations")
    data["annotations"].append({"id": 9, "image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 5], "gender": "him"})
    split = opened(write(tmp_path, data)).split("all")
    assert split.with_categories([1, 2, 3]) is split
    person = split.with_categories([1])
    assert person.categories == {1: "person"}
    first = person.records[0]
    assert (first.boxes.tolist(), first.labels.tolist(), first.owners) == ([[4, 5, 10, 20]], [1], ("her",))
    assert len(first.areas) == len(first.crowd) == 1


def test_a_category_name_used_twice_is_refused(tmp_path):
    """A detector knows classes by name: one of the two would never be found."""
    data = with_field(content(4), "images")
    data["categories"].append({"id": 0, "name": "Person "})
    data["annotations"][0]["category_id"] = 0
    with pytest.raises(FaapError, match=r"category 0: name 'Person ' is used by an earlier category"):
        opened(write(tmp_path, data)).split("all")


def test_unknown_splits_are_named(tmp_path):
    data = with_field(content(8), "images")
    for position, entry in enumerate(data["images"]):
        entry["split"] = ("Train", "VALID", "holdout", "")[position // 2]
    root = write(tmp_path, data)
    with pytest.raises(FaapError, match=r"(?s)4 records.*image 5: split should be train, val or test, found 'holdout'"):
        opened(root).split("train")
    dataset = opened(root, skip_bad=True)
    assert [[r.image_id for r in dataset.split(name).records] for name in ("train", "val")] == [[1, 2], [3, 4]]


def test_the_folder_is_the_one_that_has_the_images(tmp_path):
    root = write(tmp_path, with_field(content(4), "images"), images="images")
    (root / "images" / "1.jpg").unlink()
    reading = opened(root).read("all")
    assert [problem.kind for problem in reading.problems] == ["missing_image"]
    assert [record.image_id for record in reading.records] == [2, 3, 4]


@pytest.mark.parametrize("place", ["annotations/instances_val2017.json", ""])
def test_cocos_own_places_are_found(tmp_path, place):
    data = with_field(content(4), "images")
    root = write(tmp_path, data, "annotations/instances_val2017.json", "val2017")
    split = opened(root / place).split("all" if place else "val")
    assert split.records[0].path == root / "val2017" / "1.jpg"


def test_people_say_their_groups_where_images_are_empty(tmp_path):
    data = with_field(content(4), "annotations")
    data["images"][0]["gender"] = None
    assert opened(write(tmp_path, data)).split("all").counts() == {"her": 2, "him": 2}


@pytest.mark.parametrize("empty", ["", None, "n/a"])
@pytest.mark.parametrize("says", ["images", "table", "categories"])
def test_a_field_that_nobody_has_filled_in_leaves_it_to_others_to_say_the_group(tmp_path, empty, says):
    """As CVAT writes an attribute of its project into every annotation."""
    data, options = content(4), {}
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        image["gender"] = GROUPS[image["id"] % 2] if says == "images" else empty
        annotation["attributes"] = {"gender": empty}
        annotation["category_id"] = 1 + image["id"] % 2 if says == "categories" else 1
    if says == "categories":
        data["categories"] = [{"id": 1, "name": "her"}, {"id": 2, "name": "him"}]
    root = write(tmp_path, data)
    if says == "table":
        options["group_csv"] = "groups.csv"
        (root / "groups.csv").write_text("id,gender\n1,him\n2,her\n3,him\n4,her\n")
    split = opened(root, **options).split("all")
    assert [record.group for record in split.records] == ["him", "her", "him", "her"]
    assert split.objects("her") == {"person": 2}
    if says == "images":
        for image in data["images"]:
            image["gender"] = empty
        with pytest.raises(FaapError, match="no image and no annotation has a field 'gender' that says its group"):
            opened(write(tmp_path, data)).split("all")


def test_a_file_without_images_is_said_to_have_none(tmp_path):
    with pytest.raises(FaapError, match=r"data\.json: holds no image"):
        opened(write(tmp_path, content(0))).split("all")


def test_a_file_name_goes_before_a_row_number(tmp_path):
    root = write(tmp_path, content(2))
    assert [r.group for r in table(root, "id,file_name,gender\n1,2.jpg,her\n2,1.jpg,him\n").split("all").records] == [
        "him",
        "her",
    ]
