import pytest

import data
from data.clips import Videos
from tests.miniature import SHARED, check_same, coco_content, needs, write_images, write_json
from tests.moving import write_image
from utils.errors import UserError


def video_content(prefix=""):
    """The frames a, b, c are the last of video 7, the first of 7 and one of 4."""
    content = coco_content(prefix)
    for image, place in zip(content["images"], ((7, 5), (7, 2), (4, 0)), strict=True):
        image |= dict(zip(("video_id", "frame_id"), place, strict=True))
    for item in content["annotations"]:
        item["instance_id"] = 1
    content["videos"] = [{"id": 4, "name": "four"}, {"id": 7, "name": "seven"}]
    return content


@pytest.mark.parametrize("images, prefix", [("frames/x", "x/"), ("val", ""), ("", ""), ("y", "y/")])
def test_trees(tmp_path, images, prefix):
    write_images(tmp_path / "set" / images)
    write_json(tmp_path / "set" / "annotations" / "val.json", video_content(prefix))
    records = data.read("cocovid", tmp_path / "set", "val")
    check_same(records)
    assert records.videos == ("four", "seven") and records.video.tolist() == [1, 1, 0]
    assert records.frame.tolist() == [5, 2, 0] and records.image_ids.tolist() == [12, 5, 900]
    videos = Videos(records)
    assert [videos.length(i) for i in range(len(videos))] == [1, 2]
    assert [videos.image(0, 0), videos.image(1, 0), videos.image(1, 1)] == [2, 1, 0]
    assert "these are the val images" in data.read("cocovid", tmp_path / "set", "test").notes[0]


def test_parts_elsewhere_and_classes(tmp_path):
    write_images(tmp_path / "pictures")
    path = write_json(tmp_path / "some.json", video_content())
    options = {"annotation": path, "images": tmp_path / "pictures"}
    check_same(data.read("cocovid", "none", "train", **options))
    dogs = data.read("cocovid", "none", "train", classes=("dog",), **options)
    assert dogs.classes == ("dog",) and len(dogs.boxes) == 1
    with pytest.raises(UserError, match="--images"):
        data.read("cocovid", "none", "train", annotation=path)


def test_regions_to_ignore(tmp_path):
    write_images(tmp_path / "frames")
    content = video_content()
    content["categories"].append({"id": 9, "name": "ignore"})
    region = {"image_id": 5, "category_id": 9, "bbox": [1, 2, 30, 40], "id": 77}
    write_json(tmp_path / "annotations" / "train.json", content)
    assert data.read("cocovid", tmp_path, "train").classes == ("cat", "dog")
    content["annotations"].insert(1, region)
    write_json(tmp_path / "annotations" / "train.json", content)
    records = data.read("cocovid", tmp_path, "train")
    assert records.classes == ("cat", "dog") and records.category_ids == (3, 18)
    assert records.labels[:3].tolist() == [0, 1, 0]
    assert records.crowd.tolist() == [False, False, False, True, True]
    assert (records.boxes[3:] == [1, 2, 31, 42]).all() and set(records.labels[3:]) == {0, 1}
    assert "1 regions are ignored, for every class" in records.notes
    dogs = data.read("cocovid", tmp_path, "train", classes=("dog", "ignore"))
    assert dogs.classes == ("dog",)
    assert dogs.crowd.tolist() == [False, True] and dogs.labels.tolist() == [0, 0]


def test_folders_are_videos_where_none_are_listed(tmp_path):
    """With the numbers that label files of the same names have."""
    names = {"a": "two/x_10", "b": "one/7", "c": "two/x_9"}
    content = coco_content()
    for image, name in zip(content["images"], names.values(), strict=True):
        image["file_name"] = f"{name}.jpg"
        write_image(tmp_path / "images" / f"{name}.jpg", (image["height"], image["width"]))
    path = write_json(tmp_path / "official.json", content)
    records = data.read("cocovid", tmp_path, "val", annotation=path)
    assert records.videos == ("two", "one") and records.video.tolist() == [0, 1, 0]
    assert records.frame.tolist() == [10, 7, 9] and records.image_ids.tolist() == [12, 5, 900]
    assert records.category_ids == (3, 18)
    assert 'no list "videos": of images in 2 folders each is one' in records.notes


def test_errors(tmp_path):
    write_images(tmp_path / "frames")
    path = tmp_path / "annotations" / "train.json"
    with pytest.raises(UserError, match="no annotations/train.json below.*expected"):
        data.read("cocovid", tmp_path, "train")
    with pytest.raises(UserError, match="there is no folder"):
        data.read("cocovid", tmp_path / "none", "train")
    write_json(path, coco_content())  # stills
    with pytest.raises(UserError, match='"videos" is missing or empty.*-d coco'):
        data.read("cocovid", tmp_path, "train")
    content = video_content()
    for change, words in (
        ({"images": coco_content()["images"]}, 'a.jpg has no "video_id" or no "frame_id"'),
        ({"videos": []}, '"videos" is missing or empty.*-d coco'),
        ({"videos": content["videos"][:1]}, "a.jpg is frame 5 of video 7, .*not in the list"),
        ({"images": [*content["images"], {**content["images"][0], "id": 1}]}, "another image is"),
    ):
        write_json(path, {**content, **change})
        with pytest.raises(UserError, match=words):
            data.read("cocovid", tmp_path, "train")


@needs("drone_ir")
def test_real_set():
    train, val = (data.read("cocovid", SHARED / "drone_ir", split) for split in ("train", "val"))
    assert (len(train), len(train.boxes), len(train.videos)) == (869, 1023, 14)
    assert (len(val), len(val.boxes), len(val.videos)) == (380, 454, 6)
    assert train.classes == val.classes == ("AIRPLANE", "BIRD", "DRONE", "HELICOPTER")
    videos = Videos(val)
    assert sum(videos.length(i) for i in range(len(videos))) == 380
    assert not train.notes and val.frame[:3].tolist() == [0, 1, 2]
