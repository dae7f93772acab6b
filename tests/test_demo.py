import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import demo
import models
import recipes
from models.convert import recipe_of
from utils import checkpoint, cli, vis
from utils.video import Video, Writer

CLASSES = ("cat", "dog", "cow")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Calls demo.py in `tmp_path`, without a screen."""
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    def call(*command):
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, command), "--device", "cpu"])
        with pytest.raises(SystemExit) as end:
            cli.run_main(demo.main)
        said = capfd.readouterr()
        return SimpleNamespace(returncode=end.value.code or 0, stdout=said.out, stderr=said.err)

    return call


@pytest.fixture(scope="module")
def weight(tmp_path_factory):
    """An untrained model's checkpoint: at --conf 0 it finds something everywhere."""
    torch.manual_seed(0)
    recipe = replace(recipes.RECIPES["yolox-nano"], img_size=64)
    model = models.build_model(recipe, CLASSES)
    state = model.state_dict()
    path = tmp_path_factory.mktemp("weight") / "w.pth"
    known = {**recipe_of(state), "img_size": 64}
    checkpoint.save(path, {"model": state, "recipe": known, "classes": list(CLASSES)})
    return path


def noise(*size_hw):
    return np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)


def test_a_folder_of_images(run, tmp_path, weight):
    names = ["a.jpg", "a.png", "deep/b.bmp"]
    for name in names:
        vis.save(tmp_path / "photos" / name, noise(60, 80))
    (tmp_path / "photos" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (tmp_path / "photos" / "notes.md").touch()
    flags = ["--weight", weight, "--conf", 0, "--save_txt", "--save_json", "--show"]
    done = run("--source", "photos", *flags, "--classes", "dog", "cat")
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "detections" / "1"
    drawn = [path.relative_to(out).as_posix() for path in out.rglob("*.*")]
    texts = ["labels/a.txt", "labels/a.png.txt", "labels/deep/b.txt"]
    assert sorted(drawn) == sorted([*names, *texts, "detections.json"])
    assert cv2.imread(str(out / "a.png")).shape == (60, 80, 3)
    assert (cv2.imread(str(out / "a.png")) != noise(60, 80)).any()
    written = json.loads((out / "detections.json").read_text())
    assert {item["class"] for each in written for item in each["objects"]} == {"cat", "dog"}
    assert "no window can be opened here: the pictures are written to a new folder" in done.stdout
    assert "3 images" in done.stdout and "cut.jpg" in done.stdout and "images/s" in done.stdout
    again = run("--source", "photos/a.jpg", "--weight", weight)
    assert (tmp_path / "detections/2/a.jpg").exists() and "results: detections" in again.stdout


def test_a_video(run, tmp_path, weight):
    with Writer(tmp_path / "film", 12.5) as writer:
        for _ in range(10):
            writer.write(noise(48, 64))
    done = run("--source", "film.mp4", "--weight", weight, "--conf", 0, "--save", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    video = Video(str(tmp_path / "out" / "film.mp4"))
    assert (video.count, video.fps) == (10, 12.5)
    assert len([image for _, image in video.frames() if image.shape == (48, 64, 3)]) == 10
    assert "10 images" in done.stdout and done.stderr == ""
    same = run("--source", "film.mp4", "--weight", weight, "--save", ".")
    assert same.returncode == 2 and "would be overwritten" in same.stderr
    assert Video(str(tmp_path / "film.mp4")).count == 10
    half = run("--source", "film.mp4", "--weight", weight, "--every", 2)
    assert half.returncode == 0 and "5 images" in half.stdout
    video = Video(str(tmp_path / "detections" / "1" / "film.mp4"))
    assert (video.count, video.fps) == (5, 6.25)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("63", "camera 63 cannot be opened"),
        ("notes.mp4", "notes.mp4: not a video"),
        ("cut.jpg", "cut off or damaged"),
        ("nowhere", "no such file or folder"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(run, tmp_path, weight, source, expected):
    (tmp_path / "notes.mp4").write_text("this is a text file\n" * 100)
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    done = run("--source", source, "--weight", weight)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.rglob("detections/*/*")) == []


def test_a_class_that_the_model_does_not_know(run, tmp_path, weight):
    vis.save(tmp_path / "a.jpg", noise(60, 80))
    done = run("--source", "a.jpg", "--weight", weight, "--classes", "dogg")
    assert done.returncode == 2 and "did you mean dog?" in done.stderr
