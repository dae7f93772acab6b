import json

import pytest

import data
from data.custom import CHUNK, keys_of
from tests.miniature import (
    SHARED,
    check_same,
    coco_content,
    needs,
    write_flow,
    write_images,
    write_json,
    write_voc,
    write_yolo,
)
from utils.errors import UserError

CLASSES = ("cat", "dog")


def read(root, split="train", **options):
    return data.read("custom", root, split, **options)


def write_coco(root, splits=("train", "val")):
    for split in splits:
        write_images(root / split)
        write_json(root / "annotations" / f"instances_{split}.json", coco_content())


def cocovid_content():
    """a and b are frames 0 and 1 of one video, c is another."""
    content = coco_content()
    content["videos"] = [{"id": 1, "name": "first"}, {"id": 2, "name": "second"}]
    for image, (video, frame) in zip(content["images"], ((1, 0), (1, 1), (2, 0)), strict=True):
        image |= {"video_id": video, "frame_id": frame}
    return content


@pytest.mark.parametrize(
    "write, found, within",
    [
        (write_coco, "COCO json", 0),
        (lambda root: write_voc(root, test="a b c"), "VOC lists", 0),
        (write_flow, "xml files", 0),
        (write_yolo, "YOLO txt", 1e-5),
    ],
)
def test_the_same_set_in_every_format(tmp_path, write, found, within):
    write(tmp_path)
    for split in ("train", "val", "test"):
        records = read(tmp_path, split, classes=CLASSES)
        check_same(records, CLASSES, within)
        assert records.notes[0].startswith(f"found: {found} ({tmp_path}")


@pytest.mark.parametrize(
    "files",
    [
        {"train": "train/_annotations.coco.json", "val": "valid/_annotations.coco.json"},
        {"train": "annotations/my_train_set.json", "val": "annotations/my_val_set.json"},
        {"train": "train.json", "val": "val.json"},
        {"train": "labels.json", "val": "labels_valid.json"},
    ],
)
def test_json_files_by_any_name(tmp_path, files):
    for file in files.values():
        content = coco_content()
        content["info"] = {"description": 'no "videos"'}
        path = write_json(tmp_path / file, content)
        write_images(path.parent if path.name.startswith("_") else tmp_path / "images")
    write_json(tmp_path / "annotations" / "captions_train.json", {"images": [], "info": []})
    write_json(tmp_path / "notes.json", [1])
    for split, file in (*files.items(), ("test", files["val"])):
        records = read(tmp_path, split)
        check_same(records)
        assert str(tmp_path / file) in records.notes[0]
        told = "these are the val images, in place of test" in records.notes
        assert told == (split == "test")


def test_cocovid(tmp_path):
    write_images(tmp_path / "frames")
    for split in ("train", "val"):
        write_json(tmp_path / "annotations" / f"{split}.json", cocovid_content())
    records = read(tmp_path)
    check_same(records)
    assert records.notes[0].startswith("found: CocoVID json")
    assert records.videos == ("first", "second") and records.video.tolist() == [0, 0, 1]


def test_keys_of_a_large_json(tmp_path):
    path = tmp_path / "x.json"
    head, tail = '{"images": [{}], "annotations": [', "]}"
    for filling in range(CHUNK - 60, CHUNK - 20):  # the key is cut between two chunks
        path.write_text(f'{head}{" " * filling}], "videos" : [{{"id": 1}}{tail}')
        assert keys_of(path) == {"images", "annotations", "videos"}
    path.write_text(f'{head}], "videos": [{tail}')  # none: a set of stills
    assert keys_of(path) == {"images", "annotations"}
    with pytest.raises(UserError, match="y.json: cannot be read"):
        keys_of(tmp_path / "y.json")


def test_several_formats(tmp_path):
    write_yolo(tmp_path)
    write_voc(tmp_path, test="a")
    records = read(tmp_path, classes=CLASSES)
    assert "VOC lists" in records.notes[0] and "also found: YOLO txt" in records.notes[1]
    assert records.notes[1].endswith("for -d yolo")
    (tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "a.xml").write_text("none")
    with pytest.raises(UserError, match="a.xml: no valid xml.*; also found: YOLO txt"):
        read(tmp_path)


def test_json_named_by_the_user(tmp_path):
    write_yolo(tmp_path)
    write_images(tmp_path / "else" / "where")
    path = write_json(tmp_path / "else" / "mine.json", coco_content())
    check_same(read(tmp_path, annotation=path, images=tmp_path / "else" / "where"))
    write_json(path, cocovid_content())
    records = read(tmp_path, "val", annotation=path, images=tmp_path / "else" / "where")
    assert len(records.videos) == 2


def test_options_go_where_they_belong(tmp_path):
    write_voc(tmp_path, train="a b", test="c")
    write_voc(tmp_path, train="c", year=2012)
    assert len(read(tmp_path, years="07")) == 2 and len(read(tmp_path)) == 3
    with pytest.raises(UserError, match="VOC lists .* does not take --images"):
        read(tmp_path, images="somewhere")
    write_coco(tmp_path / "coco_set")
    with pytest.raises(UserError, match="COCO json .* does not take --voc_train"):
        read(tmp_path / "coco_set", years="07")


@pytest.mark.parametrize(
    "write",
    [
        lambda root: write_coco(root, ["train"]),
        write_voc,
        lambda root: write_flow(root, ["train"]),
        lambda root: write_yolo(root, ["images"]),
    ],
)
def test_set_without_val(tmp_path, write):
    write(tmp_path)
    assert len(read(tmp_path)) == 3
    for split in ("val", "test"):
        with pytest.raises(UserError, match=f"no {split} part.*data.convert.*--val_part 0.2"):
            read(tmp_path, split)


def test_no_format(tmp_path):
    write_images(tmp_path / "pictures")
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 1}]))
    for root, words in ((tmp_path, "holds pictures, results.json"), (tmp_path / "x", "no folder")):
        with pytest.raises(UserError, match=words) as error:
            read(root)
        for name in ("COCO json", "CocoVID", "VOC", "FloW", "YOLO txt", str(root)):
            assert name in str(error.value)


@needs("foosball")
def test_real_sets():
    counts = {"foosball": (106, 21), "bccd": (292, 72), "dolly": (150, 50), "drone_ir": (869, 380)}
    formats = {"foosball": "COCO", "bccd": "VOC", "dolly": "YOLO", "drone_ir": "CocoVID"}
    for name, count in counts.items():
        parts = [read(SHARED / name, split) for split in ("train", "val")]
        assert tuple(map(len, parts)) == count
        assert parts[0].notes[0].startswith(f"found: {formats[name]}")
