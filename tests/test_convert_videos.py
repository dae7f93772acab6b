import json
import sys

import numpy as np
import pytest

import data
from data import convert
from tests.miniature import coco_content, write_images, write_json
from tests.moving import shown, write_image
from tests.test_cocovid import video_content
from tests.test_mot import write_films
from tests.test_visdrone_vid import write_part
from tests.test_yolo_video import write_set
from utils import cli
from utils.image import read_image

COLUMNS = ("sizes", "starts", "labels", "crowd", "video", "frame")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in this process and returns what it printed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(source, target, root, out, *flags):
        places = ("--from", source, "--to", target, "--root", str(root), "--out", str(out))
        flags = flags or ("--split", "train")
        monkeypatch.setattr(sys, "argv", ["convert", *places, *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            cli.run_main(convert.main)
        said = capsys.readouterr()
        assert not end.value.code, said.err
        return said.out

    return call


def check_same(one, other, within=0.0):
    assert one.classes == other.classes and one.videos == other.videos
    for name in COLUMNS:
        assert (vars(one)[name] == vars(other)[name]).all(), name
    assert np.abs(one.boxes - other.boxes).max() <= within


def test_yolo_video_to_cocovid_and_back(tmp_path, run):
    write_set(tmp_path / "a")
    both = ("--split", "train", "val")
    text = run("yolovideo", "cocovid", tmp_path / "a", tmp_path / "b", *both)
    assert "stills" not in text
    run("cocovid", "yolovideo", tmp_path / "b", tmp_path / "c", *both)
    sets = [
        data.read(kind, tmp_path / name, "train")
        for kind, name in (("yolovideo", "a"), ("cocovid", "b"), ("yolovideo", "c"))
    ]
    check_same(sets[0], sets[1])
    check_same(sets[0], sets[2], within=1e-5)
    assert (tmp_path / "c" / "classes.txt").read_text() == "cat\ndog\ncow\nignore\n"
    lines = (tmp_path / "c" / "labels" / "two" / "0000003.txt").read_text().splitlines()
    assert [line[0] for line in lines] == ["3", "1"]  # the region once
    # A video of the other part has the same name, and gets another.
    assert (tmp_path / "c" / "train.txt").read_text().split()[-1] == "./two/0000003.jpg"
    assert (tmp_path / "c" / "val.txt").read_text() == "./two_2/0000003.jpg\n"


def test_films_become_frames(tmp_path, run):
    write_films(tmp_path / "a", ("x", "y"), "1,1,1,1,9,9,1,1,1\n3,1,1,1,9,9,0,1,1\n")
    (tmp_path / "classes.txt").write_text("cat")
    flags = (
        "--classes",
        tmp_path / "classes.txt",
        "--link",
        "--split",
        "train",
    )  # films cannot be linked to
    for target in ("cocovid", "yolovideo"):
        run("mot", target, tmp_path / "a", tmp_path / target, *flags)
        one = data.read("mot", tmp_path / "a", "train", classes=("cat",))
        records = data.read(target, tmp_path / target, "train")
        check_same(one, records, within=1e-5)
        assert records.frame.tolist() == [1, 2, 3] * 2
        shows = [shown(read_image(records.path(index))) for index in range(len(records))]
        assert shows == [0, 1, 2] * 2
    assert "2 videos became stills" in run("mot", "yolo", tmp_path / "a", tmp_path / "d", *flags)
    stills = data.read("yolo", tmp_path / "d", "train")
    assert stills.files[0] == "images/train/x.avi/000000.jpg" and len(stills) == 6


def test_visdrone_to_cocovid(tmp_path, run):
    write_part(tmp_path / "a" / "train")
    text = run("visdrone", "cocovid", tmp_path / "a", tmp_path / "b", "--link", "--split", "train")
    assert "train: 6 images, 46 boxes read; 6 images, 46 boxes written" in text
    one = data.read("visdrone", tmp_path / "a", "train")
    check_same(one, data.read("cocovid", tmp_path / "b", "train"))


def test_ids_and_numbers_below_zero(tmp_path, run):
    write_images(tmp_path / "a" / "frames")
    content = video_content()
    content["images"][1]["frame_id"] = -3  # of video seven, which has 5 as well
    write_json(tmp_path / "a" / "annotations" / "train.json", content)
    run("cocovid", "cocovid", tmp_path / "a", tmp_path / "b")
    written = json.loads((tmp_path / "b" / "annotations" / "train.json").read_text())
    assert [image["id"] for image in written["images"]] == [12, 5, 900]
    assert [image["frame_id"] for image in written["images"]] == [5, -3, 0]
    assert data.read("cocovid", tmp_path / "b", "train").videos == ("four", "seven")
    text = run("cocovid", "yolovideo", tmp_path / "a", tmp_path / "c")
    assert "2 frames were counted anew" in text
    records = data.read("yolovideo", tmp_path / "c", "train")
    assert sorted(zip(records.files, records.frame.tolist(), strict=True)) == [
        ("images/four/0000000.jpg", 0),
        ("images/seven/0000000.jpg", 0),
        ("images/seven/0000008.jpg", 8),
    ]


def test_stills_become_videos_of_one_frame(tmp_path, run):
    write_images(tmp_path / "a" / "train")
    write_json(tmp_path / "a" / "annotations" / "instances_train.json", coco_content())
    for target in ("cocovid", "yolovideo"):
        text = run("coco", target, tmp_path / "a", tmp_path / target)
        assert "3 stills became videos of one frame" in text
        records = data.read(target, tmp_path / target, "train")
        assert records.videos == ("a", "b", "c") and records.frame.tolist() == [0, 0, 0]
        assert records.video.tolist() == [0, 1, 2] and len(records.boxes) == 3


def test_names_of_videos_are_safe_and_differ(tmp_path, run):
    content = {
        "videos": [],
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    for number, name in enumerate(("../x", "x", "a/x", "X.y")):
        write_image(tmp_path / "a" / "frames" / f"{number}.png", (20, 20))
        content["videos"].append({"id": number, "name": name})
        image = {"id": number, "file_name": f"{number}.png", "height": 20, "width": 20}
        content["images"].append(image | {"video_id": number, "frame_id": 0})
    write_json(tmp_path / "a" / "annotations" / "train.json", content)
    run("cocovid", "yolovideo", tmp_path / "a", tmp_path / "b")
    videos = sorted(path.name for path in (tmp_path / "b" / "images").iterdir())
    assert videos == ["X.y", "a_x", "x", "x_2"]


def test_help_names_the_targets(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert", "--help"])
    with pytest.raises(SystemExit):
        cli.run_main(convert.main)
    assert "{coco,voc,yolo,cocovid,yolovideo}" in capsys.readouterr().out
