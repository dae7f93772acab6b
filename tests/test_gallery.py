import cv2
import numpy as np
import pytest
import torch

from utils import vis
from utils.errors import UserError
from utils.gallery import Gallery
from utils.results import Results

SCORES = (0.9, 0.4, 0.1)


class Keys:
    """A window without a screen: these keys are pressed in turn, then q."""

    def __init__(self, *keys):
        self.keys, self.titles, self.pictures = list(keys), [], []

    def show(self, image, title):
        self.titles.append(title)
        self.pictures.append(image)

    def wait(self):
        return self.keys.pop(0) if self.keys else "quit"


def detect(image):
    boxes = torch.tensor([[2.0, 2, 20, 20], [5, 5, 30, 30], [8, 8, 12, 12]])
    return {"boxes": boxes, "scores": torch.tensor(SCORES), "labels": torch.tensor([0, 1, 0])}


def paint(index, image, found):
    canvas = image.copy()
    canvas[0, 0] = (index, len(found["scores"]), 255)
    return canvas


@pytest.fixture
def photos(tmp_path):
    """Names of four photos, the third of which is none, and the folder they are in."""
    names = ["a.png", "deep/a.bmp", "bad.jpg", "b.png"]
    for number, name in enumerate(names):
        vis.save(tmp_path / "photos" / name, np.full((40, 50, 3), number, np.uint8))
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no image")
    return names, tmp_path / "photos"


def gallery(photos, threshold=0.3, **options):
    names, folder = photos
    results = Results(("cat", "dog"))
    paths = [folder / name for name in names]
    return Gallery(
        names, paths.__getitem__, detect, paint, results, threshold=threshold, **options
    ), results


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_write_draws_all_that_can_be_read(photos, tmp_path, at_a_time):
    pictures, results = gallery(photos, at_a_time=at_a_time)
    pictures.write(lambda: tmp_path / "out")
    assert files(tmp_path / "out") == ["a.png", "b.png", "deep/a.bmp"]
    drawn = cv2.imread(str(tmp_path / "out/b.png"))
    assert drawn[0, 0].tolist() == [3, 2, 255] and drawn[1, 1].tolist() == [3, 3, 3]
    assert results.pictures == 3 and results.counts == {0: 3, 1: 3}
    assert len(results.skipped) == 1 and "bad.jpg" in results.skipped[0]


def test_only_some_classes(photos, tmp_path):
    pictures, results = gallery(photos, labels=[1])
    pictures.write(lambda: tmp_path / "out")
    assert results.counts == {1: 3}
    assert cv2.imread(str(tmp_path / "out/a.png"))[0, 0].tolist() == [0, 1, 255]


def test_sources_are_never_overwritten(photos):
    pictures, _ = gallery(photos)
    with pytest.raises(UserError, match="a.png is read, and would be overwritten"):
        pictures.write(lambda: photos[1])
    assert cv2.imread(str(photos[1] / "a.png"))[0, 0].tolist() == [0, 0, 0]


def test_leafing(photos, tmp_path):
    pictures, results = gallery(photos)
    keys = Keys("right", "space", "left", "left", "left", "right")
    assert pictures.show(keys, lambda: tmp_path / "out") is False
    shown = [title.split(" (")[0] for title in keys.titles]
    # The one that cannot be read is passed over in both directions; before the first is nothing.
    assert shown == ["a.png", "deep/a.bmp", "b.png", "deep/a.bmp", "a.png", "a.png", "deep/a.bmp"]
    assert "2 of 4, score 0.30" in keys.titles[1]
    assert results.pictures == 3 and len(results.skipped) == 1  # each once
    assert not (tmp_path / "out").exists()


def test_each_picture_is_begun_once_and_in_order(photos, tmp_path):
    told = []
    pictures, _ = gallery(photos, begin=told.append)
    pictures.show(Keys("right", "left", "right", "right", "left", "left"), lambda: tmp_path / "out")
    assert told == [0, 1, 3]  # leafing back shows what was found
    pictures, _ = gallery(photos, begin=told.append)
    pictures.write(lambda: tmp_path / "out")
    assert told[3:] == [0, 1, 3]


def test_after_the_last_it_ends(photos, tmp_path):
    pictures, results = gallery(photos)
    assert pictures.show(Keys("right", "right", "right"), lambda: tmp_path / "out", write=True)
    assert files(tmp_path / "out") == ["a.png", "b.png", "deep/a.bmp"]


def test_nothing_can_be_read(photos, tmp_path):
    names, folder = photos
    for name in names:
        (folder / name).write_bytes(b"no image")
    pictures, results = gallery(photos)
    assert pictures.show(Keys(), lambda: tmp_path / "out")
    assert results.pictures == 0 and len(results.skipped) == 4


def test_the_first_cannot_be_read_and_one_goes_back_to_it(photos, tmp_path):
    (photos[1] / "a.png").write_bytes(b"no image")
    pictures, results = gallery(photos)
    keys = Keys("left", "right")
    pictures.show(keys, lambda: tmp_path / "out")
    shown = [title.split(" (")[0] for title in keys.titles]
    assert shown == ["deep/a.bmp", "deep/a.bmp", "b.png"]
    assert len(results.skipped) == 2


def test_threshold_keys_show_what_was_kept_at_a_lower_score(photos, tmp_path):
    pictures, results = gallery(photos)
    keys = Keys("up", "up", "up", "down", *["down"] * 6, "save")
    pictures.show(keys, lambda: tmp_path / "out")
    counts = [int(picture[0, 0, 1]) for picture in keys.pictures]
    assert counts == [2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 3, 3]  # at 0.30 .35 .40 .45 .40 ... .10 .10
    assert cv2.imread(str(tmp_path / "out/a.png"))[0, 0].tolist() == [0, 3, 255]
    assert results.counts == {0: 1, 1: 1}  # counted at the score that was asked for
