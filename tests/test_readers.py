from dataclasses import replace

import pytest

import data
from data import synthetic
from data.faults import Faults
from tests.miniature import (
    SHARED,
    check_same,
    coco_content,
    needs,
    write_images,
    write_json,
    write_voc,
)
from utils.classes import COCO_CATEGORY_IDS, COCO_CLASSES
from utils.errors import UserError


@pytest.mark.parametrize(
    "annotation, images, prefix",
    [
        ("annotations/instances_train2017.json", "train2017", ""),
        ("coco/annotations/instances_train2017.json", "coco/images/train2017", ""),
        ("annotations/instances_train.json", "train", ""),
        ("annotations/instances_train2017.json", "images/sub", "sub\\"),
        ("train/_annotations.coco.json", "train", ""),
    ],
)
def test_coco_trees(tmp_path, annotation, images, prefix):
    write_images(tmp_path / images)
    write_json(tmp_path / annotation, coco_content(prefix))
    records = data.read("coco", tmp_path, "train")
    check_same(records)
    assert records.image_ids.tolist() == [12, 5, 900] and records.category_ids == (3, 18)


def test_coco_splits(tmp_path):
    write_images(tmp_path / "valid")
    write_json(tmp_path / "valid" / "_annotations.coco.json", coco_content())
    check_same(data.read("coco", tmp_path, "val"))
    test = data.read("coco", tmp_path, "test")
    check_same(test)
    assert "these are the val images" in test.notes[0]
    with pytest.raises(UserError, match="no train annotations below --root"):
        data.read("coco", tmp_path, "train")


def test_coco_parts_elsewhere(tmp_path):
    write_images(tmp_path / "pictures" / "x")
    path = write_json(tmp_path / "other" / "my.json", coco_content("x/"))
    check_same(data.read("coco", "none", "val", annotation=path, images=tmp_path / "pictures"))
    with pytest.raises(UserError, match="--images"):
        data.read("coco", "none", "val", annotation=path)


def test_coco_class_choice(tmp_path):
    write_images(tmp_path / "train")
    path = write_json(tmp_path / "annotations" / "instances_train.json", coco_content())
    check_same(data.read("coco", tmp_path, "train", classes=("dog", "cat")), ("dog", "cat"))
    dogs = data.read("coco", tmp_path, "train", classes=("dog",))
    assert len(dogs) == 3 and dogs.labels.tolist() == [0] and dogs.category_ids == (18,)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert data.read("coco", tmp_path, "train").classes == ("dog", "cat")
    more = data.read("coco", tmp_path, "train", classes=("cow", "cat", "dog"))
    assert more.classes == ("cow", "cat", "dog") and more.category_ids == (19, 3, 18)
    assert more.labels.tolist() == [1, 2, 1]
    with pytest.raises(UserError, match="no category cow; it knows cat, dog"):
        data.read("coco", tmp_path, "train", classes=("cow",))
    content = coco_content()
    content["annotations"][1]["category_id"] = 4
    write_json(path, content)
    with pytest.raises(UserError, match="category 4"):
        data.read("coco", tmp_path, "train")


def test_coco_oddities(tmp_path):
    write_images(tmp_path / "train")
    content = coco_content()
    del content["images"][0]["height"]
    content["images"][1]["width"] = -5
    content["annotations"][0] |= {"iscrowd": 1, "area": 123.5}
    content["annotations"][1] |= {"difficult": 1}
    content["annotations"] += [
        {"image_id": 77, "category_id": 3, "bbox": [1, 1, 2, 2]},
        {"image_id": 5, "category_id": 3, "bbox": [1, 1, 2]},
        {"image_id": 5, "category_id": 3, "bbox": [1, 1, 2, 0], "area": 4},
        {"image_id": 5, "category_id": 3, "bbox": [1, 1, 2, 3], "area": 0},
    ]
    write_json(tmp_path / "annotations" / "instances_train.json", content)
    records = data.read("coco", tmp_path, "train")
    assert records.sizes.tolist() == [[40, 60], [50, 50], [30, 80]]
    assert records.crowd.tolist() == [True, False, False, False]
    assert records.difficult.tolist() == [False, True, False, False]
    assert records.areas.tolist() == [123.5, 1750, 41 * 41, 6]
    counts = {note.split(" ", 1)[1].split(":")[0]: note.split()[0] for note in records.notes}
    assert counts == {
        "images of no valid size in the json were measured": "2",
        "boxes that are no four finite numbers were dropped": "1",
        "boxes of zero or negative size were dropped": "1",
        "annotations of images that are not listed were left out": "1",
    }


@pytest.mark.parametrize("key, column", [("iscrowd", "crowd"), ("difficult", "difficult")])
def test_coco_marks(tmp_path, key, column):
    write_images(tmp_path / "train")
    for off, on in (("0", "1"), (False, True), (0.0, 1.0), (" ", "true"), ("False", 2)):
        content = coco_content()
        content["annotations"][0][key], content["annotations"][2][key] = off, on
        write_json(tmp_path / "annotations" / "instances_train.json", content)
        records = data.read("coco", tmp_path, "train")
        assert getattr(records, column).tolist() == [False, False, True]


def test_coco_numbers_of_other_types(tmp_path):
    write_images(tmp_path / "train")
    content = coco_content()
    content["images"][0]["id"] = 12.0
    content["annotations"][0] |= {"image_id": "12", "id": 2**31 + 7, "bbox": [9, 9, 0, 4]}
    content["annotations"][2]["bbox"] = "1234"
    path = write_json(tmp_path / "annotations" / "instances_train.json", content)
    faults = Faults()
    records = data.read("coco", tmp_path, "train", faults=faults)
    assert records.image_ids[0] == 12 and len(records.boxes) == 1
    told = ["annotation 2 of image 5: bbox '1234'", f"annotation {2**31 + 7}: (9, 9, 9, 13)"]
    assert [fault.detail for fault in faults.found] == told
    content["annotations"][1]["image_id"] = 12.7
    write_json(path, content)
    with pytest.raises(UserError, match='"image_id" is no integer'):
        data.read("coco", tmp_path, "train")


def test_coco_lists_in_any_order(tmp_path):
    write_images(tmp_path / "train")
    content = coco_content()
    annotations = content["annotations"][::-1]
    write_json(
        tmp_path / "annotations" / "instances_train.json",
        {
            "annotations": annotations,
            "info": {"images": []},
            "categories": content["categories"],
            "images": content["images"],
            "videos": [],
        },
    )
    records = data.read("coco", tmp_path, "train")
    assert records.boxes[0].tolist() == [10, 5, 60, 40] and records.starts.tolist() == [0, 2, 3, 3]


def test_categories_that_share_a_name(tmp_path):
    write_images(tmp_path / "train")
    content = coco_content()
    content["categories"] += [{"id": 1, "name": "dog"}]
    content["annotations"][0]["category_id"] = 1
    write_json(tmp_path / "annotations" / "instances_train.json", content)
    records = data.read("coco", tmp_path, "train")
    assert records.classes == ("dog", "cat") and records.category_ids == (1, 3)
    assert records.labels.tolist() == [0, 0, 1] and "share a name" in records.notes[0]


def broken(**changes):
    """A set of which keys of the first image, annotation or category are changed; None: removed."""
    content = coco_content()
    for key, items in changes.items():
        for name, value in items.items():
            content[key][0][name] = value
            if value is None:
                del content[key][0][name]
    return content


@pytest.mark.parametrize(
    "content, words",
    [
        (broken(images={"file_name": None}), 'no "file_name" in'),
        (broken(images={"file_name": ""}), '"file_name" is no name'),
        (broken(images={"file_name": "a\0.jpg"}), '"file_name" is no name'),
        (broken(images={"file_name": "\ud83d.jpg"}), '"file_name" is no name'),
        (broken(images={"id": None}), 'no "id" in'),
        (broken(images={"id": "x"}), '"id" is no integer'),
        (broken(images={"id": 1.7}), '"id" is no integer'),
        (broken(images={"id": 2**64}), '"id" is out of range'),
        (broken(images={"id": 5}), r"image id 5 is there twice \(b.jpg\)"),
        (broken(annotations={"image_id": None}), 'no "image_id" in'),
        (broken(annotations={"category_id": [3]}), '"category_id" is no integer'),
        (broken(annotations={"category_id": 4}), "annotation 0 has category 4, .*3, 18"),
        (broken(categories={"id": 3}), 'id 3 is there twice in "categories": dog, cat'),
        (broken(categories={"name": None}), 'no "name" in'),
        ({**broken(), "images": [1]}, 'no "file_name" in 1'),
        ({**broken(), "annotations": [[]]}, r'no "image_id" in \[\]'),
        ({**broken(), "categories": []}, '"categories" is missing or empty'),
        ({**broken(), "images": []}, "lists no images"),
        ({"annotations": []}, 'no list "images"'),
        ({**broken(), "images": {"id": 1}}, 'no list "images"'),
        ([], "expected an object"),
    ],
)
def test_what_is_no_coco_json(tmp_path, content, words):
    write_images(tmp_path / "train")
    path = write_json(tmp_path / "annotations" / "instances_train.json", content)
    with pytest.raises(UserError, match=words) as error:
        data.read("coco", tmp_path, "train")
    assert str(path) in str(error.value)
    path.write_text(path.read_text()[:-1])
    with pytest.raises(UserError):
        data.read("coco", tmp_path, "train")


def test_options_of_read(tmp_path):
    write_voc(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("dog\ncat\n")
    records = data.read("voc", tmp_path, "train", classes=str(names), years=None, limit=2)
    assert records.classes == ("dog", "cat") and len(records) == 2
    with pytest.raises(UserError, match="voc do not take --ann"):
        data.read("voc", tmp_path, "train", annotation="x.json")


def test_unknown_format():
    with pytest.raises(UserError, match="'cocoo'; did you mean coco"):
        data.read("cocoo", ".", "train")


@pytest.mark.parametrize("name, scene", [("synthetic", "SYNTHETIC"), ("synthetic-tiny", "TINY")])
def test_synthetic(tmp_path, monkeypatch, name, scene):
    few = replace(getattr(synthetic, scene), counts=(("train", 12), ("val", 3)))
    monkeypatch.setattr(synthetic, scene, few)
    records = data.read(name, tmp_path, "train")
    assert len(records) == 12 and records.classes == few.classes
    sides = records.boxes[:, 2:] - records.boxes[:, :2]
    assert len(sides) > 20 and sides.min() >= 2 and sides.max() <= few.sides[1] + 2
    assert not records.notes and not list(tmp_path.glob(".synthetic*"))
    before = [records.path(i).read_bytes() for i in range(12)]
    assert len(data.read(name, tmp_path, "test")) == 3
    again = data.read(name, tmp_path / "again", "train")
    assert before == [again.path(i).read_bytes() for i in range(12)]
    synthetic._write_set(tmp_path / name, few)  # as a slower process would
    assert not list(tmp_path.glob(".synthetic*"))


def test_synthetic_without_room(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--root"):
        data.read("synthetic", tmp_path / "file", "train")


@needs("coco_ccby")
def test_real_coco():
    root = SHARED / "coco_ccby"
    path, images = root / "annotations" / "things_from_panoptic.json", root / "images"
    records = data.read("coco", "none", "val", annotation=path, images=images)
    assert (len(records), len(records.boxes), records.crowd.sum()) == (32, 180, 1)
    assert records.classes == COCO_CLASSES and records.category_ids == COCO_CATEGORY_IDS


@needs("foosball")
def test_real_coco_of_small_objects():
    sets = [data.read("coco", SHARED / "foosball", split) for split in ("train", "val", "test")]
    assert [(len(records), len(records.boxes)) for records in sets] == [
        (106, 2554),
        (21, 541),
        (14, 261),
    ]
    assert sets[0].classes == ("ball", "hand", "figure") and sets[0].category_ids == (0, 1, 2)
    assert not any(records.notes for records in sets)
