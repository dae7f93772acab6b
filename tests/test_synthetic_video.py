from dataclasses import replace

import numpy as np
import pytest

import data
from data import synthetic_video
from data.synthetic_video import EDGE, SCENE, draw_video
from utils.image import read_image


@pytest.fixture
def few(monkeypatch):
    scene = replace(SCENE, counts=(("train", 3), ("val", 2)), length=5, size=64)
    monkeypatch.setattr(synthetic_video, "SCENE", scene)


def test_set(tmp_path, few):
    train, val = (data.read("synthetic-video", tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (15, 10) and train.classes == ("mover",)
    assert train.videos == ("train_000", "train_001", "train_002")
    assert train.frame.tolist() == [0, 1, 2, 3, 4] * 3 and not train.notes
    assert (train.sizes == 64).all() and read_image(train.path(0)).shape == (64, 64, 3)
    assert len(data.read("synthetic-video", tmp_path, "test")) == 10
    assert not list(tmp_path.glob(".synthetic*"))
    again = data.read("synthetic-video", tmp_path / "again", "train")
    for index in range(len(train)):
        assert train.path(index).read_bytes() == again.path(index).read_bytes()
    assert data.read("custom", tmp_path / "synthetic-video", "train").videos == train.videos


def test_movers_move_and_all_else_stands_still():
    scene = replace(SCENE, flickering=(0, 0), empty=0.0, movers=(1, 1))
    for seed in range(5):
        frames = draw_video(scene, np.random.default_rng(seed))
        images = np.stack([image for image, _ in frames]).astype(np.float64)  # [T, H, W, 3]
        changed = images.std(axis=0).max(axis=-1) > 12  # noise is 6 at most
        reached = np.zeros_like(changed)
        for _, ((x1, y1, x2, y2),) in frames:
            reach = (x2 - x1) / 2, (y2 - y1) / 2  # a spot is seen beyond its box
            x1, x2 = max(int(x1 - reach[0]), 0), int(x2 + reach[0]) + 1
            reached[max(int(y1 - reach[1]), 0) : int(y2 + reach[1]) + 1, x1:x2] = True
        assert changed.sum() > 50 and changed[~reached].mean() < 1e-3
        centres = np.array([((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for _, (b,) in frames])
        steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
        assert np.median(steps) > 0.7 and steps.max() < 2 * scene.speeds[1]


def test_one_frame_does_not_tell():
    """Look and place of what moves and what stands still have one distribution."""
    rng = np.random.default_rng(0)
    walks = [synthetic_video._walk(SCENE, rng) for _ in range(3000)]
    rests = [synthetic_video._rest(SCENE, rng) for _ in range(3000)]
    for paths in (walks, rests):
        places = np.concatenate(paths)
        assert places.min() >= 0 and places.max() <= SCENE.size
        quarters = np.histogram(places, 4, (0, SCENE.size))[0] / places.size
        assert np.abs(quarters - 0.25).max() < 0.02
        assert abs(np.mean(places % 1.0) - 0.5) < 0.01  # between the pixels
    assert all((rest == rest[0]).all() for rest in rests)


def test_boxes_hold_what_is_seen():
    scene = replace(SCENE, still=(0, 0), flickering=(0, 0), movers=(1, 1), empty=0.0)
    rng = np.random.default_rng(1)
    thing = synthetic_video._thing(scene, rng, np.full((scene.length, 2), 40.3))
    image = np.zeros((scene.size, scene.size, 3))
    synthetic_video._paint(image, thing, 0)
    seen = np.abs(image).max(axis=-1)
    x1, y1, x2, y2 = synthetic_video._box(thing, 0, scene.size)
    assert scene.sides[0] <= x2 - x1 <= scene.sides[1]
    rows, columns = np.nonzero(seen > np.exp(-(EDGE**2) / 2) * seen.max() * 1.2)
    assert columns.min() >= x1 - 1 and columns.max() < x2 + 1
    assert rows.min() >= y1 - 1 and rows.max() < y2 + 1
    y, x = np.unravel_index(seen.argmax(), seen.shape)
    assert (x, y) == (40, 40)
