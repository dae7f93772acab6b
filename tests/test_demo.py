import json

import cv2
import numpy as np
import pytest

import demo
from tests.calls import Call
from tests.miniature import write_weight
from utils import output, vis
from utils.video import Video, Writer
from utils.window import Window

CLASSES = ("cat", "dog", "cow")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Calls demo.py in `tmp_path`, without a screen."""
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    call = Call(monkeypatch, capfd, tmp_path)
    return lambda *flags: call("demo", *flags, "--device", "cpu")


@pytest.fixture(scope="module")
def weight(tmp_path_factory):
    """An untrained model's checkpoint: at --conf 0 it finds something everywhere."""
    return write_weight(tmp_path_factory.mktemp("weight") / "w.pth", CLASSES)


def noise(*size_hw):
    return np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)


def test_a_folder_of_images(run, tmp_path, weight):
    names = ["a.jpg", "a.png", "deep/b.bmp"]
    for name in names:
        vis.save(tmp_path / "photos" / name, noise(60, 80))
    (tmp_path / "photos" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (tmp_path / "photos" / "notes.md").touch()
    flags = ["--weight", weight, "--conf", 0, "--save_txt", "--save_json", "--show"]
    code, said, err = run("--source", "photos", *flags, "--classes", "dog", "cat")
    assert not code, said + err
    out = tmp_path / "detections" / "1"
    drawn = [path.relative_to(out).as_posix() for path in out.rglob("*.*")]
    texts = ["labels/a.txt", "labels/a.png.txt", "labels/deep/b.txt"]
    assert sorted(drawn) == sorted([*names, *texts, "detections.json"])
    assert cv2.imread(str(out / "a.png")).shape == (60, 80, 3)
    assert (cv2.imread(str(out / "a.png")) != noise(60, 80)).any()
    written = json.loads((out / "detections.json").read_text())
    assert {item["class"] for each in written for item in each["objects"]} == {"cat", "dog"}
    assert "no window can be opened here: the pictures are written to detections" in said
    assert "3 images" in said and "cut.jpg" in said and "images/s" in said
    code, said, err = run("--source", "photos/a.jpg", "--weight", weight)
    assert (tmp_path / "detections/2/a.jpg").exists() and "results: detections" in said


def test_a_video(run, tmp_path, weight):
    with Writer(tmp_path / "film", 12.5) as writer:
        for _ in range(10):
            writer.write(noise(48, 64))
    code, said, err = run("--source", "film.mp4", "--weight", weight, "--conf", 0, "--save", "out")
    assert not code, said + err
    video = Video(str(tmp_path / "out" / "film.mp4"))
    assert (video.count, video.fps) == (10, 12.5)
    assert len([image for _, image in video.frames() if image.shape == (48, 64, 3)]) == 10
    assert "10 images" in said and err == ""
    code, said, err = run("--source", "film.mp4", "--weight", weight, "--save", ".")
    assert code == 2 and "would be overwritten" in err
    assert Video(str(tmp_path / "film.mp4")).count == 10
    code, said, err = run("--source", "film.mp4", "--weight", weight, "--every", 2)
    assert not code and "5 images" in said
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
    code, said, err = run("--source", source, "--weight", weight)
    assert code == 2, said + err
    assert expected in err and "Traceback" not in err
    assert list(tmp_path.rglob("detections/*/*")) == []


def test_the_window_is_closed_at_the_end(run, tmp_path, weight, monkeypatch):
    class Screen(Window):
        def show(self, image, title):
            self.closed = False
            screens.append(self)

        def wait(self):
            return "quit"

        def close(self):
            self.closed = True

    screens = []
    monkeypatch.setattr(output.window, "can_show", lambda: True)
    monkeypatch.setattr(demo, "Window", Screen)
    vis.save(tmp_path / "a.jpg", noise(60, 80))
    code, said, err = run("--source", "a.jpg", "--weight", weight, "--show")
    assert not code and "1 images" in said, said + err
    assert [screen.closed for screen in screens] == [True]


def test_a_class_that_the_model_does_not_know(run, tmp_path, weight):
    vis.save(tmp_path / "a.jpg", noise(60, 80))
    code, said, err = run("--source", "a.jpg", "--weight", weight, "--classes", "dogg")
    assert code == 2 and "did you mean dog?" in err
