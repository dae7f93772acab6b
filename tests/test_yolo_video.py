import numpy as np
import pytest

import data
from data import xsvid
from data.clips import Videos
from data.faults import Faults
from data.frames import by_name, number_of, numbers_of
from data.numbering import ignored_among
from tests.moving import write_image
from utils.errors import UserError

FRAMES = {  # of videos one.v and two; the number that the name means, size, label lines
    "one.v/img_0012.png": (12, (40, 60), ["0 0.5 0.5 0.5 0.5", "1 0.25 0.25 0.5 0.5"]),
    "one.v/img_0009.png": (9, (50, 50), []),
    "one.v/img_0010.png": (10, (40, 60), None),  # no file
    "two/0000003.jpg": (3, (30, 80), ["2 0.5 0.5 1 1", "1 0.5 0.5 0.1 0.2"]),
}
CLASSES = ("cat", "dog", "ignore", "cow")


def write_set(root, frames=FRAMES, classes=CLASSES, line="./{}", images="images", labels="labels"):
    """The frames, one of the videos in a folder with a dot, and a list in which they stand so."""
    for name, (_, size_hw, lines) in frames.items():
        write_image(root / images / name, size_hw)
        text = (root / labels / name).with_suffix(".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        if lines is not None:
            text.write_text("".join(f"{content}\n" for content in lines))
    if line:
        listed = "\n".join(line.format(name) for name in frames)
        (root / "train.txt").write_text(listed)
        (root / "test.txt").write_text(listed.splitlines()[-1])
    if classes:
        (root / "classes.txt").write_text("\n".join(classes))


def read(root, split="train", **options):
    return data.read("yolovideo", root, split, **options)


def check(records):
    assert records.classes == ("cat", "dog", "cow") and records.category_ids == (1, 2, 4)
    assert records.videos == ("one.v", "two") and records.video.tolist() == [0, 0, 0, 1]
    assert records.frame.tolist() == [9, 10, 12, 3]  # in order, with their gaps
    assert records.sizes.tolist() == [[50, 50], [40, 60], [40, 60], [30, 80]]
    assert np.diff(records.starts).tolist() == [0, 0, 2, 4]
    assert records.boxes[:2].tolist() == [[15, 10, 45, 30], [0, 0, 30, 20]]
    # The region is a crowd of each class, and the object beside it is none.
    assert records.labels.tolist() == [0, 1, 0, 1, 2, 1]
    assert records.crowd.tolist() == [False, False, True, True, True, False]
    assert (records.boxes[2:5] == [0, 0, 80, 30]).all()
    assert "1 regions are ignored, for every class" in records.notes
    videos = Videos(records)
    assert [videos.length(video) for video in range(len(videos))] == [3, 1]


@pytest.mark.parametrize(
    "line", ["./{}", "{}", "images/{}", "/a/b.c/images/{}", "x\\y\\images\\{}", "sets/images/{}"]
)
def test_lists(tmp_path, line):
    root = tmp_path / "set.v1"  # a dot in a folder's name cuts nothing off
    write_set(root, line=line)
    check(read(root))
    assert read(root, "test").files[:] == ["images/two/0000003.jpg"]
    assert "these are the test images" in read(root, "val").notes[0]


@pytest.mark.parametrize("images", ["images/train", "train/images"])
def test_folders(tmp_path, images):
    write_set(tmp_path, line="", images=images, labels=images.replace("images", "labels"))
    check(read(tmp_path))


def test_a_list_elsewhere(tmp_path):
    write_set(tmp_path)
    path = tmp_path / "other.txt"
    path.write_text("./two/0000003.jpg\n\n./two/0000003.jpg\n")
    records = read(tmp_path, annotation=path)
    assert records.frame.tolist() == [3] and records.videos == ("two",)
    assert "1 lists name an image twice" in records.notes[-1]


def test_classes(tmp_path):
    write_set(tmp_path)
    dogs = read(tmp_path, classes=("dog", "ignore"))
    assert dogs.classes == ("dog",) and dogs.crowd.tolist() == [False, True, False]
    assert "1 objects of other classes were left out" in dogs.notes
    (tmp_path / "classes.txt").unlink()
    records = read(tmp_path)
    assert records.classes == ("class 0", "class 1", "class 2") and not records.crowd.any()
    assert read(tmp_path, "test").classes == records.classes  # though it has no 0
    assert read(tmp_path, classes=("a", "b", "c")).classes == ("a", "b", "c")
    with pytest.raises(UserError, match="ignore is no class, .* write it to classes.txt"):
        read(tmp_path, classes=("a", "b", "ignore"))
    (tmp_path / "data.yaml").write_text("names: [a, b]\nsplit_length: [1, 4]\n")
    with pytest.raises(UserError, match="0000003.txt, line 1: class 2, .* has 2 .numbers 0 to 1"):
        read(tmp_path)
    with pytest.raises(UserError, match="none of the classes dog is known to the set"):
        read(tmp_path, classes=("dog",))
    assert ignored_among(["Ignore", "other", "ignorant"]) == {"Ignore"}
    assert ignored_among(["car", "Ignored-regions ", "Others"]) == {"Ignored-regions ", "Others"}


def test_numbers_of_frames():
    names = ["0000012", "v1_000123", "img_12b3", "x-7", "a_2_08.5"]
    assert [number_of(name) for name in names] == [12, 123, 12, 7, 8]
    odd = ["", "left", "frame_10_left", "a_" + "9" * 19, "\u0661\u0662"]
    assert [number_of(name) for name in odd] == [None] * 5
    assert numbers_of(["a_3", "b_1"]) == [3, 1]
    assert numbers_of(["a_3", "b_3"]) is None and numbers_of(["3", "last"]) is None
    assert by_name(["f10", "f9", "f1", "g", "f9a"]) == [3, 1, 0, 4, 2]


def test_frames_without_numbers_go_by_their_names(tmp_path):
    names = ["v/10.left.png", "v/cover.png", "v/9.left.png"]
    write_set(tmp_path, {name: (0, (20, 20), []) for name in names})
    records = read(tmp_path)
    assert [file.rpartition("/")[2] for file in records.files] == [
        "9.left.png",
        "10.left.png",
        "cover.png",
    ]
    assert records.frame.tolist() == [0, 1, 2]
    assert any("counted in the order of their names: v" in note for note in records.notes)


def test_errors(tmp_path):
    with pytest.raises(UserError, match="there is no folder.*expected"):
        read(tmp_path / "none")
    with pytest.raises(UserError, match="no frames with label files"):
        read(tmp_path)
    write_set(tmp_path)
    (tmp_path / "images" / "two" / "0000003.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="0000003.jpg: the file is empty"):
        read(tmp_path)
    faults = Faults(collect=True)
    assert len(read(tmp_path, faults=faults)) == 3 and len(faults.found) == 1
    (tmp_path / "train.txt").write_text("./one.v/none.png")
    with pytest.raises(UserError, match="none.png"):
        read(tmp_path)
    (tmp_path / "train.txt").write_text("./one.v")
    with pytest.raises(UserError, match="train.txt: no names of images: one.v"):
        read(tmp_path)
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(UserError, match="the list is empty"):
        read(tmp_path)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(UserError, match="has no val part, only train"):
        read(tmp_path, "val")


def test_xsvid(tmp_path):
    frames = {
        "v/0.png": (0, (100, 100), ["3 0.5 0.5 0.1 0.1", "4 0.2 0.2 0.1 0.1"]),
        "v/1.png": (1, (100, 100), ["6 0.5 0.5 0.1 0.1"]),
    }
    write_set(tmp_path, frames, classes=())
    first, second = (data.read(name, tmp_path, "train") for name in ("xsvid", "xsvid-v2"))
    assert len(first.classes) == 8 and len(second.classes) == 6
    for records, names in ((first, xsvid.CLASSES), (second, xsvid.CLASSES_V2)):
        assert records.classes == tuple(name for name in names if name != "ignore")
    objects = [r.classes[r.labels[~r.crowd][-1]] for r in (first, second)]
    assert objects == ["personCrowd", "boat"]
    assert first.crowd.sum() == 8 and second.crowd.sum() == 6
    assert first.category_ids == (1, 2, 3, 4, 6, 7, 8, 9)
    assert second.category_ids == (0, 1, 2, 3, 5, 6)


def test_custom_finds_it(tmp_path):
    write_set(tmp_path)
    records = data.read("custom", tmp_path, "train")
    check(records)
    assert records.notes[0].startswith("found: YOLO video (")
    (tmp_path / "train.txt").write_text("./flat.png")  # stills
    (tmp_path / "test.txt").unlink()
    assert data.read("custom", tmp_path, "train").notes[0].startswith("found: YOLO txt")


def test_evaluation_ignores_regions_for_every_class(tmp_path):
    write_set(tmp_path)
    truth = read(tmp_path).ground_truth()
    crowds = [a["category_id"] for a in truth["annotations"] if a["iscrowd"]]
    assert crowds == [1, 2, 4]
