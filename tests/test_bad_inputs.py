"""Bad data, paths and flags, each answered by a sentence that names the file and by exit code 2, or
by a counted drop. A row is (name, how to spoil, words of the answer); see also test_bad_runs.py.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.calls import TINY, cut, empty, spoil, table
from tests.miniature import coco_content, write_images, write_json, write_voc

# ---- VOC: f is VOCdevkit/VOC2007 of a set of the images a, b, c


BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'
VOC_REFUSED = [
    ("no root", lambda f: shutil.rmtree(f.parents[1]), ("there is no folder", "download_voc07.sh")),
    ("an empty root", lambda f: shutil.rmtree(f.parent), ("VOCdevkit/VOC2007", "expected:")),
    ("no lists", lambda f: shutil.rmtree(f / "ImageSets"), ("ImageSets/Main", "download_voc07")),
    (
        "an empty list",
        lambda f: empty(f / "ImageSets/Main/trainval.txt"),
        ("trainval.txt", "empty"),
    ),
    (
        "a list that is no text",
        lambda f: (f / "ImageSets/Main/trainval.txt").write_bytes(b"\xff\xfe\x00a"),
        ("trainval.txt", "cannot be read"),
    ),
    (
        "a list of images without xml",
        lambda f: (f / "ImageSets/Main/trainval.txt").write_text("nobody\n"),
        "nobody.xml",
    ),
    ("a missing image", lambda f: (f / "JPEGImages/a.jpg").unlink(), ("JPEGImages", "data.check")),
    ("a cut JPEG", lambda f: cut(f / "JPEGImages/b.jpg"), ("b.jpg", "cut off")),
    ("an empty JPEG", lambda f: empty(f / "JPEGImages/b.jpg"), ("b.jpg", "empty")),
    (
        "a text named .jpg",
        lambda f: (f / "JPEGImages/b.jpg").write_text("hello, not a picture"),
        ("b.jpg", "not an image"),
    ),
    (
        "an image of another size",
        lambda f: shutil.copy(f / "JPEGImages/a.jpg", f / "JPEGImages/b.jpg"),
        ("b.jpg", "in the file", "in the labels"),
    ),
    ("a cut xml", lambda f: cut(f / "Annotations/a.xml"), ("a.xml", "no valid xml")),
    ("an empty xml", lambda f: empty(f / "Annotations/a.xml"), ("a.xml", "no valid xml")),
    (
        "an xml that is none",
        lambda f: (f / "Annotations/a.xml").write_text("1 0.5 0.5 0.1 0.1\n"),
        ("a.xml", "no valid xml"),
    ),
    ("an entity bomb", lambda f: (f / "Annotations/a.xml").write_text(BOMB), ("a.xml", "refused")),
    (
        "an xml in UTF-16",
        lambda f: (f / "Annotations/a.xml").write_text("<annotation/>", encoding="utf-16"),
        ("a.xml", "refused"),
    ),
    (
        "a class that classes.txt does not list",
        lambda f: (f.parents[1] / "classes.txt").write_text("Cat\ndog\n"),
        ("a.xml", "'cat'", "Cat"),
    ),
    (
        "an empty classes.txt",
        lambda f: empty(f.parents[1] / "classes.txt"),
        ("classes.txt", "one class name a line"),
    ),
    (
        "the same class twice",
        lambda f: (f.parents[1] / "classes.txt").write_text("cat\ndog\ncat\n"),
        ("classes.txt", "each once"),
    ),
    (
        "a binary classes.txt",
        lambda f: (f.parents[1] / "classes.txt").write_bytes(bytes(range(128, 256))),
        ("classes.txt", "class names"),
    ),
    ("no list to evaluate on", lambda f: (f / "ImageSets/Main/test.txt").unlink(), "val"),
]


@table(VOC_REFUSED)
def test_voc_sets_that_are_refused(row, call):
    folder = write_voc(call.folder / "set", test="b")
    row[1](folder)
    call.refused(row[2], "train", "-d", "voc", "--root", call.folder / "set", *TINY)
    assert not (call.folder / "runs").exists()


VOC_DROPS = [  # of the first object of a.xml: (1, 1, 21, 31) there
    ("a box with NaN", "<xmin>1<", "<xmin>nan<", "1 boxes that are no four finite numbers"),
    ("an infinite box", "<xmax>21<", "<xmax>inf<", "1 boxes that are no four finite numbers"),
    ("a box of a word", "<ymin>1.0<", "<ymin>top<", "1 boxes that are no four finite numbers"),
    ("reversed corners", "<xmin>1<", "<xmin>55<", "1 boxes of zero or negative size"),
    ("a box of zero size", "<xmax>21<", "<xmax>1<", "1 boxes of zero or negative size"),
    ("a box far over the edge", "<xmax>21<", "<xmax>900<", "1 boxes reached more than 2 px over"),
    ("a box that is no number", "<xmax>21<", "<xmax><", "1 boxes that are no four finite numbers"),
]


@table(VOC_DROPS)
def test_voc_boxes_that_are_dropped_and_counted(row, call):
    folder = write_voc(call.folder / "set", test="b")
    _, old, new, words = row
    spoil(folder / "Annotations" / "a.xml", old, new)
    code, out, err = call(
        "train", "-d", "voc", "--root", call.folder / "set", *TINY, "--vis_targets"
    )
    assert code == 0, err
    assert words in out and "a.xml" in out


# ---- COCO: a change of the json's content, or of its bytes


def annotation(**values):
    return lambda content: content["annotations"][0].update(values)


COCO_REFUSED = [
    ("a category unknown", annotation(category_id=99), ("annotation 0", "99")),
    (
        "an image id twice",
        lambda c: c["images"].append(dict(c["images"][0], file_name="d.jpg")),
        ("image id 12", "twice"),
    ),
    ("an image not there", lambda c: c["images"][1].update(file_name="gone.jpg"), "gone.jpg"),
    ("no file names", lambda c: [i.pop("file_name") for i in c["images"]], "file_name"),
    ("no categories", lambda c: c.pop("categories"), "categories"),
    ("no images", lambda c: c.pop("images"), "images"),
    ("an empty list of images", lambda c: c.update(images=[], annotations=[]), "lists no images"),
    ("an id that is a word", lambda c: c["images"][0].update(id="first"), ("id", "instances_tr")),
]


@table(COCO_REFUSED)
def test_coco_sets_that_are_refused(row, call):
    content = coco_content()
    row[1](content)
    call.refused(row[2], "train", *coco_flags(call, content))


COCO_BYTES = [
    ("a cut json", lambda text: text[: len(text) // 2], "no valid json"),
    ("a json that is a list", lambda text: b"[1, 2]", "expected an object"),
    ("an empty json", lambda text: b"", "no valid json"),
    ("a json in Latin-1", lambda text: text.replace(b"cat", b"caf\xe9"), "no valid json"),
    ("a json in lists without end", lambda text: b"[" * 10**5, "json"),
    ("a json that is a picture", lambda text: b"\x89PNG\r\n\x1a\n" * 9, "no valid json"),
]


@table(COCO_BYTES)
def test_json_files_that_are_refused(row, call):
    flags = coco_flags(call, coco_content())
    path = call.folder / "set" / "annotations" / "instances_train.json"
    path.write_bytes(row[1](path.read_bytes()))
    call.refused((row[2], "instances_train.json"), "train", *flags)


COCO_DROPS = [
    ("a box of NaN", annotation(bbox=[float("nan"), 1, 2, 3]), "1 boxes that are no four finite"),
    ("a box of three numbers", annotation(bbox=[1, 2, 3]), "1 boxes that are no four finite"),
    ("a box of words", annotation(bbox="1 2 3 4"), "1 boxes that are no four finite"),
    ("no box", lambda c: c["annotations"][0].pop("bbox"), "1 boxes that are no four finite"),
    ("a box outside the image", annotation(bbox=[500, 500, 9, 9]), "1 boxes outside their image"),
    ("a box of width zero", annotation(bbox=[5, 5, 0, 9]), "1 boxes of zero or negative size"),
    ("a box without an image", annotation(image_id=77), "1 annotations of images that are not"),
]


@table(COCO_DROPS)
def test_coco_boxes_that_are_dropped_and_counted(row, call):
    content = coco_content()
    row[1](content)
    code, out, err = call("train", *coco_flags(call, content), "--vis_targets")
    assert code == 0, err
    assert row[2] in out


def coco_flags(call, content):
    """A set with this json to train on and a good one to evaluate on."""
    root = call.folder / "set"
    for split, each in (("train", content), ("val", coco_content())):
        write_images(root / split)
        write_json(root / "annotations" / f"instances_{split}.json", each)
    return ["-d", "coco", "--root", root, *TINY]


# ---- YOLO: f is the set's root; labels/train/a.txt has two lines, b.txt one


def write_yolo(root: Path) -> Path:
    for split in ("train", "val"):
        write_images(root / "images" / split)
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "a.txt").write_text("0 .2 .4 .3 .3\n1 .6 .5 .5 .5\n")
        (root / "labels" / split / "b.txt").write_text("0 .5 .5 .8 .8\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def first_line(text):
    return lambda f: spoil(f / "labels/train/a.txt", "0 .2 .4 .3 .3", text)


YOLO_REFUSED = [
    ("no root", shutil.rmtree, ("there is no folder", "expected:")),
    ("no labels", lambda f: shutil.rmtree(f / "labels"), "no images with label files"),
    ("an empty split", lambda f: [p.unlink() for p in f.glob("images/train/*")], "no images"),
    ("label 99", first_line("99 .2 .4 .3 .3"), ("a.txt, line 1", "class 99", "cat, dog")),
    ("a label below zero", first_line("-1 .2 .4 .3 .3"), ("a.txt, line 1", "-1")),
    ("boxes in pixels", lambda f: in_pixels(f), ("pixels", ".txt")),
    ("labels of other names", lambda f: renamed(f), ("no label file", "image's name")),
    ("a cut JPEG", lambda f: cut(f / "images/train/b.jpg"), ("b.jpg", "cut off")),
    ("an empty classes.txt", lambda f: empty(f / "classes.txt"), "classes.txt"),
]
YOLO_DROPS = [
    ("a word", first_line("cat .2 .4 .3 .3"), "1 lines that are not numbers"),
    ("three numbers", first_line("0 .2 .4"), "1 lines that are neither"),
    ("NaN", first_line("0 nan .4 .3 .3"), "1 lines with a value that is not in 0..1"),
    ("infinity", first_line("0 .2 inf .3 .3"), "1 lines with a value that is not in 0..1"),
    ("a box of no width", first_line("0 .2 .4 0 .3"), "1 boxes of zero or negative size"),
    ("a line twice", first_line("1 .6 .5 .5 .5"), "1 lines that repeat an earlier one"),
    ("labels without an image", lambda f: stray(f), "1 label files have no image"),
    ("binary labels", lambda f: binary(f), "lines that are not numbers"),
]


def in_pixels(folder):
    for path in (folder / "labels/train").iterdir():
        path.write_text("0 20 30 10 10\n")


def renamed(folder):
    for path in (folder / "labels/train").iterdir():
        path.rename(path.with_name(f"label_{path.name}"))


def stray(folder):
    (folder / "labels/train/nobody.txt").write_text("0 .5 .5 .1 .1\n")


def binary(folder):
    (folder / "labels/train/a.txt").write_bytes(bytes(range(128, 256)))


@table(YOLO_REFUSED)
@pytest.mark.parametrize("kind", ["yolo", "custom"])
def test_yolo_sets_that_are_refused(row, kind, call):
    root = write_yolo(call.folder / "set")
    row[1](root)
    words = "there is no folder" if kind == "custom" and not root.exists() else row[2]
    if kind == "custom" and row[0] == "no labels":
        words = ("no format known", "images")
    call.refused(words, "train", "-d", kind, "--root", root, *TINY)


@table(YOLO_DROPS)
def test_yolo_lines_that_are_dropped_and_counted(row, call):
    root = write_yolo(call.folder / "set")
    row[1](root)
    code, out, err = call("train", "-d", "yolo", "--root", root, *TINY, "--vis_targets")
    assert code == 0, err
    assert row[2] in out


def test_flow_annotations_without_an_image(call):
    voc = write_voc(call.folder / "voc", test="b")
    for split in ("training", "test"):
        shutil.copytree(voc / "JPEGImages", call.folder / "set" / split / "images")
        shutil.copytree(voc / "Annotations", call.folder / "set" / split / "annotations")
    (call.folder / "set/training/images/b.jpg").unlink()
    words = ("1 annotation files have no image", "b.xml")
    call.refused(words, "train", "-d", "flow", "--root", call.folder / "set", *TINY)


# ---- checking and converting


def test_check_counts_what_training_refuses(call):
    root = write_yolo(call.folder / "set")
    first_line("99 .2 .4 .3 .3")(root)
    cut(root / "images/val/b.jpg")
    code, out, err = call("check", "-d", "yolo", "--root", root)
    assert code == 1 and "Traceback" not in err
    assert "class 99" in out and "b.jpg" in out


CONVERSIONS = [
    ("an output that is there", "--from voc --to coco --root SET --out SET", "is there already"),
    ("an output below a file", "--from voc --to coco --root SET --out FILE/x", "FILE"),
    ("an unknown format", "--from vocc --to coco --root SET --out OUT", "'vocc'; did you mean voc"),
    ("a format that is not written", "--from voc --to pickle --root SET --out OUT", "pickle"),
    ("a set that is not there", "--from voc --to coco --root gone --out OUT", "gone"),
    ("a faulty set", "--from voc --to coco --root BAD --out OUT", ("b.jpg", "cut off")),
]


@table(CONVERSIONS)
def test_conversions_that_are_refused(row, call):
    (call.folder / "FILE").write_text("a file in the way")
    write_voc(call.folder / "SET", test="b")
    cut(write_voc(call.folder / "BAD", test="b") / "JPEGImages/b.jpg")
    call.refused(row[2], "convert", *row[1].split())
    assert {path.name for path in call.folder.iterdir()} - {"cache"} == {"FILE", "SET", "BAD"}


# ---- paths and flags


FLAGS = [
    ("a root below a file", "train -d coco --root FILE/x", "FILE"),
    ("a VOC root below a file", "train -d voc --root FILE/x", "FILE"),
    ("a built-in set below a file", "train -d synthetic --root FILE/x", ("FILE", "--root")),
    (
        "runs below a file",
        "train -v yolox-nano -d voc --root SET --save_folder FILE/x",
        ("FILE", "save_folder"),
    ),
    (
        "runs in a file",
        "train -v yolox-nano -d voc --root SET --save_folder FILE",
        ("FILE", "save_folder"),
    ),
    ("no classes file", "train -d voc --root SET --classes gone.txt", "gone.txt"),
    ("an unknown data set", "train -d vocc", "'vocc'; did you mean voc"),
    ("an unknown model", "train -v yolox-nanno", "yolox-nano"),
    ("an unknown backbone", "train --backbone cspdarknet-nanno", "cspdarknet-nano"),
    ("an unknown flag", "train --batchsize 1", "did you mean --batch_size"),
    ("a side of 100", "train --img_size 100", "multiple of 32"),
    ("no epoch", "train --epochs 0", "1 or more"),
    ("a batch of a word", "train --batch_size many", "whole number"),
    ("a rate below zero", "train --lr -1", "0 or more"),
    ("no such device", "train --device tpu9", "tpu9"),
    ("resume nothing", "train --resume", ("no unfinished run", "runs")),
    ("resume what is not there", "train --resume gone", "gone"),
    ("resume a folder without last.pth", "train --resume SET", "last.pth"),
    ("pictures of targets of a run", "train --resume SET --vis_targets", "--weight"),
    ("no weights", "eval --weight gone.pth -d voc", "gone.pth"),
    ("published weights that are missing", "test --weight yolox_s.pth", "0.1.1rc0/yolox_s.pth"),
    ("confidence 2", "eval --weight gone.pth --conf 2", "from 0 to 1"),
]


@table(FLAGS)
def test_flags_and_paths(row, call):
    (call.folder / "FILE").write_text("a file in the way")
    write_voc(call.folder / "SET", test="b")
    script, *flags = row[1].split()
    call.refused(row[2], script, *flags, *([] if "--device" in flags else ["--device", "cpu"]))
    left = {path.name for path in call.folder.iterdir()} - {"cache", "runs"}
    assert left == {"FILE", "SET"} and not list(call.folder.glob("runs/*"))


def test_a_gpu_that_is_not_there(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    call.refused(("cuda", "0 CUDA devices"), "train", "--device", "cuda")
    write_voc(call.folder / "set", test="b")
    flags = ["-d", "voc", "--root", call.folder / "set", *TINY[:-2], "--vis_targets", "--cuda"]
    code, out, _ = call("train", *flags)
    assert code == 0 and "warning: --cuda, but this PyTorch finds no CUDA device" in out


@pytest.mark.skipif(os.name != "posix", reason="POSIX only")
def test_names_that_are_no_utf8(call):
    """A path of any bytes works; what cannot be printed is shown in escapes."""
    root = Path(os.fsdecode(os.fsencode(call.folder / "caf") + b"\xe9"))
    folder = write_voc(root, test="b")
    name = Path(os.fsdecode(b"b\xff"))
    (folder / "JPEGImages" / "b.jpg").rename(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "Annotations" / "b.xml").rename(folder / "Annotations" / f"{name}.xml")
    call.refused("b.xml", "train", "-d", "voc", "--root", root, *TINY)
    flags = ["-d", "voc", "--root", root, "--save_folder", root / "runs", *TINY]
    (folder / "ImageSets/Main/trainval.txt").write_text("a\nc\n")
    (folder / "ImageSets/Main/test.txt").write_text("a\n")
    code, out, err = call("train", *flags, "--epochs", 1)
    assert code == 0, err
    assert "caf\\udce9" in out
    assert (root / "runs/voc/yolox-nano/1/metrics.json").is_file()


def test_the_table_is_long():
    rows = (VOC_REFUSED, VOC_DROPS, COCO_REFUSED, COCO_BYTES, COCO_DROPS, YOLO_REFUSED, YOLO_DROPS)
    assert sum(map(len, (*rows, CONVERSIONS, FLAGS))) >= 90
