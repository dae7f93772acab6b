import math

import cv2
import numpy as np
import pytest

from data import builder as module
from data.builder import Builder
from data.faults import Faults
from utils.errors import UserError


def test_boxes_in_any_order_of_images():
    builder = Builder("x", ("cat", "dog"), Faults(), category_ids=(3, 18), videos=("v",))
    rows = [builder.image(f"{name}.jpg", (50, 100)) for name in "abc"]
    assert rows == [0, 1, 2]
    for row, left in ((2, 1), (0, 2), (2, 3), (0, 4)):
        builder.box(row, (left, 0, left + 10, 20), left % 2, crowd=left == 3, area=5 * left)
    records = builder.records(["said before"])
    assert records.files == ("a.jpg", "b.jpg", "c.jpg") and records.image_ids.tolist() == [1, 2, 3]
    assert records.starts.tolist() == [0, 2, 2, 4]
    assert records.boxes[:, 0].tolist() == [2, 4, 1, 3]  # within an image as they came
    assert records.labels.tolist() == [0, 0, 1, 1] and records.areas.tolist() == [10, 20, 5, 15]
    assert records.crowd.tolist() == [False, False, False, True]
    assert records.category_ids == (3, 18) and records.notes == ("said before",)
    assert records.boxes.dtype == np.float32 and records.labels.dtype == np.int64


def test_faulty_boxes_are_dropped_and_told():
    faults = Faults()
    builder = Builder("x", ("cat",), faults, unit="line")
    first = builder.image("a.jpg", (50, 100), source="a.txt")
    second = builder.image("b.jpg", (50, 100))
    faulty = [
        (5, 5, 5, 9),  # no width
        (9, 5, 5, 9),  # negative width
        (100, 5, 120, 9),  # outside
        (math.nan, 5, 120, 9),
        (math.inf, 5, 120, 9),
        (7, 5, 7.0000001, 9),  # no width in float32
        (-1e300, 0, 1e300, 9),  # clipped to the whole width
    ]
    for number, box in enumerate(faulty, start=1):
        builder.box(first, box, 0, number=number)
    builder.box(second, (1, 2, 3, 4), 0)
    builder.box(second, (-2, 2, 3, 52.5), 0, number=8)
    records = builder.records()
    assert records.boxes.tolist() == [[0, 0, 100, 9], [1, 2, 3, 4], [0, 2, 3, 50]]
    assert [note.split()[0] for note in records.notes] == ["2", "3", "1", "2"]
    assert "zero or negative size were dropped: a.txt" in records.notes[1]
    assert "clipped: a.txt, b.jpg" in records.notes[3]
    details = [(fault.file, fault.detail) for fault in faults.found]
    assert ("a.txt", "line 2: (9, 5, 5, 9)") in details and not any(f.fatal for f in faults.found)
    assert ("b.jpg", "line 8: (-2, 2, 3, 52.5)") in details


def test_areas_that_are_missing_or_not_positive():
    builder = Builder("x", ("cat",), Faults())
    row = builder.image("a.jpg", (50, 50))
    for area in (None, 0, -3, math.nan, 7):
        builder.box(row, (1, 1, 3, 4), 0, area=area)
    assert builder.records().areas.tolist() == [6, 6, 6, 6, 7]


def test_sizes_come_from_the_files_where_they_are_not_given(tmp_path):
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((7, 9, 3), np.uint8))[1])
    (tmp_path / "b.png").write_bytes(b"")
    builder = Builder(tmp_path, ("cat",), Faults())
    builder.image("a.png")
    with pytest.raises(UserError, match="b.png: the file is empty"):
        builder.image("b.png")
    faults = Faults(collect=True)
    builder = Builder(tmp_path, ("cat",), faults)
    rows = [builder.image(name) for name in ("b.png", "a.png")]
    for row in rows:
        builder.box(row, (1, 1, 3, 4), 0)
    records = builder.records()
    assert rows == [-1, 0] and records.files == ("a.png",) and records.sizes.tolist() == [[7, 9]]
    assert len(records.boxes) == 1 and faults.found[0].file == str(tmp_path / "b.png")


def test_sets_without_boxes_or_images():
    builder = Builder("x", ("cat",), Faults())
    builder.image("a.jpg", (5, 5), image_id=4, video=0, frame=3)
    records = builder.records()
    assert records.boxes.shape == (0, 4) and records.image_ids.tolist() == [4]
    assert (records.video.tolist(), records.frame.tolist()) == ([0], [3])
    with pytest.raises(UserError, match="no images"):
        Builder("x", ("cat",), Faults()).records()
    faults = Faults(collect=True)
    assert len(Builder("x", ("cat",), faults).records()) == 0 and faults.found[0].fatal


def test_many_boxes_are_cleaned_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    builder = Builder("x", ("cat",), Faults())
    row = builder.image("a.jpg", (50, 50))
    for number in range(10):
        builder.box(row, (1, 1, 1 if number == 9 else 4 + number, 5), 0, number=number)
    records = builder.records()
    assert records.boxes[:, 2].tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert records.notes[0].startswith("1 boxes of zero")


def test_boxes_as_arrays_equal_those_one_by_one():
    rows, labels = np.array([1, 0, -1, 1]), np.array([0, 1, 1, 0])
    boxes = np.arange(16, dtype=float).reshape(4, 4) + [0, 0, 3, 3]
    crowd, difficult = np.array([0, 1, 0, 0]), np.array([1, 0, 0, 0])
    areas, numbers = np.array([0, 7.5, 3, 2]), np.arange(4)
    results = []
    for many in (True, False):
        builder = Builder("x", ("cat", "dog"), Faults())
        for name in "ab":
            builder.image(name, (50, 50))
        if many:
            builder.boxes(rows, boxes, labels, crowd, difficult, areas, numbers)
        else:
            for row, box, label, *rest in zip(
                rows, boxes, labels, crowd, difficult, areas, strict=True
            ):
                builder.box(row, box, label, bool(rest[0]), bool(rest[1]), rest[2])
        results.append(vars(builder.records()))
    for name in ("boxes", "labels", "crowd", "difficult", "areas", "starts"):
        assert np.array_equal(results[0][name], results[1][name]), name
    assert results[0]["areas"].tolist() == [7.5, 25, 2] and results[0]["labels"].tolist() == [
        1,
        0,
        0,
    ]
