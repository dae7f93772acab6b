"""While faults are collected, one look at a COCO json tells all of them."""

from collections import Counter

import data
from data.faults import Faults, name_some
from tests.miniature import coco_content, write_images, write_json


def test_all_faults_of_a_json_are_told(tmp_path):
    write_images(tmp_path / "train")
    content = coco_content()
    content["images"][2] |= {"height": 0}
    content["images"] += [
        {"id": 12, "file_name": "again.jpg", "height": 5, "width": 5},
        {"id": 70, "height": 5, "width": 5},
        {"file_name": "nameless.jpg", "height": 5, "width": 5},
        {"id": 71, "file_name": "gone.jpg"},
    ]
    content["annotations"] += [
        {"id": 20, "image_id": 12, "category_id": 99, "bbox": [1, 1, 2, 2]},
        {"id": 21, "image_id": 12, "category_id": 98, "bbox": [1, 1, 2, 2]},
        {"id": 22, "image_id": 404, "category_id": 3, "bbox": [1, 1, 2, 2]},
        {"id": 23, "image_id": 12, "category_id": 3, "bbox": [1, 1, 2]},
        {"id": 24, "image_id": 12, "category_id": 3, "bbox": [1, 1, 2, "x"]},
        {"id": 25, "image_id": 12, "category_id": 3},
        {"id": 26, "image_id": 12, "category_id": 3, "bbox": [9, 9, 0, 4]},
        {"id": 27, "image_id": 5, "category_id": 3, "bbox": [90, 9, 4, 4]},
        {"id": 28, "image_id": 5, "category_id": 3, "bbox": [40, 9, 14, 4]},
        {"id": 29, "category_id": 3, "bbox": [1, 1, 2, 2]},
        {"id": 30, "image_id": 71, "category_id": 3, "bbox": [1, 1, 2, 2]},
        "text",
    ]
    content["categories"] += [{"id": 18, "name": "cow"}, {"id": 40, "name": "cat"}, {"id": 41}]
    path = write_json(tmp_path / "annotations" / "instances_train.json", content)
    faults = Faults(collect=True)
    records = data.read("coco", tmp_path, "train", faults=faults)
    assert Counter((fault.kind, fault.fatal) for fault in faults.found) == {
        ("images of no valid size in the json were measured", False): 2,
        ("images whose id is there twice", True): 1,
        ("images without a valid name or id", True): 2,
        ("images cannot be read", True): 1,
        ("annotations without a valid image or category", True): 2,
        ("annotations of a category that is not listed", True): 2,
        ("annotations of images that are not listed were left out", False): 1,
        ("boxes that are no four finite numbers were dropped", False): 3,
        ("boxes of zero or negative size were dropped", False): 1,
        ("boxes outside their image were dropped", False): 1,
        ("boxes reached more than 2 px over the edge and were clipped", False): 1,
        ("categories whose id is there twice", True): 1,
        ("categories share a name and were taken as one class", False): 1,
        ("categories without a valid name or id", True): 1,
    }
    assert records.files == ("a.jpg", "b.jpg", "c.jpg") and records.classes == ("cat", "dog")
    assert len(records.boxes) == 4
    found = [(fault.file, fault.detail) for fault in faults.found]
    assert ("a.jpg", "annotation 26: (9, 9, 9, 13)") in found
    assert ("b.jpg", "annotation 28: (40, 9, 54, 13)") in found
    assert (str(path), "annotation 23 of image 12: bbox [1, 1, 2]") in found
    assert (str(path), "annotation 25 of image 12: bbox None") in found
    assert (str(path), "annotation 22 of image 404") in found
    assert ("c.jpg", "height 0, width 80") in found


def test_faults_of_a_video_set_are_told(tmp_path):
    write_images(tmp_path / "frames")
    content = coco_content()
    for image, video, frame in zip(content["images"], (1, 9, 1), (4, 0, 4), strict=True):
        image |= {"video_id": video, "frame_id": frame}
    (tmp_path / "frames" / "d.jpg").write_bytes((tmp_path / "frames" / "a.jpg").read_bytes())
    without = {name: content["images"][0][name] for name in ("height", "width")}
    content["images"].append({"id": 1, "file_name": "d.jpg", **without})
    content["videos"] = [{"id": 1, "name": "one"}, {"id": 1, "name": "two"}]
    write_json(tmp_path / "annotations" / "train.json", content)
    faults = Faults(collect=True)
    records = data.read("cocovid", tmp_path, "train", faults=faults)
    assert [fault.kind for fault in faults.found] == [
        "videos whose id is there twice",
        "images of a video that is not listed",
        "frames that are there twice",
        "images without a video or a number in it",
    ]
    assert all(fault.fatal for fault in faults.found) and records.video.tolist() == [0, -1, 0, -1]


def test_notes_count_and_name_the_first_files():
    faults = Faults()
    for name in "aabcde":
        faults.drop("boxes were dropped", f"{name}.jpg", "box 1")
    assert faults.notes() == ["6 boxes were dropped: a.jpg, b.jpg, c.jpg and 2 more"]
    assert name_some(["x"]) == "x"
