import math

import cv2
import numpy as np
import pytest

from data import records as module
from data.records import Entry, build, check_files, read_classes
from utils.errors import UserError


def make_records(root="x"):
    """Three images: two objects, none, a crowd and a difficult object."""
    first, empty, last = (
        Entry("a.jpg", (50, 100), 7),
        Entry("b.jpg", (60, 80), 9),
        Entry("c.jpg", (10, 10), 30),
    )
    first.add((10, 10, 30, 40), 1)
    first.add((-1, 20, 120, 30.5), 0, area=77)
    last.add((0, 0, 5, 5), 1, crowd=True)
    last.add((2, 2, 8, 8), 0, difficult=True)
    return build(root, ("cat", "dog"), [first, empty, last], category_ids=(3, 18))


def test_faulty_boxes_are_dropped_and_counted():
    entry = Entry("a.jpg", (50, 100))
    entry.add((5, 5, 5, 9), 0)  # no width
    entry.add((9, 5, 5, 9), 0)  # negative width
    entry.add((100, 5, 120, 9), 0)  # outside
    entry.add((math.nan, 5, 120, 9), 0)
    entry.add((math.inf, 5, 120, 9), 0)
    entry.add((1, 2, 3, 4), 1)
    records = build("x", ("cat", "dog"), [entry])
    assert records.boxes.tolist() == [[1, 2, 3, 4]] and records.labels.tolist() == [1]
    assert [note.split()[0] for note in records.notes] == ["2", "2", "1"]
    assert all("a.jpg" in note for note in records.notes)


def test_columns():
    records = make_records()
    assert records.boxes[1].tolist() == [0, 20, 100, 30.5]  # clipped
    assert records.areas.tolist() == [600, 77, 25, 36]
    assert records.starts.tolist() == [0, 2, 2, 4]
    assert records.image_ids.tolist() == [7, 9, 30]
    assert records.boxes_of(2)["crowd"].tolist() == [True, False]
    assert records.boxes_of(1)["boxes"].shape == (0, 4)
    assert "3 images (1 without objects), 4 boxes, 2 classes" in records.summary()
    assert "20 px" not in records.summary() and "clipped: a.jpg" in records.summary()


def test_images_without_ids_or_boxes():
    records = build("x", ("cat",), [Entry("a.jpg", (5, 5)), Entry("b.jpg", (5, 5))])
    assert records.image_ids.tolist() == [1, 2] and records.category_ids == (1,)
    assert records.boxes.shape == (0, 4) and records.ground_truth()["annotations"] == []
    with pytest.raises(UserError, match="no images"):
        build("x", ("cat",), [])


def test_limit_keeps_the_first_images():
    records = make_records().limit(2)
    assert len(records) == 2 and len(records.boxes) == len(records.areas) == 2
    assert len(make_records().limit(99)) == 3


def test_ground_truth_is_coco():
    truth = make_records().ground_truth()
    assert truth["images"][1] == {"id": 9, "file_name": "b.jpg", "height": 60, "width": 80}
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}]
    assert truth["annotations"][0] == {
        "id": 1,
        "image_id": 7,
        "category_id": 18,
        "bbox": [10, 10, 20, 30],
        "area": 600,
        "iscrowd": 0,
    }
    assert [item["iscrowd"] for item in truth["annotations"]] == [0, 0, 1, 0]
    assert [item["area"] for item in truth["annotations"]] == [600, 77, 25, -1]


def write_images(records):
    for file, (height, width) in zip(records.files, records.sizes, strict=True):
        path = records.root / file
        path.write_bytes(cv2.imencode(path.suffix, np.zeros((height, width, 3), np.uint8))[1])


def test_check_files(tmp_path, monkeypatch):
    records, store = make_records(tmp_path), tmp_path / "store"
    write_images(records)
    check_files(records, store)

    def fail(path):
        raise AssertionError("the cache knows this file")

    with monkeypatch.context() as patch:
        patch.setattr(module, "probe_image", fail)
        check_files(records, store)

    path = records.path(1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="1 of 3 images are faulty.*b.jpg.*cut off"):
        check_files(records, store)
    path.unlink()
    with pytest.raises(UserError, match="b.jpg: the image is missing"):
        check_files(records, store)
    path.write_bytes(cv2.imencode(".jpg", np.zeros((80, 60, 3), np.uint8))[1])
    with pytest.raises(UserError, match=r"b.jpg: \[80, 60\].*\[60, 80\] in the labels"):
        check_files(records, store)


def test_check_files_without_a_place_for_its_cache(tmp_path):
    records = make_records(tmp_path)
    write_images(records)
    (tmp_path / "file").write_text("")
    check_files(records, tmp_path / "file")


def test_read_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffred cell\n\n platelet \n", encoding="utf-8")
    assert read_classes(path) == ("red cell", "platelet")
    for content in ("", "a\na\n"):
        path.write_text(content)
        with pytest.raises(UserError, match="classes.txt"):
            read_classes(path)
    with pytest.raises(UserError, match="missing.txt"):
        read_classes(tmp_path / "missing.txt")
