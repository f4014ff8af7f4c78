"""What other tools write: it is read as it is meant, or refused with a word; never read as something else."""

import errno
import json
import os
import shutil
import struct
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from faap.data import Problem, load_dataset, read_image
from faap.data.fields import folded
from faap.data.orientation import open_image
from faap.data.problems import lfs_pointer, opening
from faap.data.problems import place as located
from faap.errors import FaapError

SIZE = (300, 240)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def content(count=4, **image):
    """Women and men in turn, one in each image."""
    images, annotations = [], []
    for n in range(1, count + 1):
        group = {"gender": ("male", "female")[n % 2]}
        images.append({"id": n, "file_name": f"{n}.jpg", "width": SIZE[0], "height": SIZE[1]} | group | image)
        box = [20 + n, 30, 110, 150]
        annotations.append({"id": n, "image_id": n, "category_id": 1, "bbox": box, "area": box[2] * box[3]})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def write(root, data, place="data.json", folder=".", names=None):
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(json.dumps(data))
    for n, name in enumerate(names or [entry["file_name"] for entry in data["images"]], start=1):
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.new("RGB", SIZE, (n, 90, 30)).save(path)
    return root


def groups(root, split="all", **options):
    return load_dataset(root, **options).split(split).counts()


def test_a_split_is_checked_or_not_there(tmp_path):
    """An image in two splits is found whichever split is asked for, by whatever path, and without decoding any."""
    data = content(8)
    for entry in data["images"]:
        entry["split"] = ("train", "train", "test", "test")[(entry["id"] - 1) // 2]
    write(tmp_path, data)
    assert load_dataset(tmp_path).split("test").counts() == {"female": 2, "male": 2}
    (tmp_path / "8.jpg").unlink()
    (tmp_path / "8.jpg").symlink_to(tmp_path / "1.jpg")
    with patch("PIL.ImageFile.ImageFile.load", side_effect=AssertionError("decoded")):
        for name in ("test", "train", "all"):
            with pytest.raises(Problem, match=r"8\.jpg: is in the splits train and test, as image 1 and image 8"):
                load_dataset(tmp_path).split(name)
        with pytest.raises(Problem, match="in the splits"):
            load_dataset(tmp_path).usable("train")
    dataset = load_dataset(tmp_path, skip_bad=True)
    assert dataset.usable("train", "test") == ["1 broken records are left out; `faap check` lists them."]
    assert [record.image_id for record in dataset.split("test").records] == [5, 6, 7]


def test_a_split_that_is_not_there_is_the_first_thing_to_know(tmp_path):
    data = content(4)
    data["annotations"][0]["bbox"] = "none"
    write(tmp_path, data, "train.json")
    with pytest.raises(FaapError, match=r"no split 'val'; it has train\."):
        load_dataset(tmp_path).usable("train", "val")


def annotated(**changes):
    return lambda data: [entry.update(changes) for entry in data["annotations"]]


def corners(data):
    for entry in data["annotations"]:
        left, top, width, height = entry["bbox"]
        entry["bbox"] = [left, top, left + width, top + height]


def masked_corners(data):
    corners(data)
    for entry in data["annotations"]:
        entry |= {"area": entry["area"] * 1.01, "segmentation": [[1, 1, 2, 2, 3, 1]]}


def fractions(data):
    for entry in data["annotations"]:
        entry["bbox"] = (np.array(entry["bbox"]) / [*SIZE, *SIZE]).tolist()


MISREAD = {
    "fractions": (fractions, r"annotation 1 of image 1: bbox \[0\.07, .* lies in \[0, 1\], as fractions"),
    "fractions of centres": (annotated(bbox=[0.5, 1, 0.2, 0.9]), r"lies in \[0, 1\]"),
    "corners": (
        corners,
        r"annotation 1 of image 1: bbox \[21, 30, 131, 180\] is \[left, top, right, bottom\], by its area 16500",
    ),
    "corners of masks": (
        masked_corners,
        r"data\.json: of 4 annotations with an area, 4 contradict it: bbox .* \[left, top",
    ),
    "corners that leave": (annotated(bbox=[200, 100, 290, 200], area=None), r"it would fit as \[left, top, right"),
    "centres that leave": (annotated(bbox=[250, 120, 80, 200], area=None), r"it would fit as \[centre x, centre y"),
    "pixels of a larger image": (annotated(area=4 * 110 * 150), "is smaller than its area 66000"),
    "percentages": (annotated(bbox=[7, 12.5, 36.7, 62.5]), "is smaller than its area 16500"),
    "a dict": (annotated(bbox={"x": 1, "y": 2, "width": 3, "height": 4}), "bbox should be four finite numbers"),
    "texts": (annotated(bbox=["1", "2", "3", "4"]), "bbox should be four finite numbers"),
    "id a text": (annotated(category_id="1"), "category_id should be a whole number of at most 64 bits, found '1'"),
    "crowd a text": (annotated(iscrowd="0"), "iscrowd should be 0 or 1, found '0'"),
    "area a text": (annotated(area="100"), "area should be a number of at least 0, found '100'"),
    "area NaN": (annotated(area=float("nan")), "area should be a number of at least 0, found nan"),
}


@pytest.mark.parametrize(("change", "message"), MISREAD.values(), ids=MISREAD.keys())
def test_what_would_be_misread_is_refused(tmp_path, change, message):
    data = content()
    change(data)
    with pytest.raises(FaapError, match=message):
        load_dataset(write(tmp_path, data)).split("all")


@pytest.mark.parametrize("area", [None, 0, 16000.5, 16501])
def test_areas_of_masks_and_missing_ones_are_none_of_that(tmp_path, area):
    data = content()
    annotated(area=area, iscrowd=None)(data)
    (record, *_) = load_dataset(write(tmp_path, data)).split("all").records
    assert (record.areas.tolist(), record.crowd.tolist()) == ([area or 16500], [False])


@pytest.mark.parametrize("word", ["NaN", "none", " NULL ", "NA", "n/A", "<NA>", "", None, float("nan")])
def test_words_for_a_missing_group_are_no_group(tmp_path, word):
    data = content(6)
    data["images"][0]["gender"] = word
    with pytest.raises(FaapError, match="image 1: the image says no group for it"):
        groups(write(tmp_path, data))
    assert groups(tmp_path, skip_bad=True) == {"female": 2, "male": 3}
    rows = [f"{n},{('male', 'female')[n % 2] if n > 1 else word}" for n in range(1, 7)]
    (tmp_path / "t.csv").write_text("\n".join(["image_id,gender", *rows]))
    with pytest.raises(FaapError, match="image 1: the table says no group for it"):
        groups(tmp_path, group_csv="t.csv")


def test_groups_that_differ_in_case_alone_are_one(tmp_path):
    data = content(4)
    for entry, group in zip(data["images"], ("Female", "MALE ", "female", "male"), strict=True):
        entry["gender"] = group
    assert groups(write(tmp_path, data)) == {"female": 2, "male": 2}


def test_a_group_that_pandas_made_a_float_is_a_whole_number(tmp_path):
    data = content(4)
    for entry in data["images"]:
        entry["gender"] = float(entry["id"] % 2)
    assert groups(write(tmp_path, data), anchor="1", reference="0") == {"1": 2, "0": 2}


@pytest.mark.parametrize("where", ["images", "annotations"])
@pytest.mark.parametrize("field", ["", "attributes.gender", "gender"])
def test_a_group_may_be_one_level_down(tmp_path, where, field):
    data = content(4)
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        group = image.pop("gender")
        (image if where == "images" else annotation)["attributes"] = {"occluded": False, "gender": group}
    assert groups(write(tmp_path, data), group_field=field) == {"female": 2, "male": 2}
    with pytest.raises(FaapError, match=r"no image and no annotation has.*attributes\.gender, attr"):
        groups(tmp_path, group_field="attributes.sex")


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("man", "woman"), {}),
        (("Male", "Female"), {}),
        (("him", "her"), {"anchor": "her", "reference": "him"}),
        (("man", "woman"), {"anchor": "woman", "reference": "man"}),
    ],
)
def test_a_group_may_be_the_category(tmp_path, names, options):
    data = content(6)
    data["categories"] = [{"id": n, "name": name} for n, name in enumerate((*names, "Person", "dog"))]
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        del image["gender"]
        annotation["category_id"] = image["id"] % 2
    data["annotations"] += [
        {"id": 7, "image_id": 1, "category_id": 2, "bbox": [5, 5, 50, 60]},
        {"id": 8, "image_id": 1, "category_id": 3, "bbox": [5, 5, 50, 60]},
    ]
    dataset = load_dataset(write(tmp_path, data), **options)
    split = dataset.split("all")
    assert split.categories == {0: "person"}
    assert split.counts() == {dataset.anchor: 3, dataset.reference: 3}
    # a person of no group is a region to ignore
    assert split.records[0].owners == (dataset.anchor, "")
    assert "categories say the group" in dataset.usable("all")[0]


def test_an_unused_root_of_the_same_name_is_left_out(tmp_path):
    for place, ids in enumerate(((1, 0), (0, 1))):
        data = content(4)
        data["categories"] = [{"id": n, "name": name} for n, name in zip(ids, ("person", "Person"), strict=True)]
        dataset = load_dataset(write(tmp_path / str(place), data))
        assert list(dataset.split("all").categories) == [1]
        assert "category 0 is unused" in dataset.usable("all")[0]


def test_ids_of_64_bits_are_kept(tmp_path):
    data = content(4)
    first = 7706992903151817196
    for entry, key in zip([*data["images"], *data["annotations"]], [*range(first, first + 4)] * 2, strict=True):
        entry |= {"id": key} | ({"image_id": key} if "bbox" in entry else {})
    split = load_dataset(write(tmp_path, data)).split("all")
    assert [record.image_id for record in split.records] == [*range(first, first + 4)]
    assert [len(record.boxes) for record in split.records] == [1] * 4
    data["images"][0]["id"] = 2**63
    with pytest.raises(FaapError, match="id should be a whole number of at most 64 bits, found 9223372036854775808"):
        load_dataset(write(tmp_path, data)).split("all")


def test_annotation_ids_may_restart_in_each_image(tmp_path):
    data = content(4)
    annotated(id=1)(data)
    assert groups(write(tmp_path, data)) == {"female": 2, "male": 2}
    data["annotations"][2]["bbox"] = [1, 2, 0, 4]
    with pytest.raises(FaapError, match="annotation 1 of image 3: bbox"):
        groups(write(tmp_path, data))
    data = content(4)
    data["annotations"][2] |= {"id": 2, "image_id": 2}
    with pytest.raises(FaapError, match="annotation 2 of image 2: the id is used by an earlier one"):
        groups(write(tmp_path, data))


SPELLINGS = {
    "backslashes": ("a\\b\\1.jpg", "a/b/1.jpg"),
    "percent signs": ("my%20first%2Fpicture.jpg", "my first/picture.jpg"),
    "percent signs on disk": ("a b.jpg", "a%20b.jpg"),
    "case": ("A/One.JPG", "a/one.jpg"),
    "Unicode": ("Zo\u00eb.jpg", "Zoe\u0308.jpg"),
    "Unicode the other way": ("Zoe\u0308.jpg", "Zo\u00eb.jpg"),
    "all": ("A\\ZO%C3%8B%20b.jpg", "a/zoe\u0308 b.jpg"),
}


@pytest.mark.parametrize(("said", "there"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_file_name_may_be_spelt_otherwise_and_it_is_said(tmp_path, said, there):
    data = content(4)
    data["images"][0]["file_name"] = said
    names = [there, "2.jpg", "3.jpg", "4.jpg"]
    dataset = load_dataset(write(tmp_path, data, names=names))
    assert dataset.split("all").records[0].path == tmp_path / there
    (note,) = dataset.usable("all")
    assert f"1 images, such as {said!r}" in note
    assert "in another spelling" in note
    assert str(tmp_path / there) in note


OUTSIDE = (
    "..\\x.jpg",
    "%2e%2e/x.jpg",
    "..%2Fx.jpg",
    "a\\..\\..\\x.jpg",
    "%2Ftmp%2Fx.jpg",
    "..%5Cx.jpg",
    "%2E%2E%5Cx.jpg",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_spelling_leaves_the_root(tmp_path, name):
    data = content(4)
    root = write(tmp_path / "root", data)
    shutil.copy(root / "1.jpg", tmp_path / "x.jpg")
    data["images"][0]["file_name"] = name
    with pytest.raises(Problem, match=r"does not exist in|leaves the folder"):
        load_dataset(write(root, data, names=["2.jpg"])).split("all")


def test_of_two_names_that_differ_in_case_none_is_guessed(tmp_path):
    data = content(4)
    data["images"][0]["file_name"] = "ONE.jpg"
    write(tmp_path, data, names=["One.jpg", "one.jpg", "2.jpg", "3.jpg", "4.jpg"])
    with pytest.raises(Problem, match=r"file_name 'ONE\.jpg' does not exist"):
        load_dataset(tmp_path).split("all")


def test_every_place_that_was_searched_is_named(tmp_path):
    data = content(4)
    write(tmp_path, data, "annotations/train.json", "elsewhere")
    with pytest.raises(FaapError) as caught:
        load_dataset(tmp_path).split("train")
    for place in ("train", "images/train", "images", "data", "annotations"):
        assert str(tmp_path / place) in str(caught.value)
    assert "--images_dir" in str(caught.value)
    assert groups(tmp_path, "train", images_dir="elsewhere") == {"female": 2, "male": 2}


@pytest.mark.parametrize("folders", [("data",) * 4, ("train", "valid", "test", "train"), (".", "images", "data", ".")])
def test_images_may_lie_in_data_or_several_folders(tmp_path, folders):
    for n, folder in enumerate(folders, start=1):
        write(tmp_path, content(4), folder=folder, names=[f"{n}.jpg"])
    assert groups(tmp_path) == {"female": 2, "male": 2}


@pytest.mark.parametrize("pattern", ["{}.json", "annotations/instances_{}.json", "{}/_annotations.coco.json"])
@pytest.mark.parametrize("name", ["valid", "validation"])
def test_val_may_be_called_otherwise(tmp_path, pattern, name):
    for split in ("train", name):
        data = content(4)
        for entry in data["images"]:
            entry["file_name"] = f"{split}{entry['id']}.jpg"
        write(tmp_path, data, pattern.format(split), split)
    dataset = load_dataset(tmp_path)
    assert dataset.splits == ("train", "val")
    assert dataset.split(name) is dataset.split("val")
    assert dataset.split("val").name == "val"


def test_val_may_be_called_valid_in_split_folders_and_patterns(write_dataset, tmp_path):
    root = write_dataset(tmp_path / "folders")
    for word in ("women", "men"):
        home = root / f"{word}_split"
        (home / "val").rename(home / "valid")
        (home / f"gender_{word}_val.json").rename(home / f"gender_{word}_valid.json")
    assert load_dataset(root).split("val").counts() == {"female": 5, "male": 4}
    write(tmp_path / "told", content(4), "x-valid.json", "pictures-valid")
    told = {"annotations": "x-{split}.json", "images_dir": "pictures-{split}"}
    assert groups(tmp_path / "told", "val", **told) == {"female": 2, "male": 2}


@pytest.mark.parametrize(
    ("asked", "there", "proposed"),
    [("male", "female", False), ("1", "10", False), ("femal", "female", True), ("man", "woman", False)],
)
def test_no_other_group_is_proposed(tmp_path, asked, there, proposed):
    data = content(4)
    for entry in data["images"]:
        entry["gender"] = there
    write(tmp_path, data)
    for options in ({"anchor": there, "reference": asked}, {"anchor": asked, "reference": "other"}):
        with pytest.raises(FaapError, match=f"no object of group '{asked}'") as caught:
            load_dataset(tmp_path, **options).split("all")
        assert ("Did you mean" in str(caught.value)) == (proposed and options["anchor"] == asked)


def test_a_drawn_split_without_a_group_says_so(tmp_path):
    write(tmp_path, content(4))
    with pytest.raises(FaapError, match=r"drawn by a hash of its images' names: .*--split all"):
        load_dataset(tmp_path).split("test")
    data = content(4, split="train")
    with pytest.raises(FaapError, match="'test' has no object of group") as caught:
        load_dataset(write(tmp_path, data)).split("test")
    assert "hash" not in str(caught.value)


def test_git_lfs_pointers_are_named(tmp_path):
    root = write(tmp_path, content(4))
    (root / "1.jpg").write_text(LFS)
    assert lfs_pointer(root / "1.jpg")
    assert not lfs_pointer(root / "2.jpg")
    assert not lfs_pointer(root)
    with pytest.raises(Problem, match=r"1\.jpg is a pointer of Git LFS.*run: git lfs pull"):
        load_dataset(root).split("all")
    with pytest.raises(FaapError, match="run: git lfs pull"):
        read_image(root / "1.jpg")
    (root / "t.csv").write_text(LFS)
    with pytest.raises(Problem, match=r"t\.csv: is a pointer of Git LFS"):
        load_dataset(root, group_csv="t.csv").split("all")
    (root / "annotations.csv").write_text(LFS)
    with pytest.raises(Problem, match=r"annotations\.csv: is a pointer of Git LFS"):
        load_dataset(root / "annotations.csv").split("test")
    (root / "annotations.csv").unlink()
    (root / "data.json").write_text(LFS)
    with pytest.raises(Problem, match=r"data\.json: is a pointer of Git LFS"):
        load_dataset(root).split("all")


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_what_the_machine_lacks_is_no_fault_of_the_files(tmp_path, error, skip_bad):
    """With skip_bad, good images would be left out in silence."""
    root = write(tmp_path, content(4))
    with (
        patch("PIL.Image.open", side_effect=error),
        pytest.raises(
            FaapError, match=r"jpg: cannot be read now: .*(many open files|out of memory)\. .*ulimit -n"
        ) as caught,
    ):
        load_dataset(root, skip_bad=skip_bad).split("all")
    assert not isinstance(caught.value, Problem)


def test_what_is_said_already_is_not_said_to_be_unreadable(tmp_path):
    said = located(tmp_path / "a.json")("missing_group", "has no group")
    with pytest.raises(Problem) as caught, opening(tmp_path / "b.jpg", located(tmp_path / "b.jpg"), "image"):
        raise said
    assert caught.value is said


def test_what_is_no_file_is_not_waited_for(tmp_path):
    root = write(tmp_path, content(4))
    os.mkfifo(root / "pipe")
    with pytest.raises(FaapError, match="pipe: cannot be read: it is no file"):
        load_dataset(root, group_csv="pipe").split("all")
    (root / "images").mkdir()
    with pytest.raises(FaapError, match="images: cannot be read: it is no file"):
        load_dataset(root, group_csv="images").split("all")


def test_exif_that_cannot_be_rewritten_turns_the_image_all_the_same(tmp_path):
    """Its orientation is read; the entry after it has a type that no writer takes back."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:5] = 255
    entries = struct.pack("<HHHIHH", 2, 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x9286, 7, 4, 0x41424344)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + entries + bytes(4), quality=95)
    with patch("PIL.Image.Exif.tobytes", side_effect=struct.error("cannot be rewritten")):
        image = read_image(tmp_path / "a.jpg")
    assert image.size == (20, 30)
    assert np.asarray(image)[:, 16:].min() > 200, "the first row is on the right"


def test_a_link_that_leaves_the_folder_is_not_followed(tmp_path, monkeypatch):
    secret, root = tmp_path / "elsewhere", tmp_path / "data"
    secret.mkdir()
    for number in (1, 2):
        Image.new("RGB", (40, 30)).save(secret / f"{number}.png")
    groups = {1: "female", 2: "male"}
    images = [
        {"id": n, "file_name": f"images/{n}.png", "width": 40, "height": 30, "gender": group}
        for n, group in groups.items()
    ]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0, "area": 25} for n in groups]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
    (root / "images").mkdir(parents=True)
    (root / "data.json").write_text(json.dumps(content))
    (root / "images" / "1.png").symlink_to(secret / "1.png")
    (root / "images" / "2.png").write_bytes((secret / "2.png").read_bytes())

    def look(folder=root, **options):
        return len(load_dataset(folder, annotations="data.json", **options).split("all").records)

    with pytest.raises(FaapError, match=rf"images/1\.png is a link to {secret}/1\.png, out of the .* --images_dir"):
        look()
    monkeypatch.setenv("FAAP_FOLLOW_LINKS", "1")
    assert look() == 2
    monkeypatch.delenv("FAAP_FOLLOW_LINKS")
    shutil.rmtree(root / "images")
    (root / "images").symlink_to(secret)
    with pytest.raises(FaapError, match=r"2 records .* are broken"):
        look()
    # what the person names is followed, and within the folder a link is nothing but another name
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "images").symlink_to(secret)
    with pytest.raises(FaapError, match="is a link"):
        look(images_dir=str(tmp_path / "named"))
    (root / "images").unlink()
    shutil.copytree(secret, root / "real")
    (root / "images").symlink_to(root / "real")
    (tmp_path / "other").symlink_to(root)
    assert look() == look(tmp_path / "other") == 2
    (tmp_path / "farm").symlink_to(tmp_path)
    shutil.copytree(secret, tmp_path / "real" / "images")
    (tmp_path / "whole").symlink_to(tmp_path / "real")
    assert look(images_dir=str(tmp_path / "whole")) == 2


def divided(count=12):
    """One file for all, whose splits lie in folders of their own and use the same names."""
    data = content(count)
    for entry in data["images"]:
        place = (entry["id"] - 1) // 4
        entry |= {"split": ("train", "val", "test")[place], "file_name": f"{(entry['id'] - 1) % 4}.jpg"}
    return data


@pytest.mark.parametrize("listed", [12, 8])
@pytest.mark.parametrize("options", [{}, {"images_dir": "{split}"}])
def test_names_that_splits_reuse_are_files_of_the_images_own_split(tmp_path, listed, options):
    data = divided()
    for number, part in enumerate(("train", "Val", "test")):
        write(tmp_path, content(4), folder=part, names=[f"{n}.jpg" for n in range(4)])
        for n in range(4):
            Image.new("RGB", SIZE, (number, n, 0)).save(tmp_path / part / f"{n}.jpg", quality=100)
    data["images"] = data["images"][-listed:]
    data["annotations"] = data["annotations"][-listed:]
    (tmp_path / "data.json").write_text(json.dumps(data))
    dataset = load_dataset(tmp_path, **options)
    for split in ("val", "test"):
        assert {record.path.parent.name.lower() for record in dataset.split(split).records} == {split}
    for entry in data["images"]:
        del entry["split"]
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(FaapError, match=r"0\.jpg' may be .*train/0.jpg and .*Val/0.jpg and .*; its field split"):
        load_dataset(tmp_path, **options).split("all")


@pytest.mark.parametrize(("said", "there"), [("{}.JPG", "{}.jpg"), ("a\\{}.jpg", "a/{}.jpg"), ("%61{}.jpg", "a{}.jpg")])
@pytest.mark.parametrize("options", [{}, {"images_dir": "{split}"}])
def test_names_that_splits_reuse_are_not_guessed_in_another_spelling_either(tmp_path, said, there, options):
    data = content(4)
    for entry in data["images"]:
        entry["file_name"] = said.format(entry["id"])
    for part in ("train", "val"):
        write(tmp_path, data, folder=part, names=[there.format(n) for n in range(1, 5)])
    with pytest.raises(FaapError, match=r"may be .*train/.*1\.jpg and .*val/.*1\.jpg; its field split"):
        groups(tmp_path, **options)
    write(tmp_path, data, folder="train")  # the very names, in the folder of another split
    for entry in data["images"]:
        entry["split"] = "val"
    write(tmp_path, data, folder="val", names=[there.format(n) for n in range(1, 5)])
    found = load_dataset(tmp_path, **options).split("val").records
    assert [record.path for record in found] == [tmp_path / "val" / there.format(n) for n in range(1, 5)]


def test_a_splits_own_file_takes_its_images_from_the_splits_folder(tmp_path):
    """Though the file stands alone, and other splits use the same names."""
    for part in ("train", "val"):
        write(tmp_path, content(4), "train.json", folder=part)
    found = load_dataset(tmp_path / "train.json").split("all").records
    assert {record.path.parent for record in found} == {tmp_path / "train"}


def test_split_folders_take_images_from_where_they_are_said_to_be(write_dataset, tmp_path):
    root = write_dataset(tmp_path / "data", splits=("train",))
    for word in ("women", "men"):
        path = root / f"{word}_split" / f"gender_{word}_train.json"
        told = json.loads(path.read_text())
        for entry in told["images"]:
            entry["file_name"] = f"{word}_split/train/{entry['file_name']}"
        path.write_text(json.dumps(told))
    shutil.copytree(root, root / "blurred")
    found = load_dataset(root, images_dir="blurred").split("train")
    assert found.counts() == {"female": 5, "male": 4}
    assert all(record.path.is_relative_to(root / "blurred") for record in found.records)


@pytest.mark.parametrize("root", [".", "people.json", "../annotations/people.json"])
def test_a_data_set_is_the_same_from_within_its_annotations(tmp_path, monkeypatch, root):
    write(tmp_path, content(4), "annotations/people.json", "images")
    monkeypatch.chdir(tmp_path / "annotations")
    assert groups(root) == {"female": 2, "male": 2}


def test_split_folders_say_that_they_heed_no_field(dataset_root):
    assert load_dataset(dataset_root, group_field="gender").usable("train") == []
    said = "The folders say the group, and not the field 'skin_tone'."
    assert load_dataset(dataset_root, group_field="skin_tone").usable("train") == [said]


def test_many_categories_take_no_time_that_grows_as_their_square(write_dataset, tmp_path):
    """Of 1,203, as LVIS has, each file took seconds; what is counted is how often a name is folded."""
    root = write_dataset(tmp_path / "data", splits=("train",))
    for path in root.glob("*/*.json"):
        categories = [{"id": n, "name": f"thing {n}"} for n in range(1, 101)]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"categories": categories}))
    with (
        patch("faap.data.reading.folded", side_effect=folded) as reading,
        patch("faap.data.layouts.folded", side_effect=folded) as layouts,
    ):
        assert len(load_dataset(root).split("train").categories) == 100
    assert reading.call_count + layouts.call_count <= 1000


def renumbered():
    """Exporters count anew: image 6 is 1.jpg; boys are in the even files."""
    data = content(6)
    for entry in data["images"]:
        del entry["gender"]
        entry["file_name"] = f"{7 - entry['id']}.jpg"
    return data


@pytest.mark.parametrize(
    "header", ["file_name,gender", "id,image_name,gender", "id,name,gender", "FileName,gender", "path,gender"]
)
def test_a_table_of_names_is_not_read_by_ids(tmp_path, header):
    write(tmp_path, renumbered())
    for ending in (".jpg", ""):
        rows = [f"{'9,' * header.startswith('id')}{n}{ending},{('female', 'male')[n % 2]}" for n in range(1, 7)]
        (tmp_path / "t.csv").write_text("\n".join([header, *rows]))
        if ending:
            dataset = load_dataset(tmp_path, group_csv="t.csv")
            split = dataset.split("all")
            assert all(record.group == ("female", "male")[int(record.path.stem) % 2] for record in split.records)
            assert any("the table names images by their names" in note for note in dataset.usable("all"))
        elif "name" not in header.split(","):
            with pytest.raises(FaapError, match="the table says no group for it"):
                groups(tmp_path, group_csv="t.csv")


def test_a_table_of_ids_is_read_by_ids_and_says_so(tmp_path):
    write(tmp_path, renumbered())
    rows = [f"000{n},{('female', 'male')[n % 2]}" for n in range(1, 7)]
    (tmp_path / "t.csv").write_text("\n".join(["Image_ID,Gender", *rows]))
    dataset = load_dataset(tmp_path, group_csv="t.csv", group_field="Gender")
    split = dataset.split("all")
    assert all(record.group == ("female", "male")[record.image_id % 2] for record in split.records)
    assert any("the table names images by their ids" in note for note in dataset.usable("all"))


def test_a_persons_name_names_no_image(tmp_path):
    write(tmp_path, renumbered())
    rows = [f"{n},Kim,{('female', 'male')[n % 2]}" for n in range(1, 7)]
    (tmp_path / "t.csv").write_text("\n".join(["id,name,gender", *rows]))
    assert groups(tmp_path, group_csv="t.csv") == {"female": 3, "male": 3}


def test_an_image_of_two_groups_in_a_table_is_in_none(tmp_path):
    data = content(6)
    for entry in data["images"]:
        del entry["gender"]
    write(tmp_path, data)
    rows = [f"{n},{('male', 'female')[n % 2]}" for n in range(1, 7)]
    (tmp_path / "t.csv").write_text("\n".join(["image_id,gender", *rows, "1,male", "1,female"]))
    with pytest.raises(FaapError, match="image 1 is in group 'male' here and in 'female' in an earlier line"):
        groups(tmp_path, group_csv="t.csv")
    found = load_dataset(tmp_path, group_csv="t.csv", skip_bad=True).split("all")
    assert [record.image_id for record in found.records] == [2, 3, 4, 5, 6]


def test_a_row_that_may_be_of_two_images_is_of_none(tmp_path):
    data = content(4)
    for entry, name in zip(data["images"], ("a/0.jpg", "b/0.jpg", "a\\1.jpg", "b/2.jpg"), strict=True):
        entry["file_name"] = name
        del entry["gender"]
    write(tmp_path, data, names=["a/0.jpg", "b/0.jpg", "a/1.jpg", "b/2.jpg"])
    (tmp_path / "t.csv").write_text("file_name,gender\n0.jpg,male\n1.jpg,female\n2.jpg,male\n")
    with pytest.raises(FaapError, match=r"image 2: the table's '0\.jpg' may be it or a/0\.jpg"):
        groups(tmp_path, group_csv="t.csv")


def test_what_annotations_say_themselves_is_said_to_come_before_a_table(tmp_path):
    data = content(4)
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        annotation["gender"] = image.pop("gender")
    write(tmp_path, data)
    (tmp_path / "t.csv").write_text("image_id,gender\n" + "\n".join(f"{n},male" for n in range(1, 5)))
    dataset = load_dataset(tmp_path, group_csv="t.csv")
    assert dataset.split("all").counts() == {"female": 2, "male": 2}
    assert any("annotations say the group themselves; the table counts for" in note for note in dataset.usable("all"))


def test_drawn_splits_do_not_hang_on_how_a_disk_spells_names(tmp_path):
    drawn = []
    nfc, nfd = (partial(unicodedata.normalize, form) for form in ("NFC", "NFD"))
    for number, spell in enumerate((nfc, nfd, str.upper)):
        data = content(30)
        for entry in data["images"]:
            entry["file_name"] = f"사진é{entry['id']}.jpg"
        root = write(tmp_path / str(number), data, names=[spell(entry["file_name"]) for entry in data["images"]])
        dataset = load_dataset(root)
        splits = [dataset.read(name) for name in ("train", "val", "test")]
        assert all(split.records for split in splits)
        drawn.append([[record.image_id for record in split.records] for split in splits])
        drawn[-1].append(dataset.split("all").fingerprint())
    assert drawn[0] == drawn[1] == drawn[2]


def test_girls_and_boys_say_their_group_and_who_does_not_is_said(tmp_path):
    data = content(6)
    for entry in data["images"]:
        del entry["gender"]
    names = ("Man", "Woman", "Girl", "Boy", "Child", "Person")
    data["categories"] = [{"id": n, "name": name} for n, name in enumerate(names)]
    for annotation in data["annotations"]:
        annotation["category_id"] = annotation["id"] % 2
    extra = [{"id": 50 + n, "image_id": 1, "category_id": n, "bbox": [200, 100, 50, 60]} for n in (2, 4, 5)]
    data["annotations"] += extra
    dataset = load_dataset(write(tmp_path, data))
    first = dataset.split("all").records[0]
    assert first.owner_of == ("female", "female", "")
    assert any("categories that say no group are left out: Child (1)" in note for note in dataset.usable("all"))


def test_corners_are_refused_as_a_whole_even_where_broken_records_are_left_out(tmp_path):
    data = content(8)
    for n, annotation in enumerate(data["annotations"]):
        annotation["bbox"] = [200, 100, 290, 200] if n % 2 else [20, 30, 130, 180]
        del annotation["area"]
    with pytest.raises(
        FaapError, match=r"of 4 boxes that can tell, 4 are not \[x, y, width, height\]: .*it would fit as"
    ):
        groups(write(tmp_path, data), skip_bad=True)
    for annotation in data["annotations"][2:]:
        annotation["bbox"] = [200, 100, 90, 50]
    assert groups(write(tmp_path, data), skip_bad=True) == {"female": 4, "male": 4}


def test_pillows_own_bound_stays_however_many_threads_read(tmp_path, monkeypatch):
    write(tmp_path, content(2))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # so that every image here is a bomb to Pillow
    paths = [tmp_path / "1.jpg", tmp_path / "2.jpg"] * 300
    with ThreadPoolExecutor(8) as pool:
        assert {image.size for image in pool.map(open_image, paths)} == {SIZE}
    assert Image.MAX_IMAGE_PIXELS == 10_000


@pytest.mark.parametrize("place", ["annotations/instances_{}.json", "{}/_annotations.coco.json", "labels/{}.json"])
def test_splits_may_be_capitalised(tmp_path, place):
    for part in ("Train", "Validation", "Test"):
        data = content(4)
        for entry in data["images"]:
            entry["file_name"] = f"{part}{entry['id']}.jpg"
        write(tmp_path, data, place=place.format(part), folder=f"images/{part}")
    options = {"annotations": "labels/{split}.json"} if place.startswith("labels") else {}
    dataset = load_dataset(tmp_path, **options)
    assert dataset.splits == ("train", "val", "test")
    assert dataset.split("val").records[0].path.name == "Validation1.jpg"


def test_groups_are_one_in_either_unicode_form(tmp_path):
    data = content(4)
    for entry, group in zip(data["images"], ("여성", "남성", "여성", "남성"), strict=True):
        entry["gender"] = unicodedata.normalize("NFD", group)
    write(tmp_path, data)
    assert groups(tmp_path, anchor="여성", reference="남성") == {"여성": 2, "남성": 2}


@pytest.mark.parametrize("name", ["{root}/img/{n}.jpg", "../img/{n}.jpg"])
def test_a_name_that_stays_in_the_data_set_is_found_however_it_is_written(tmp_path, name):
    data, place = content(4), tmp_path / "annotations" / "p.json"
    write(tmp_path, data, "annotations/p.json", folder="img")
    for entry in data["images"]:
        entry["file_name"] = name.format(root=tmp_path, n=entry["id"])
    place.write_text(json.dumps(data))
    assert groups(tmp_path) == {"female": 2, "male": 2}
    data["images"][0]["file_name"] = str(tmp_path.parent / "out.jpg")
    (tmp_path.parent / "out.jpg").touch()
    place.write_text(json.dumps(data))
    with pytest.raises(FaapError, match=rf"leaves the folder {tmp_path}.*; it should be relative to it"):
        groups(tmp_path)


def test_the_whole_file_needs_no_splits(tmp_path):
    data = content(4)
    for entry in data["images"]:
        entry["split"] = "restval"
    write(tmp_path, data)
    assert groups(tmp_path) == {"female": 2, "male": 2}
    with pytest.raises(FaapError, match="split should be train, val or test, found 'restval'"):
        groups(tmp_path, split="train")
    for entry in data["images"]:
        entry["split"] = ["train"]
    write(tmp_path, data, "test.json")
    (tmp_path / "data.json").unlink()
    assert groups(tmp_path, split="test") == {"female": 2, "male": 2}


def test_what_macos_leaves_beside_a_file_is_no_data_set(tmp_path):
    write(tmp_path, content(4))
    (tmp_path / "._data.json").write_bytes(b"\0\5\x16\7")
    assert groups(tmp_path) == {"female": 2, "male": 2}


def test_a_table_of_another_encoding_says_what_to_do(tmp_path):
    write(tmp_path, content(4))
    (tmp_path / "t.csv").write_bytes("image_id,gender\n1,여성\n".encode("cp949"))
    with pytest.raises(FaapError, match="save it as UTF-8"):
        groups(tmp_path, group_csv="t.csv")
