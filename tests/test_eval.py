"""eval.py: its flags, its files, and what it prints."""

import json
import os
import tempfile

import pytest
import torch

from tests.miniature import (
    OBJECTS,
    coco_content,
    write_images,
    write_json,
    write_voc,
    write_weight,
)
from utils import checkpoint

IDS = {"a": 12, "b": 5, "c": 900}  # of the miniature json
RIGHT = [  # every object of it, found
    {
        "image_id": IDS[name],
        "category_id": {"cat": 3, "dog": 18}[label],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": 0.9,
    }
    for name, label, (x1, y1, x2, y2) in OBJECTS
]


@pytest.fixture
def coco(tmp_path):
    """The flags that name the miniature set."""
    write_images(tmp_path / "images")
    ann = write_json(tmp_path / "set.json", coco_content())
    return ["-d", "coco", "--root", tmp_path, "--ann", ann, "--images", tmp_path / "images"]


@pytest.fixture
def weight(tmp_path):
    file = write_weight(tmp_path / "tiny.pth", ("cat", "dog"))
    return ["--weight", file, "--device", "cpu", "--num_workers", 0]


def numbers(said):
    return [line for line in said.splitlines() if " = " in line or line.startswith("AP ")]


def test_results_are_scored_without_a_model(call, coco):
    results = write_json(call.folder / "found.json", RIGHT)
    code, said, _ = call("eval", *coco, "--results", results)
    assert not code and "AP 1.0000, AP50 1.0000, AP75 1.0000" in said
    assert f"{results} on 3 images" in said
    assert "note: -1: no ground truth of this size: large" in said
    table = said.splitlines()[said.splitlines().index(numbers(said)[-1]) + 1 :][:3]
    assert [line.split()[0] for line in table] == ["class", "cat", "dog"]
    assert "VOC07" not in said
    code, said, _ = call("eval", *coco, "--results", results, "--limit", 1, "--voc")
    assert not code and "1 images" in said and "VOC07 11-point" in said and "VOC area" in said


def test_detections_written_are_scored_as_they_were(call, coco, weight):
    more = ["--max_dets", 1, 300, "--areas", "tiny:0:20", "big:20:inf", "--voc"]
    code, first, err = call("eval", *coco, *weight, *more, "--out", "found.json", "--conf", 0.2)
    assert not code, err
    assert "maxDets=300 ]" in first and "area=big 20-inf px" in first
    entries = json.loads((call.folder / "found.json").read_text())
    assert entries and set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    assert {entry["category_id"] for entry in entries} <= {3, 18}
    code, second, _ = call("eval", *coco, *more, "--results", "found.json")
    assert not code and numbers(first) == numbers(second) and len(numbers(first)) > 25
    assert sorted(os.listdir(call.folder)) == [
        "cache",
        "found.json",
        "images",
        "set.json",
        "tiny.pth",
    ]


def test_a_voc_set_gets_both_voc_numbers(call, weight):
    write_voc(call.folder, test="a b")
    code, said, err = call("eval", "-d", "voc", "--root", call.folder, *weight)
    assert not code, err
    assert "VOC07 11-point  AP @[ IoU 0.50, mean of 2 classes ]" in said
    assert said.count("VOC area") == 2  # the mean and the table of classes
    assert "mAP" not in said


def test_nothing_found_tells_the_highest_score(call, coco, weight):
    code, said, _ = call("eval", *coco, *weight, "--conf", 1)
    assert not code and "AP 0.0000" in said
    assert "note: no detection at all above the confidence threshold" in said
    assert "note: --conf is 1; the highest score in 3 images is 0." in said


FAULTY = [
    ("no json", "[1, 2", "no whole json"),
    ("no list", '{"annotations": []}', "a COCO data set"),
    ("no detections", "[1]", "entry 0 is no object"),
    ("no box", [RIGHT[0], {"image_id": 5, "category_id": 3, "score": 1}], "entry 1 has bbox None"),
    ("short box", [{**RIGHT[0], "bbox": [1, 2, 3]}], "no list of four numbers"),
    ("negative box", [{**RIGHT[0], "bbox": [1, 2, -3, 4]}], "negative size"),
    ("box of texts", [{**RIGHT[0], "bbox": ["1", "2", "3", "4"]}], "no list of four numbers"),
    ("box that is not finite", [{**RIGHT[0], "bbox": [1, 2, 3, float("inf")]}], "four numbers"),
    ("score that is no number", [{**RIGHT[0], "score": "high"}], "'high'"),
    ("score NaN", [{**RIGHT[0], "score": float("nan")}], "'nan'"),
    ("id that is a text", [{**RIGHT[0], "image_id": "a.jpg"}], "'a.jpg'"),
    ("id with a fraction", [{**RIGHT[0], "image_id": 12.5}], "no whole number"),
    ("huge id", [{**RIGHT[0], "image_id": 2**70}], "no whole number"),
    ("unknown image", [RIGHT[0], {**RIGHT[0], "image_id": 13}], "image ids 13 are not in the set"),
    ("unknown class", [{**RIGHT[0], "category_id": 4}], "category ids 4 are not in the set"),
]


@pytest.mark.parametrize("row", FAULTY, ids=[row[0] for row in FAULTY])
def test_faulty_results(row, call, coco):
    _, content, words = row
    path = call.folder / "found.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    call.refused((str(path), words), "eval", *coco, "--results", path)


def test_results_without_detections(call, coco):
    write_json(call.folder / "found.json", [])
    code, said, _ = call("eval", *coco, "--results", "found.json")
    assert not code and "AP 0.0000" in said and "no detection at all" in said


FLAGS = [
    ("nothing to score", "", "--weight FILE"),
    ("both", "--weight x.pth --results found.json", "leave out"),
    ("a file of no set", "--results found.json", "-d voc --root"),
    ("a threshold for results", "--results found.json -d coco --conf 0.5", "--conf is for a model"),
    ("a size for results", "--results found.json -d coco --min_size 64", "--min_size is for a"),
    ("two kinds of size", "--weight x.pth --img_size 64 --max_size 64", "--img_size is the side"),
    ("no results", "--results nowhere.json -d coco {coco}", "nowhere.json: cannot be read"),
    ("results that are a folder", "--results images -d coco {coco}", "images: cannot be read"),
    ("a pickle", "--weight x.pth --out found.pkl", "name it found.json"),
    ("a folder to write", "--weight x.pth --out folder.json", "is a folder"),
    ("no folder to write to", "--weight x.pth --out nowhere/found.json", "there is no folder"),
    ("below a file", "--weight x.pth --out set.json/found.json", "there is no folder"),
    ("an area without sides", "--weight x.pth --areas tiny", "NAME:LOW:HIGH"),
    ("an area turned round", "--weight x.pth --areas tiny:32:16", "NAME:LOW:HIGH"),
    ("an area twice", "--weight x.pth --areas tiny:0:8 tiny:0:16", "not different names"),
    ("no limit", "--weight x.pth --max_dets 0", "not a whole number of 1 or more"),
]


@pytest.mark.parametrize("row", FLAGS, ids=[row[0] for row in FLAGS])
def test_flags_that_cannot_be(row, call, coco):
    _, flags, words = row
    (call.folder / "folder.json").mkdir()
    write_json(call.folder / "found.json", RIGHT)
    given = flags.replace("{coco}", " ".join(map(str, coco[2:]))).split()
    call.refused(words, "eval", *given)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(call, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (call.folder / "sealed").mkdir()
    words = ("sealed/found.json", "Permission denied", "choose another folder")
    call.refused(words, "eval", "--weight", "x.pth", "--out", "sealed/found.json")


def test_annotations_are_not_written_over(call, coco, weight, tmp_path):
    """Named, by another name, found in their usual place, or named by a checkpoint."""
    ann, usual = tmp_path / "set.json", tmp_path / "annotations" / "instances_val2017.json"
    before = ann.read_text()
    (tmp_path / "link.json").symlink_to(ann)
    usual.parent.mkdir()
    usual.write_text(before)
    for out in (ann, "set.json", "link.json"):
        call.refused("is read as", "eval", *coco, *weight, "--out", out)
    call.refused("no detections", "eval", "-d", "coco", *weight, "--out", usual)
    call.refused("is read as", "eval", *weight, "--classes", "link.json", "--out", ann)
    content = checkpoint.read(weight[1])
    flags = dict.fromkeys(("root", "images", "classes", "voc_train"))
    names = write_json(tmp_path / "names.json", ["cat"])  # a list, as detections are
    content["arguments"] = {**flags, "dataset": "coco", "ann": [str(names)]}
    checkpoint.save(weight[1], content)
    call.refused("is read as", "eval", *weight, "--out", names)
    assert usual.read_text() == ann.read_text() == before


def test_weights_that_are_not_finite_are_refused(call, coco, weight):
    content = checkpoint.read(weight[1])
    name = "head.stems.1.conv.weight"
    assert name in content["model"]
    content["model"][name][0, 0] = torch.nan
    checkpoint.save(weight[1], content)
    call.refused((name, "not finite"), "eval", *coco, *weight)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fills_leaves_the_old_file(step, call, coco, weight, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    (call.folder / "found.json").write_text("[]")
    monkeypatch.setattr(os, step, fail)
    call.refused(
        ("found.json: No space left on device", "unharmed"),
        *("eval", *coco, *weight, "--out", "found.json"),
    )
    assert (call.folder / "found.json").read_text() == "[]"
    assert not list(call.folder.glob(".found*"))
