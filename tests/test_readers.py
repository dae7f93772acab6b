import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import data
from data import synthetic
from utils.classes import COCO_CATEGORY_IDS, COCO_CLASSES, VOC_CLASSES
from utils.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
FILES = {"a": (40, 60), "b": (50, 50), "c": (30, 80)}  # c has no objects
OBJECTS = [  # image, class, xyxy
    ("a", "cat", (0, 0, 20, 30)),
    ("a", "dog", (10, 5, 60, 40)),
    ("b", "cat", (3, 4, 44, 45)),
]


def needs(name):
    """Skips a test where the real data are not at hand."""
    return pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"no {SHARED / name}")


def write_images(folder, suffix=".jpg"):
    folder.mkdir(parents=True)
    for name, size_hw in FILES.items():
        image = np.zeros((*size_hw, 3), np.uint8)
        (folder / (name + suffix)).write_bytes(cv2.imencode(suffix, image)[1])


def coco_content(prefix=""):
    """Ids with gaps, categories out of order."""
    ids, categories = {"a": 12, "b": 5, "c": 900}, {"dog": 18, "cat": 3}
    annotations = [
        {
            "id": number,
            "image_id": ids[name],
            "category_id": categories[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "segmentation": [[0, 0, 1, 1, 2, 2]],
        }
        for number, (name, label, (x1, y1, x2, y2)) in enumerate(OBJECTS)
    ]
    images = [
        {"id": ids[name], "file_name": f"{prefix}{name}.jpg", "height": h, "width": w}
        for name, (h, w) in FILES.items()
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_voc(root, train="a b c", suffix=".jpg", year=2007, **lists):
    """A VOC tree; keyword arguments name further lists, such as test="b"."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    write_images(folder / "JPEGImages", suffix)
    (folder / "Annotations").mkdir()
    for name, (height, width) in FILES.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}.0</ymin>"
            f"<xmax>{x2 + 1}</xmax><ymax>{y2 + 1}</ymax></bndbox></object>"
            for owner, label, (x1, y1, x2, y2) in OBJECTS
            if owner == name
        )
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(xml)
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for name, content in {"trainval": train, **lists}.items():
        (main / f"{name}.txt").write_text("\n".join(content.split()) + "\n")
    return folder


def check_same(records, classes=("cat", "dog")):
    """Whatever the format was, the objects are OBJECTS."""
    assert records.classes == classes
    assert [Path(file).stem for file in records.files] == list(FILES)
    assert [tuple(size) for size in records.sizes.tolist()] == list(FILES.values())
    assert records.boxes.tolist() == [list(box) for _, _, box in OBJECTS]
    assert records.labels.tolist() == [classes.index(label) for _, label, _ in OBJECTS]
    assert np.diff(records.starts).tolist() == [2, 1, 0]
    assert not records.crowd.any() and not records.difficult.any()
    assert all(records.path(i).is_file() for i in range(len(records)))
    assert records.boxes.dtype == np.float32 and records.labels.dtype == np.int64


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
    content["annotations"][0] |= {"iscrowd": 1, "area": 123.5}
    content["annotations"] += [
        {"image_id": 77, "category_id": 3, "bbox": [1, 1, 2, 2]},
        {"image_id": 5, "category_id": 3, "bbox": [1, 1, 2]},
        {"image_id": 5, "category_id": 3, "bbox": [1, 1, 2, 0], "area": 4},
        {"image_id": 5, "category_id": 3, "bbox": [1, 1, 2, 3], "area": 0},
    ]
    path = write_json(tmp_path / "annotations" / "instances_train.json", content)
    records = data.read("coco", tmp_path, "train")
    assert records.sizes[0].tolist() == [40, 60]
    assert records.crowd.tolist() == [True, False, False, False]
    assert records.areas.tolist() == [123.5, 1750, 41 * 41, 6]
    assert [note.split()[0] for note in records.notes] == ["1", "1", "1"]
    content["images"].append(content["images"][0])
    for odd, words in ((content, "twice"), ({"images": [{"id": 1}]}, "file_name"), ([], "images")):
        write_json(path, odd)
        with pytest.raises(UserError, match=words):
            data.read("coco", tmp_path, "train")
    path.write_text('{"images": [')
    with pytest.raises(UserError, match="no valid json"):
        data.read("coco", tmp_path, "train")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".BMP"])
def test_voc_roots(tmp_path, suffix):
    folder = write_voc(tmp_path, test="a b c", suffix=suffix)
    for root in (tmp_path, tmp_path / "VOCdevkit", folder):
        for split in ("train", "val", "test"):
            check_same(data.read("voc", root, split, classes=("cat", "dog")))


def test_voc_classes(tmp_path):
    folder = write_voc(tmp_path, train="b", test="a c")
    assert data.read("voc", tmp_path, "train").classes == VOC_CLASSES
    for name in ("a", "b"):
        path = folder / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("cat", "Wheel").replace("dog", "axle"))
    for split in ("train", "val"):  # both splits number alike, though b holds wheels only
        assert data.read("voc", tmp_path, split).classes == ("Wheel", "axle")
    with pytest.raises(UserError, match="a.xml: object 1 is a 'axle'.*Wheel"):
        data.read("voc", tmp_path, "val", classes=("Wheel",))
    (tmp_path / "classes.txt").write_text("axle\nWheel\n")
    assert data.read("voc", tmp_path, "train").classes == ("axle", "Wheel")


def test_voc_lists(tmp_path):
    write_voc(tmp_path, train="a b", test="c")
    write_voc(tmp_path, train="c", year=2012)
    assert len(data.read("voc", tmp_path, "train")) == 3
    assert len(data.read("voc", tmp_path, "train", years="07")) == 2
    assert data.read("voc", tmp_path, "train", years="12").files == ("VOC2012/JPEGImages/c.jpg",)
    assert data.read("voc", tmp_path, "val").files == ("VOC2007/JPEGImages/c.jpg",)
    with pytest.raises(UserError, match="07, 12, 07"):
        data.read("voc", tmp_path, "train", years="2007")


def test_voc_never_trains_on_what_it_evaluates(tmp_path):
    write_voc(tmp_path, train="a b c", val="c")
    main = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (main / "train.txt").write_text("a\nb 1\n")
    train, val = (data.read("voc", tmp_path, split) for split in ("train", "val"))
    assert len(train) == 2 and len(val) == 1
    assert "train.txt" in train.notes[0] and "val.txt" in val.notes[0]


def test_voc_oddities(tmp_path):
    folder = write_voc(tmp_path)
    (folder / "Annotations" / "a.xml").write_text(
        "<annotation><object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "<object><name>cat</name></object></annotation>"
    )
    records = data.read("voc", tmp_path, "train")
    assert records.difficult.tolist() == [True, False] and records.sizes[0].tolist() == [40, 60]
    assert any("1 boxes that are no four finite numbers" in note for note in records.notes)
    (folder / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(UserError, match="1 listed images are missing.*c"):
        data.read("voc", tmp_path, "train")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    for content in (bomb.encode(), bomb.encode("utf-16"), b"<annotation>", b""):
        (folder / "Annotations" / "a.xml").write_bytes(content)
        with pytest.raises(UserError, match="a.xml"):
            data.read("voc", tmp_path, "train")
    with pytest.raises(UserError, match="no VOCdevkit"):
        data.read("voc", tmp_path / "elsewhere", "train")


def test_options_of_read(tmp_path):
    write_voc(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("dog\ncat\n")
    records = data.read("voc", tmp_path, "train", classes=str(names), years=None, limit=2)
    assert records.classes == ("dog", "cat") and len(records) == 2
    with pytest.raises(UserError, match="voc have no annotation"):
        data.read("voc", tmp_path, "train", annotation="x.json")


def test_unknown_format():
    with pytest.raises(UserError, match="did you mean 'coco'"):
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


@needs("bccd")
def test_real_voc():
    train, test = (data.read("voc", SHARED / "bccd", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (292, 72) and train.classes == ("Platelets", "RBC", "WBC")
    assert (len(train.boxes), len(test.boxes)) == (3941, 945)
    assert any("2 boxes of zero" in note for note in train.notes)


@needs("coco_ccby")
def test_real_coco():
    root = SHARED / "coco_ccby"
    path, images = root / "annotations" / "things_from_panoptic.json", root / "images"
    records = data.read("coco", "none", "val", annotation=path, images=images)
    assert (len(records), len(records.boxes), records.crowd.sum()) == (32, 180, 1)
    assert records.classes == COCO_CLASSES and records.category_ids == COCO_CATEGORY_IDS
