import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import test as test_script
from models.detector import Detector
from tests.calls import Call
from tests.miniature import write_weight
from utils import vis

NAMES = ("cat", "dog")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Calls test.py in `tmp_path`, without a screen."""
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    call = Call(monkeypatch, capfd, tmp_path)
    return lambda *flags: call("test", *flags, "--device", "cpu")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """An untrained model of cats and dogs, and a COCO set of four images of cats and cows: the
    second has a crowd, the third is cut off, the fourth lies in a folder."""
    folder = tmp_path_factory.mktemp("pictures")
    write_weight(folder / "w.pth", NAMES)
    files = ["a.jpg", "b.png", "cut.jpg", "deep/a.jpg"]
    rng = np.random.default_rng(0)
    for name in files:
        vis.save(folder / "images" / name, rng.integers(0, 256, (60, 80, 3), np.uint8))
    (folder / "images" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    boxes = [(1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 1, 1), (4, 2, 0)]  # image, category, crowd
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 80, "height": 60}
            for i, name in enumerate(files, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": category,
                "bbox": [5 + 10 * i, 10, 20, 30],
                "area": 600,
                "iscrowd": crowd,
            }
            for i, (image, category, crowd) in enumerate(boxes)
        ],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    data = ["-d", "coco", "--ann", folder / "boxes.json", "--images", folder / "images"]
    return ["--weight", folder / "w.pth", *data, "--root", folder]


def test_pictures_keep_their_names_and_bad_files_are_listed(run, flags, tmp_path):
    code, said, err = run(*flags, "--conf", 0, "--save_json", "--slice", 48)
    assert not code, said + err
    out = tmp_path / "detections" / "1"
    drawn = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert drawn == ["a.jpg", "b.png", "deep/a.jpg", "detections.json"]
    assert len(json.loads((out / "detections.json").read_text())) == 3
    assert "3 images" in said and "cut.jpg" in said
    assert cv2.imread(str(out / "b.png")).shape == (60, 80, 3)


def test_with_gt_counts_what_was_missed(run, flags, tmp_path):
    code, said, err = run(*flags, "--conf", 1, "--with_gt", "--save", "out")  # finds nothing
    assert not code, said + err
    assert "detections: 0 right, 0 misplaced, 0 wrong class, 0 false, 4 missed, 0 ignored" in said
    assert "classes that the model does not know, and can only miss: cow" in said
    picture = cv2.imread(str(tmp_path / "out" / "b.png"))
    assert picture.shape[0] > 60  # the legend below
    assert (picture == vis.VERDICTS["missed"]).all(2).any()


def test_any_model_takes_a_square_or_keeps_the_shape(run, flags, tmp_path, monkeypatch):
    shapes, prepare = [], Detector.prepare

    def watched(model, images):
        batch, sizes = prepare(model, images)
        shapes.append((model.sides, sizes.tolist(), batch.shape[2:]))
        return batch, sizes

    monkeypatch.setattr(Detector, "prepare", watched)
    code, said, err = run(*flags, "--min_size", 90, "--max_size", 200)
    assert not code, said + err
    assert shapes and all(shape == ((90, 200), [[90, 120]], (96, 128)) for shape in shapes)
    shapes.clear()
    code, said, err = run(*flags, "--img_size", 96)
    assert not code, said + err
    assert shapes and all(sides == (96, 96) and size == [[72, 96]] for sides, size, _ in shapes)


def test_sizes_of_two_kinds(run, flags, tmp_path):
    code, said, err = run(*flags, "--min_size", 800, "--img_size", 640, "--show")
    assert code == 2 and "--img_size" in err and "--max_size" in err
    assert "Traceback" not in err and list(tmp_path.iterdir()) == []


def test_no_image_can_be_read(run, flags, tmp_path):
    folder = Path(flags[-1])
    content = json.loads((folder / "boxes.json").read_text())
    content["images"], content["annotations"] = content["images"][2:3], []
    (tmp_path / "one.json").write_text(json.dumps(content))
    code, said, err = run(*flags, "--ann", tmp_path / "one.json")
    assert code == 2 and "cut.jpg" in err and "Traceback" not in err


def test_classes_of_model_and_set_are_joined_by_name():
    names, numbers = test_script.joined(("cat", "dog"), ("cow", "dog", "pig"))
    assert names == ("cat", "dog", "cow", "pig") and numbers.tolist() == [2, 1, 3]
    assert test_script.joined(NAMES, NAMES)[1].tolist() == [0, 1]
