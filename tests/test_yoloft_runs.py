"""YOLOFT from its flags to its checkpoints, on three videos in miniature."""

import json
import sys

import numpy as np
import pytest
import torch

import train as train_script
from tests.calls import table
from tests.moving import write_image
from utils import checkpoint
from utils.run_folder import read_last

LENGTHS = {"one": 5, "two": 3, "three": 4}
TINY = "-v yoloft-nano --img_size 32 --num_workers 0 --device cpu".split()
SMALL = [*TINY, "--batch_size", "4"]
SPLIT = "--split_length 1 2 --split_start 0 1 --split_batch 1:6 2:3".split()


def write_set(folder):
    """A CocoVID set of tiny videos, each the training's and the validation's."""
    images, annotations = [], []
    for video, (name, length) in enumerate(LENGTHS.items(), start=1):
        for frame in range(length):
            file = f"{name}/{frame:04d}.jpg"
            write_image(folder / "frames" / file, (32, 32))
            number = len(images) + 1
            images.append({"id": number, "file_name": file, "video_id": video, "frame_id": frame})
            images[-1] |= {"height": 32, "width": 32}
            box = {"bbox": [4 + 2 * frame, 8, 12, 12], "area": 144, "iscrowd": 0}
            annotations.append({"id": number, "image_id": number, "category_id": 1, **box})
    content = {
        "videos": [{"id": v, "name": name} for v, name in enumerate(LENGTHS, start=1)],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "mover"}],
    }
    for split in ("train", "val"):
        path = folder / "annotations" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(set, run): an epoch of frames, then two of clips."""
    folder = tmp_path_factory.mktemp("yoloft")
    root = write_set(folder / "set")
    flags = ["train.py", "-d", "cocovid", "--root", root, *TINY, *SPLIT, "--epochs", 3]
    flags += ["--plain_epochs", 1, "--save_folder", folder / "runs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, flags)))
        assert train_script.main() == 0
    return root, folder / "runs" / "cocovid" / "yoloft-nano" / "1"


def test_frames_then_clips(trained):
    _, run = trained
    said = (run / "train.log").read_text().splitlines()
    stages = [line.split(", ", 1)[1] for line in said if line.startswith("stage")]
    assert stages == ["mosaic 1", "2 frames, mosaic 1", "2 frames, plain images"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    updates = [line["step"] for line in lines if line["mode"] == "val"]
    # 12 frames by 6 are 2 updates; pieces of 2 are 3, 2 and 2, by 3 three updates.
    assert updates[-1] == 2 + 3 + 3
    assert all(np.isfinite(line["loss"]) for line in lines if line["mode"] == "train")


def test_a_video_goes_on_from_stills_with_parts_frozen(trained, call, tmp_path):
    root, run = trained
    flags = ["-d", "cocovid", "--root", root, "--weight", run / "best.pth", "--epochs", 1]
    flags += ["--freeze", "backbone", "head", "--temporal_lr", 5, "--batch_size", 8]
    flags += ["--warmup_epochs", 0]
    flags += ["--num_workers", 0, "--device", "cpu", "--no_ema", "--save_folder", tmp_path]
    code, said, err = call("train", *flags)
    assert code == 0, err
    assert "4 frames" in said
    (last,) = tmp_path.glob("cocovid/yoloft-nano/*/last.pth")
    before = checkpoint.read(run / "best.pth")["model"]
    saved = read_last(last)
    changed = {n.split(".")[0] for n, x in saved["model"].items() if not torch.equal(x, before[n])}
    assert changed == {"memory", "neck"}
    scales = {group["name"]: group["scale"] for group in saved["optimizer"]["param_groups"]}
    assert scales["memory weight"] == 5 and scales["weight"] == 1
    assert "state" not in saved  # clips begin anew


def test_targets_of_clips_are_drawn_frame_by_frame(trained, call):
    root, _ = trained
    flags = ["-d", "cocovid", "--root", root, *SMALL, "--vis_targets", "--save_folder", call.folder]
    code, said, err = call("train", *flags)
    assert code == 0 and "4 frames" in said, err
    names = sorted(path.name for path in call.folder.glob("cocovid/*/targets/1/*.jpg"))
    frames = [int(name.split("_")[1].removesuffix(".jpg")) for name in names]
    assert len(names) == 16 and set(np.diff(frames[:4]).tolist()) <= {0, 1}


def test_stills_make_clips_of_one_frame(trained, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "-d", "coco", "-v", "yoloft-s"])
    recipe, _ = train_script.choose_recipe(train_script.parse_arguments(), None)
    assert {stage.clip.length for stage in recipe.stages} == {1}


BAD = (
    ("frozen, and nothing read", ["--freeze", "backbone"], ("--freeze keeps weights",)),
    (
        "a batch twice",
        ["--split_length", 2, "--split_batch", "2:3"],
        ("--batch_size counts frames", "--split_batch clips"),
    ),
    ("a length too many", ["--split_length", 1, 4], ("2 lengths", "--split_start 0 10")),
    ("a batch that is none", ["--split_batch", "4x6"], ("4x6", "4:6")),
    ("a length of no frame", ["--split_length", 0], ("0 is not a list", "1 or more")),
    (
        "all frozen",
        ["--freeze", "backbone", "neck", "head", "--temporal_lr", 0],
        ("nothing that learns",),
    ),
    ("an unknown part", ["--freeze", "body"], ("body", "backbone")),
    ("another family's flag", ["-v", "yolox-nano", "--interval", 2], ("option of yoloft",)),
)


@table(BAD)
def test_flags_that_make_no_sense(row, trained, call):
    root, _ = trained
    call.refused(row[2], "train", "-d", "cocovid", "--root", root, *SMALL, *row[1])
