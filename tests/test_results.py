import json
import time

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.results import Results, inside, strong, written_name

CLASSES = ("cat", "dog", "cow")


def detections(*rows):
    """Rows of (x1, y1, x2, y2, label, score)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    boxes, labels, scores = table[:, :4].float(), table[:, 4].long(), table[:, 5].float()
    detected = {"boxes": boxes, "labels": labels, "scores": scores}
    return Results(CLASSES).timed(lambda _: detected, None)


FOUND = detections((10, 20, 30, 60, 1, 0.9), (0, 0, 100, 50, 0, 0.5), (0, 0, 5, 5, 1, 0.1))


def test_timed_shares_the_seconds():
    def detect(image):
        time.sleep(0.05)
        return {"scores": torch.tensor([image])}

    results = Results(CLASSES)
    assert results.timed(detect, 0.5)["scores"].tolist() == [0.5] and results.seconds >= 0.05
    results.seconds = 0.0
    results.timed(detect, 0.5, at_a_time=100)
    assert 0.0005 <= results.seconds < 0.05


def test_strong_keeps_scores_and_classes():
    assert strong(FOUND, 0.5)["labels"].tolist() == [1, 0]
    assert strong(FOUND, 0.5, [0])["boxes"].tolist() == [[0, 0, 100, 50]]
    assert strong(FOUND, 0.95)["boxes"].shape == (0, 4)
    assert len(FOUND["scores"]) == 3


def test_text_files(tmp_path):
    with Results(CLASSES, lambda: tmp_path, txt=True) as results:
        results.add("deep/a.jpg", (200, 100), FOUND)
        results.add("deep/a.png", (200, 100), detections())
        results.add("film.mp4", (200, 100), strong(FOUND, 0.9), frame=12)
    lines = (tmp_path / "labels/deep/a.txt").read_text().splitlines()
    assert lines[0] == "1 0.200000 0.200000 0.200000 0.200000 0.90000"
    assert lines[1] == "0 0.500000 0.125000 1.000000 0.250000 0.50000" and len(lines) == 3
    assert (tmp_path / "labels/deep/a.png.txt").read_text() == ""  # the same stem
    assert len((tmp_path / "labels/film_000012.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["{images}/a.jpg", "../../images/a.jpg"])
def test_text_files_lie_in_the_folder_whatever_the_name(tmp_path, name):
    with Results(CLASSES, lambda: tmp_path / "x" / "out", txt=True) as results:
        results.add(name.format(images=tmp_path / "images"), (200, 100), FOUND)
    (written,) = tmp_path.rglob("*.txt")
    assert written.is_relative_to(tmp_path / "x" / "out" / "labels")


def test_text_files_of_equal_stems_do_not_meet(tmp_path):
    with Results(CLASSES, lambda: tmp_path, txt=True) as results:
        for frame in range(2):
            for name in ("s.mp4", "s.avi", "s.avi.mp4"):
                results.add(name, (200, 100), FOUND, frame)
        for name in ("a.jpg", "a.png", "../a.jpg"):
            results.add(name, (200, 100), FOUND)
    names = ["s_00000{}", "s.avi_00000{}", "s.avi.mp4_00000{}"]
    expected = [f"{name.format(frame)}.txt" for name in names for frame in range(2)]
    expected += ["a.txt", "a.png.txt", "a.jpg.txt"]
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == sorted(expected)


def test_names():
    names = {name: written_name(name).as_posix() for name in ("a.JPG", "x/b.jp2", "../../c.png")}
    assert names == {"a.JPG": "a.JPG", "x/b.jp2": "x/b.jp2.jpg", "../../c.png": "c.png"}
    assert written_name("/etc/d.pgm").as_posix() == "etc/d.pgm.jpg"
    assert inside("/a/../b/./c").as_posix() == "a/b/c"


def test_json_file(tmp_path):
    with Results(CLASSES, lambda: tmp_path / "new", as_json=True) as results:
        results.add("größe.jpg", (200, 100), FOUND)
        results.add("film.mp4", (48, 64), detections(), frame=3)
    first, second = json.loads((tmp_path / "new/detections.json").read_text(encoding="utf-8"))
    assert (first["file"], first["width"], first["height"]) == ("größe.jpg", 100, 200)
    assert first["objects"][0] == {
        "class": "dog",
        "label": 1,
        "score": 0.9,
        "box": [10.0, 20.0, 30.0, 60.0],
    }
    assert second == {"file": "film.mp4", "frame": 3, "width": 64, "height": 48, "objects": []}
    with Results(CLASSES, lambda: tmp_path, as_json=True):
        pass
    assert not (tmp_path / "detections.json").exists()


def test_json_is_whole_after_an_error(tmp_path):
    with pytest.raises(KeyError), Results(CLASSES, lambda: tmp_path, as_json=True) as results:
        results.add("a.jpg", (200, 100), FOUND)
        raise KeyError
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 1


def test_summary():
    results = Results(CLASSES)
    assert results.summary() == "0 images, 0 objects"
    results.add("a.jpg", (200, 100), FOUND)
    results.add("b.jpg", (200, 100), strong(FOUND, 0.9))
    for number in range(7):
        results.skip(f"{number}.jpg: not an image")
    results.seconds = 0.5
    lines = results.summary().splitlines()
    assert lines[0] == "2 images, 4 objects: dog 3, cat 1"
    assert lines[1].endswith("the model alone 4.0")
    assert lines[2] == "skipped 7 that cannot be read:" and lines[-1] == "  and 2 more"
    assert "images/s" not in results.summary(rates=False)


def test_many_classes_are_cut_short():
    results = Results([f"c{i}" for i in range(20)])
    labels = np.arange(20)
    results.add("a", (9, 9), {"boxes": np.zeros((20, 4)), "scores": labels, "labels": labels})
    assert results.summary().endswith("c4 1, 15 more classes")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    results = Results(CLASSES, lambda: tmp_path / "file", as_json=True)
    with pytest.raises(UserError, match="cannot write .*detections.json"):
        results.add("a.jpg", (9, 9), FOUND)
    results = Results(CLASSES, lambda: tmp_path / "file", txt=True)
    with pytest.raises(
        UserError, match="cannot write .*a.txt: .*; make room or name another folder"
    ):
        results.add("a.jpg", (9, 9), FOUND)
