"""eval.py and test.py on sets of videos: ids, regions to be ignored, small sizes, memory."""

import json

import cv2
import numpy as np
import pytest
import torch

import data
import models
import recipes
from data.films import Images
from data.streams import in_order, watched
from tests.detectors import SIZE as SIDE
from tests.detectors import settled
from tests.miniature import write_json
from utils import checkpoint
from utils.results import strong

CLASSES = ("cat", "ignore", "dog")  # the numbers of the label files
FRAMES = {"one": range(4), "two": (7, 8, 9), "three": (0,)}
OFFICIAL = {"cat": 3, "ignore": 40, "dog": 18}  # the json's own ids
SIZE = (48, 64)


@pytest.fixture
def root(tmp_path):
    """A set of label files in which cats walk above a region, with an official json beside it."""
    folder, images, annotations = tmp_path / "set", [], []
    rng = np.random.default_rng(0)
    for video, numbers in FRAMES.items():
        ground = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        for number in numbers:
            name = f"{video}/{number:07d}"
            for part in ("images", "labels"):
                (folder / part / video).mkdir(parents=True, exist_ok=True)
            shifted = np.roll(ground, number, axis=1)
            cv2.imwrite(str(folder / "images" / f"{name}.png"), shifted)
            image_id = 900 - len(images)
            size = {"height": SIZE[0], "width": SIZE[1]}
            images.append({"id": image_id, "file_name": f"{name}.png", **size})
            lines = []
            for label, (x, y, w, h) in ((0, (4 + number, 4, 10, 10)), (1, (8, 30, 40, 16))):
                middle = (x + w / 2) / SIZE[1], (y + h / 2) / SIZE[0]
                fractions = (*middle, w / SIZE[1], h / SIZE[0])
                lines.append(f"{label} {' '.join(map(repr, fractions))}\n")
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": OFFICIAL[CLASSES[label]],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
            (folder / "labels" / f"{name}.txt").write_text("".join(lines))
    names = [f"./{image['file_name']}" for image in images]
    (folder / "test.txt").write_text("\n".join(names))
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    categories = [{"id": number, "name": name} for name, number in OFFICIAL.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "official.json", content)
    return folder


@pytest.fixture(scope="module")
def weight(tmp_path_factory):
    """A network whose memory can be told in its scores."""
    file, classes = tmp_path_factory.mktemp("weight") / "tiny.pth", ["cat", "dog"]
    torch.manual_seed(0)
    model = settled("yoloft-nano", classes=classes)
    recipe = recipes.as_dict(recipes.with_sides(recipes.RECIPES["yoloft-nano"], SIDE))
    checkpoint.save(file, {"model": model.state_dict(), "recipe": recipe, "classes": classes})
    return ["--weight", file, "--device", "cpu"]


def labels(root):
    return ["-d", "yolovideo", "--root", root]


def official(root):
    return ["-d", "cocovid", "--root", root, "--ann", root / "official.json"]


def numbers(said):
    return [line for line in said.splitlines() if " = " in line or line.startswith("AP ")]


def perfect(root, name="found.json"):
    """Every cat found, in the ids of the official json."""
    content = json.loads((root / "official.json").read_text())
    rows = [
        {**{key: item[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.5}
        for item in content["annotations"]
        if item["category_id"] == OFFICIAL["cat"]
    ]
    return rows, root.parent / name


def test_what_lies_in_a_region_counts_for_nothing(call, root):
    rows, file = perfect(root)
    inside = [{**row, "bbox": [12, 33, 20, 10], "score": 0.9} for row in rows]
    write_json(file, [*rows, *inside])
    code, said, err = call("eval", *official(root), "--results", file)
    assert not code, err
    assert "AP 1.0000, AP50 1.0000, AP75 1.0000" in said
    assert "8 regions are ignored, for every class" in said
    outside = [{**row, "bbox": [12, 18, 20, 10], "score": 0.9} for row in rows]
    write_json(file, [*rows, *outside])
    code, said, _ = call("eval", *official(root), "--results", file)
    assert not code and "AP 0.5000, AP50 0.5000" in said


def test_sizes_of_small_objects(call, root):
    rows, file = perfect(root)
    write_json(file, rows)
    code, said, err = call("eval", *official(root), "--results", file)
    assert not code, err
    assert "IoU=0.75      | area= eS 0-12 px | maxDets=100 ] = 1.000" in said
    xsvid = "AP 1.0000, AP50 1.0000, AP75 1.0000, APeS 1.0000, APrS -1.0000, APgS -1.0000"
    assert xsvid in said.splitlines()
    assert "-1: no ground truth of this size: medium, large, rS 12-20 px, gS 20-32 px" in said


def test_trained_by_label_files_and_scored_on_the_official_json(call, root, weight):
    """The same numbers; the files have the ids of the set that was named."""
    said, entries = {}, {}
    for name, flags in (("own", labels(root)), ("official", official(root))):
        out = root.parent / f"{name}.json"
        code, said[name], err = call("eval", *flags, *weight, "--out", out, "--num_workers", 0)
        assert not code, err
        entries[name] = json.loads(out.read_text())
        code, again, err = call("eval", *flags, "--results", out)
        assert not code, err
        assert numbers(again) == numbers(said[name])
    assert numbers(said["own"]) == numbers(said["official"]) and len(numbers(said["own"])) == 22
    assert {entry["category_id"] for entry in entries["own"]} == {1, 3}
    assert {entry["category_id"] for entry in entries["official"]} == {3, 18}
    assert {entry["image_id"] for entry in entries["official"]} == set(range(893, 901))
    own, theirs = (sorted(entry["score"] for entry in each) for each in entries.values())
    assert own == theirs


def test_batches_and_number_formats_change_little(call, root, weight):
    def scores(*flags):
        code, _, err = call("eval", *labels(root), *weight, *flags, "--out", "found.json")
        assert not code, err
        return sorted(e["score"] for e in json.loads((call.folder / "found.json").read_text()))

    one = scores("--batch_size", 1, "--num_workers", 0)
    assert scores("--batch_size", 3, "--num_workers", 1) == pytest.approx(one, abs=1e-4)
    half = scores("--half", "--num_workers", 0)
    assert np.mean(half) == pytest.approx(np.mean(one), abs=0.02)


def shown(records, file):
    """The scores found in each picture that test.py wrote down."""
    content = json.loads(file.read_text())
    assert [entry["file"] for entry in content] == list(records.files)
    return [[found["score"] for found in entry["objects"]] for entry in content]


def test_pictures_are_drawn_of_frames_in_their_order(call, root, weight):
    """The set lists them in any order; what is found is what following each video finds."""
    content = json.loads((root / "official.json").read_text())
    content["images"].reverse()
    write_json(root / "official.json", content)
    flags = ["--conf", 0.05, "--save", "drawn", "--save_json"]
    code, _, err = call("test", *official(root), *weight, *flags)
    assert not code, err
    records = data.read("cocovid", root, "val", annotation=root / "official.json")
    order, videos = in_order(records)
    assert records.frame.tolist() == [0, 9, 8, 7, 3, 2, 1, 0] and order[3] == 1
    records = records.subset(order)
    model = models.load(weight[1], conf=0.05, nms=0.45)
    model = models.optimize(model)
    alone = []
    for index, video in enumerate(videos.tolist()):
        if index == 0 or video != videos[index - 1]:
            detect = model.follower()
        image = cv2.imread(str(records.path(index)))
        found = strong({k: v.numpy() for k, v in detect(image).items()}, 0.05)
        alone.append([round(score, 5) for score in found["scores"].tolist()])
    assert shown(records, call.folder / "drawn" / "detections.json") == alone
    second = model.detect(cv2.imread(str(records.path(2))))["scores"].tolist()
    assert alone[2] != [round(score, 5) for score in second]


def test_watched_sees_the_frames_before(root, weight):
    records = data.read("yolovideo", root, "val")
    model = models.load(weight[1])
    every = list(watched(model, records, range(8), Images().read))
    assert [index for index, _, _ in every] == list(range(8))
    some = list(watched(model, records, [2, 5], Images().read))
    assert [index for index, _, _ in some] == [2, 5]
    for index, image, found in some:
        assert np.array_equal(image, every[index][1])
        assert found["scores"].equal(every[index][2]["scores"])
        assert not found["scores"].equal(model.detect(image)["scores"])
    model.remembers = False
    for _, image, found in watched(model, records, [2, 5], Images().read):
        assert found["scores"].equal(model.detect(image)["scores"])
