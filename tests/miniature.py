"""A set in miniature, written in every format, for the tests of the readers."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import models
import recipes
from data import synthetic
from utils import checkpoint

SHARED = Path(__file__).parents[2] / "shared" / "data"
FILES = {"a": (40, 60), "b": (50, 50), "c": (30, 80)}  # c has no objects
OBJECTS = [  # image, class, xyxy
    ("a", "cat", (0, 0, 20, 30)),
    ("a", "dog", (10, 5, 60, 40)),
    ("b", "cat", (3, 4, 44, 45)),
]


def needs(name):
    """Skips a test where the real data are not at hand."""
    return pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"no {SHARED / name}")


def write_images(folder, suffix=".jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, size_hw in FILES.items():
        image = np.zeros((*size_hw, 3), np.uint8)
        (folder / (name + suffix)).write_bytes(cv2.imencode(suffix, image)[1])


def coco_content(prefix=""):
    """Ids with gaps, categories out of order."""
    ids, categories = {"a": 12, "b": 5, "c": 900}, {"dog": 18, "cat": 3}
    annotations = [
        {
            "id": number,
            "image_id": ids[name],
            "category_id": categories[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "segmentation": [[0, 0, 1, 1, 2, 2]],
        }
        for number, (name, label, (x1, y1, x2, y2)) in enumerate(OBJECTS)
    ]
    images = [
        {"id": ids[name], "file_name": f"{prefix}{name}.jpg", "height": h, "width": w}
        for name, (h, w) in FILES.items()
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_voc(root, train="a b c", suffix=".jpg", year=2007, **lists):
    """A VOC tree; keyword arguments name further lists, such as test="b"."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    write_images(folder / "JPEGImages", suffix)
    write_xmls(folder / "Annotations")
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for name, content in {"trainval": train, **lists}.items():
        (main / f"{name}.txt").write_text("\n".join(content.split()) + "\n")
    return folder


def voc_xml(name):
    """The annotation of a miniature image; coordinates count from 1."""
    height, width = FILES[name]
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}.0</ymin>"
        f"<xmax>{x2 + 1}</xmax><ymax>{y2 + 1}</ymax></bndbox></object>"
        for owner, label, (x1, y1, x2, y2) in OBJECTS
        if owner == name
    )
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"


def write_xmls(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / f"{name}.xml").write_text(voc_xml(name))


def write_flow(root, splits=("training", "test"), images="images", labels="annotations"):
    """A pair of folders for each split, all with the same files."""
    for split in splits:
        write_images(root / split / images)
        write_xmls(root / split / labels)


def yolo_lines(name, classes=("cat", "dog")):
    """The label lines of a miniature image."""
    height, width = FILES[name]
    return [
        f"{classes.index(label)} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
        f"{(x2 - x1) / width} {(y2 - y1) / height} "
        for owner, label, (x1, y1, x2, y2) in OBJECTS
        if owner == name
    ]


def write_yolo(root, folders=("images/train", "images/val"), classes=("cat", "dog"), listed=True):
    """A YOLO tree; c, which has no objects, has no txt."""
    for folder in folders:
        write_images(root / folder)
        labels = root / folder.replace("images", "labels")
        labels.mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            (labels / f"{name}.txt").write_text("\n".join(yolo_lines(name, classes)) + "\n")
    if listed:
        (root / "classes.txt").write_text("\n".join(classes))


def write_weight(path, classes, version="yolox-nano"):
    """The checkpoint of an untrained model of these classes, whose scores are all about 0.5."""
    recipe = recipes.with_sides(recipes.RECIPES[version], 64)
    torch.manual_seed(0)
    model = models.build_model(recipe, classes)
    for name, value in model.named_parameters():
        if name.endswith(("preds.0.bias", "preds.1.bias", "_pred.bias")):
            value.data.zero_()
    known = {"recipe": recipes.as_dict(recipe), "classes": list(classes)}
    checkpoint.save(path, {"model": model.state_dict(), **known})
    return path


def write_synthetic(root, count):
    """The first images of each part of the built-in set, in its place."""
    few = replace(synthetic.SYNTHETIC, counts=(("train", count), ("val", count)))
    synthetic._write_set(Path(root) / few.folder, few)


def check_same(records, classes=("cat", "dog"), within=0.0):
    """Whatever the format was, the objects are OBJECTS; boxes may differ by `within` pixels."""
    assert records.classes == classes
    assert [Path(file).stem for file in records.files] == list(FILES)
    assert [tuple(size) for size in records.sizes.tolist()] == list(FILES.values())
    assert np.abs(records.boxes - [box for _, _, box in OBJECTS]).max() <= within
    assert records.labels.tolist() == [classes.index(label) for _, label, _ in OBJECTS]
    assert np.diff(records.starts).tolist() == [2, 1, 0]
    assert not records.crowd.any() and not records.difficult.any()
    assert all(records.path(i).is_file() for i in range(len(records)))
    assert records.boxes.dtype == np.float32 and records.labels.dtype == np.int64
