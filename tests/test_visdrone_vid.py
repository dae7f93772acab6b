import numpy as np
import pytest

import data
from tests.moving import write_image
from utils.errors import UserError

LINES = """1,0,10,5,20,10,1,4,0,0
1,0,0,0,8,8,0,0,0,0
2,3,10,5,20,10,1,1,0,0
2,4,30,5,10,10,0,4,0,0
2,5,50,5,9,9,1,11,1,1
9,5,50,5,9,9,1,4,1,1
"""


def write_part(folder, videos=("uav_0001_v", "uav_0002_v"), labelled=None):
    for name in videos:
        for number in (1, 2, 3):
            write_image(folder / "sequences" / name / f"{number:07d}.jpg", (40, 60 + number))
    (folder / "annotations").mkdir()
    for name in videos if labelled is None else labelled:
        (folder / "annotations" / f"{name}.txt").write_text(LINES)


@pytest.mark.parametrize("names", ["VisDrone2019-VID-{}", "{}"])
def test_trees(tmp_path, names):
    write_part(tmp_path / names.format("train"))
    write_part(tmp_path / names.format("test-dev"), ("x",))
    records = data.read("visdrone", tmp_path, "train")
    assert records.classes[0] == "pedestrian" and len(records.classes) == 10
    assert records.category_ids == tuple(range(1, 11))
    assert records.videos == ("uav_0001_v", "uav_0002_v")
    assert records.frame.tolist() == [1, 2, 3] * 2  # an empty frame is kept
    assert records.sizes[:3].tolist() == [[40, 61], [40, 62], [40, 63]]
    # One object and a region; one object, an object that does not count, and "others".
    assert np.diff(records.starts).tolist() == [11, 12, 0] * 2
    assert records.boxes[0].tolist() == [10, 5, 30, 15] and records.labels[0] == 3
    second = records.boxes_of(1)
    assert second["labels"][:2].tolist() == [0, 3]
    assert second["crowd"].tolist() == [False] + 11 * [True]
    assert any("frames that are not there" in note for note in records.notes)
    assert "4 regions are ignored, for every class" in records.notes
    val = data.read("visdrone", tmp_path, "val")
    assert val.videos == ("x",) and "these are the test images" in " ".join(val.notes)
    cars = data.read("visdrone", tmp_path, "train", classes=("car",))
    assert cars.category_ids == (4,) and cars.crowd.sum() == 6
    assert "2 objects of other classes were left out" in cars.notes
    assert data.read("custom", tmp_path, "train").notes[0].startswith("found: VisDrone-VID (")


def test_one_part_alone(tmp_path):
    root = tmp_path / "VisDrone2019-VID-val"
    write_part(root, ("a", "b"), labelled=("a",))
    records = data.read("visdrone", root, "val")
    assert len(records) == 3 and records.files[0] == "sequences/a/0000001.jpg"
    assert "1 videos have no labels and were left out: b" in records.notes
    with pytest.raises(UserError, match="has no train part, only val"):
        data.read("visdrone", root, "train")


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no sequences/ and annotations/ below.*expected"):
        data.read("visdrone", tmp_path, "train")
    write_part(tmp_path / "train")
    path = tmp_path / "train" / "annotations" / "uav_0001_v.txt"
    path.write_text("1,0,0,0,5,5,1,12,0,0")
    with pytest.raises(UserError, match="uav_0001_v.txt, line 1: class 12, .* 12 .numbers 0 to 11"):
        data.read("visdrone", tmp_path, "train")
