import pytest

from data.builder import Builder
from data.faults import Faults
from data.records import read_classes
from utils.errors import UserError


def make_records(root="x"):
    """Three images: two objects, none, a crowd and a difficult object."""
    builder = Builder(root, ("cat", "dog"), Faults(), category_ids=(3, 18))
    first = builder.image("a.jpg", (50, 100), 7)
    builder.image("b.jpg", (60, 80), 9)
    last = builder.image("c.jpg", (10, 10), 30)
    builder.box(first, (10, 10, 30, 40), 1)
    builder.box(last, (0, 0, 5, 5), 1, crowd=True)
    builder.box(first, (-1, 20, 120, 30.5), 0, area=77)
    builder.box(last, (2, 2, 8, 8), 0, difficult=True)
    return builder.records()


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


def test_limit_keeps_the_first_images():
    records = make_records().limit(2)
    assert len(records) == 2 and len(records.boxes) == len(records.areas) == 2
    assert len(make_records().limit(99)) == 3


def test_subset_takes_boxes_along():
    records = make_records().subset([2, 0])
    assert records.files == ("c.jpg", "a.jpg") and records.image_ids.tolist() == [30, 7]
    assert records.starts.tolist() == [0, 2, 4] and records.areas.tolist() == [25, 36, 600, 77]
    assert records.crowd.tolist() == [True, False, False, False]
    none = make_records().subset([])
    assert len(none) == 0 and none.boxes.shape == (0, 4) and none.starts.tolist() == [0]


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
