import json

import numpy as np
import pytest

import data
from data.faults import Faults
from tests.miniature import SHARED, needs
from tests.moving import write_film, write_image
from utils.errors import UserError

LINES = """1,7,11,6,20,10,1,1,1
3,7,12.5,6,20,10,1,2,0.5
3,8,1,1,5,5,0,1,1
4,9,3,3,5,5,1,1
bad line
1.5,1,1,1,1,1,1,1,1
"""


def write_films(root, names=("a", "b.c"), lines=LINES, suffix=".avi", folder="clips"):
    for name in names:
        write_film(root / folder / f"{name}{suffix}", 3)
        (root / "gt" / name).mkdir(parents=True)
        (root / "gt" / name / "gt.txt").write_text(lines)


def write_folders(root, split="train", info="imDir=pictures\n", images="pictures"):
    for name in ("a", "b"):
        for number in (1, 2, 3):
            write_image(root / split / name / images / f"{number:06d}.jpg", (48, 64))
        (root / split / name / "gt").mkdir()
        (root / split / name / "gt" / "gt.txt").write_text(LINES)
        (root / split / name / "seqinfo.ini").write_text(f"[Sequence]\nname=%s\n{info}")


def check(records, names):
    assert records.videos == names and records.frame.tolist() == [1, 2, 3] * 2
    assert records.video.tolist() == [0, 0, 0, 1, 1, 1] and (records.sizes == (48, 64)).all()
    assert np.diff(records.starts).tolist() == [1, 0, 2] * 2
    assert records.boxes[:3].tolist() == [[10, 5, 30, 15], [11.5, 5, 31.5, 15], [0, 0, 5, 5]]
    assert records.labels[:3].tolist() == [0, 1, 0]
    assert records.crowd[:3].tolist() == [False, False, True]  # it does not count
    notes = " ".join(records.notes)
    for words in ("not at least eight", "no whole number", "frames that are not there"):
        assert f"{words}" in notes


@pytest.mark.parametrize("folder", ["clips", "videos", "."])
def test_films(tmp_path, folder):
    write_films(tmp_path, folder=folder)
    records = data.read("mot", tmp_path, "train", classes=("cat", "dog"))
    check(records, ("a", "b.c"))
    assert records.classes == ("cat", "dog")
    first = "a.avi" if folder == "." else f"{folder}/a.avi"
    assert records.files[:2] == [f"{first}/000000.jpg", f"{first}/000001.jpg"]
    assert data.read("mot", tmp_path, "train").classes == ("class 1", "class 2")


@pytest.mark.parametrize("info, images", [("imDir=pictures\n", "pictures"), ("", "img1")])
def test_folders(tmp_path, info, images):
    write_folders(tmp_path, "train", info, images)
    write_folders(tmp_path, "test", info, images)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    check(data.read("mot", tmp_path, "train"), ("a", "b"))
    records = data.read("mot", tmp_path, "val", classes=("dog",))
    assert records.classes == ("dog",) and records.category_ids == (2,)
    assert records.crowd.tolist() == [False, True] * 2  # what is ignored is so for every class
    assert records.files[0] == f"test/a/{images}/000001.jpg"
    check(data.read("custom", tmp_path, "train"), ("a", "b"))


def test_parts_by_lists(tmp_path):
    write_films(tmp_path)
    with pytest.raises(UserError, match="has no val part, only train; list .*val.txt.*--ann"):
        data.read("mot", tmp_path, "val")
    (tmp_path / "train.txt").write_text("clips/b.c.avi\n")
    (tmp_path / "val.txt").write_text("a\n\n")
    assert data.read("mot", tmp_path, "train").videos == ("b.c",)
    assert data.read("mot", tmp_path, "val").videos == ("a",)
    assert data.read("mot", tmp_path, "val", annotation=tmp_path / "train.txt").videos == ("b.c",)
    (tmp_path / "val.txt").write_text("a\nx\n")
    with pytest.raises(UserError, match="no gt/CLIP/gt.txt for x; known are a, b.c"):
        data.read("mot", tmp_path, "val")


def test_the_oldest_sets_have_one_class(tmp_path):
    write_films(tmp_path, ("a",), "1,1,1,1,5,5,1,-1,-1,-1\n2,1,1,1,5,5,1,-1,-1,-1\n")
    records = data.read("mot", tmp_path, "train")
    assert records.classes == ("class 1",) and records.labels.tolist() == [0, 0]


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no gt.txt of a video below.*expected"):
        data.read("mot", tmp_path, "train")
    write_films(tmp_path, ("a",))
    with pytest.raises(UserError, match="gt.txt, line 2: class 2, but .* has 1 .numbers 1 to 1"):
        data.read("mot", tmp_path, "train", classes=("cat",))
    (tmp_path / "clips" / "a.avi").unlink()
    with pytest.raises(UserError, match="a.mp4: the video file is missing"):
        data.read("mot", tmp_path, "train")
    faults = Faults(collect=True)
    data.read("mot", tmp_path, "train", faults=faults)
    assert [fault.kind for fault in faults.found if fault.fatal] == [
        "images cannot be read",
        "sets without images",
    ]


def test_frames_that_are_there_twice(tmp_path):
    write_folders(tmp_path)
    write_image(tmp_path / "train" / "a" / "pictures" / "1.png", (48, 64))
    write_image(tmp_path / "train" / "a" / "pictures" / "cover.png", (48, 64))
    with pytest.raises(UserError, match="1.png and 000001.jpg are both frame 1"):
        data.read("mot", tmp_path, "train")


@needs("drone_ir")
def test_real_films_have_the_boxes_of_their_extracted_frames():
    root = SHARED / "drone_ir"
    films = data.read("mot", root, "train", classes=("AIRPLANE", "BIRD", "DRONE", "HELICOPTER"))
    assert (len(films), len(films.boxes), len(films.videos)) == (6195, 7326, 20)
    frames = data.read("cocovid", root, "val")
    content = json.loads((root / "annotations" / "val.json").read_text())
    sources = {image["id"]: image["source_frame"] for image in content["images"]}
    row_of = {file: row for row, file in enumerate(films.files)}
    for row in range(len(frames)):
        number = sources[int(frames.image_ids[row])]
        name = f"clips/{frames.videos[frames.video[row]]}.mp4/{number:06d}.jpg"
        one, other = frames.boxes_of(row), films.boxes_of(row_of[name])
        assert np.abs(one["boxes"] - other["boxes"]).max(initial=0) < 0.02
        assert (one["labels"] == other["labels"]).all()


@needs("drone_visible")
def test_real_films():
    records = data.read("mot", SHARED / "drone_visible", "train")
    assert (len(records), len(records.boxes), len(records.videos)) == (2440, 2546, 8)
    assert not any("left out" in note for note in records.notes)
