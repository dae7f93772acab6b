"""Squares that are cut out of images: what they hold, what they touch, and where they lie."""

import cv2
import numpy as np
import pytest
import torch

from data import crops
from data.colours import Jitter
from data.patches import (
    NeighbourPatches,
    ObjectPatches,
    build_patch_loader,
    cut,
)
from data.unlabelled import frames_of, read
from utils.errors import UserError
from utils.video import Writer

SIZE_HW = (90, 160)
BOXES = np.array([[10, 10, 16, 15], [60, 40, 100, 70], [140, 5, 160, 30]], np.float32)
CROWD = np.array([[20, 20, 60, 60], [30, 30, 70, 70]], np.float32)  # that overlap each other


def generators():
    return [np.random.default_rng(seed) for seed in range(40)]


def check_inside(squares, size_hw):
    assert squares.shape[1] == 4 and (squares == squares.round()).all()
    sides = squares[:, 2:] - squares[:, :2]
    assert (sides[:, 0] == sides[:, 1]).all() and (sides > 0).all()
    assert (squares[:, :2] >= 0).all() and (squares[:, 2:] <= size_hw[::-1]).all()


def test_shared_area_is_the_share_of_the_box():
    squares = np.array([[0, 0, 100, 100], [13, 0, 33, 20], [60, 55, 70, 65]], float)
    shares = crops.shared_area(BOXES[:2], squares)
    assert np.allclose(shares, [[1, 0.5, 0], [1200 / 1200, 0, 100 / 1200]])


@pytest.mark.parametrize("boxes", [BOXES, CROWD, BOXES[:0]], ids=["some", "crowd", "none"])
def test_background_never_touches_an_object(boxes):
    # Small objects too: the published rule took squares that hold one of 14 pixels.
    for rng in generators():
        squares = crops.background(boxes, SIZE_HW, 6, rng)
        check_inside(squares, SIZE_HW)
        wide = squares + np.array([-1, -1, 1, 1]) * (crops.MARGIN - 1)
        assert (crops.shared_area(boxes, wide) == 0).all()
        assert 0 < len(squares) <= 6


def test_an_image_full_of_objects_has_no_background():
    whole = np.array([[0, 0, 160, 90]], np.float32)
    assert len(crops.background(whole, SIZE_HW, 4, np.random.default_rng(0))) == 0


def test_squares_hold_the_object_where_it_fits():
    for rng in generators():
        squares = crops.around(BOXES, 52, SIZE_HW, rng)
        check_inside(squares, SIZE_HW)
        assert (crops.shared_area(BOXES, squares).diagonal() == 1).all()
        sides = squares[:, 2] - squares[:, 0]  # of the patch, whatever the object's
        assert (sides >= 52 * crops.ZOOM[0] - 1).all() and (sides <= 52 * crops.ZOOM[1] + 1).all()


def test_of_an_object_that_is_too_large_a_part_is_shown():
    wide = np.array([[5, 30, 155, 60]], np.float32)
    for rng in generators():
        [[x1, y1, x2, y2]] = crops.around(wide, 200, SIZE_HW, rng)  # wider than the image is high
        assert x2 - x1 == 90 and (y1, y2) == (0, 90) and x1 >= 5 and x2 <= 155


def test_rare_classes_are_drawn_as_often_as_others():
    labels = np.array([0] * 50 + [2])
    drawn = labels[crops.draw_objects(labels, 400, np.random.default_rng(0))]
    assert 0.4 < (drawn == 2).mean() < 0.6
    assert len(crops.draw_objects(labels[:0], 4, np.random.default_rng(0))) == 0


@pytest.mark.parametrize("side", [20, 30])
def test_a_view_shares_most_of_its_anchor(side):
    shares = []
    for rng in generators():
        anchor, _ = crops.neighbours(SIZE_HW, side, 0, rng)
        view = crops.view(anchor, SIZE_HW, rng)
        check_inside(view[None], SIZE_HW)
        shared = crops.common(np.stack([anchor, view]))
        shares.append((shared[2:] - shared[:2]).prod() / side**2)
    assert 0.25 < min(shares) < 0.6 and max(shares) > 0.9 and len(set(shares)) > 10


def test_regions_of_an_image_as_pixels_of_its_patches():
    regions = np.array([[10.0, 20, 30, 50], [0, 0, 15, 200]])
    squares = np.array([[0.0, 10, 50, 60], [10, 0, 20, 10]])
    found = crops.inside(regions, squares, 100)
    assert found.tolist() == [[20, 20, 60, 80], [0, 0, 50, 100]]  # cut off at the patch


@pytest.mark.parametrize("side", [12, 30])
def test_neighbours_touch_and_far_squares_keep_their_distance(side):
    anchors, seen = [], 0
    for rng in generators():
        anchor, near = crops.neighbours(SIZE_HW, side, 3, rng)
        far = crops.far(anchor, near, SIZE_HW, 3, rng)
        for squares in (anchor[None], near, far):
            check_inside(squares, SIZE_HW)
        moved = np.abs(near[:, :2] - anchor[:2])
        assert (moved.max(axis=1) == side).all() and (moved.min(axis=1) <= side / 2).all()
        assert (np.abs(far[:, :2] - anchor[:2]).max(axis=1) >= crops.APART * side).all()
        assert (crops.shared_area(np.vstack([anchor, near]), far) == 0).all()
        anchors.append(anchor)
        seen += len(far)
    lefts = np.array(anchors)[:, 0]
    assert lefts.min() < 30 and lefts.max() > 90  # anywhere, not in the left alone
    assert seen > 60


def test_the_published_layout_gives_the_side_away():
    for rng in generators():
        anchor, near, far = crops.published((720, 1280), rng)
        assert anchor[2] - anchor[0] == 224 and len(near) == len(far) == 4
        assert anchor[0] <= 424 and (far[:, 0] >= 832).all() and (far[:, 0] < 1056).all()
        assert (np.abs(near[:, :2] - anchor[:2]).sum(axis=1) == 224).all()
        check_inside(np.vstack([anchor, near, far]), (720, 1280))


def test_a_patch_is_cut_and_resized():
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:20, 20:30] = 200
    assert (cut(image, np.array([20.0, 10, 30, 20]), 32) == 200).all()
    assert cut(image, np.array([0.0, 0, 40, 40]), 8).shape == (8, 8, 3)


def test_colours_change_in_each_draw_and_grey_stays_grey():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    rng = np.random.default_rng(1)
    drawn = [Jitter()(image, rng) for _ in range(5)]
    assert len({picture.tobytes() for picture in drawn}) == 5
    assert all(picture.dtype == np.uint8 and picture.shape == image.shape for picture in drawn)
    grey = np.full((8, 8, 3), 90, np.uint8)
    for rng in generators():
        shown = Jitter(blur=0)(grey, rng).astype(int)
        assert np.ptp(shown.reshape(-1, 3)) == 0  # no colour is made where none is
    assert Jitter(strength=0)(image, rng) is image


def target(boxes, labels):
    return {"boxes": boxes, "labels": labels, "ignore": np.zeros(len(boxes), bool)}


def test_patches_of_objects_and_background_with_their_labels():
    image = np.full((*SIZE_HW, 3), 20, np.uint8)
    for x1, y1, x2, y2 in BOXES.astype(int):
        image[y1:y2, x1:x2] = 250
    labels = np.array([0, 1, 1])
    for rng in generators():
        found = ObjectPatches(32, 3, 3, calm=True)(image, target(BOXES, labels), rng)
        assert set(found["labels"][:3]) <= {1, 2} and found["images"].shape == (6, 32, 32, 3)
        x1, y1, x2, y2 = found["regions"][found["valid"]].astype(int).T
        there = found["images"][found["valid"]]
        middles = there[np.arange(len(there)), (y1 + y2) // 2, (x1 + x2) // 2, 0]
        assert ((middles > 100) == (found["labels"] > 0)[found["valid"]]).all()
    both = ObjectPatches(32, 3, 3, by_class=False)(image, target(BOXES, labels), rng)
    assert set(both["labels"]) == {0, 1}
    empty = ObjectPatches(32, 3, 3)(image, target(BOXES[:0], labels[:0]), rng)
    assert empty["valid"].all() and not empty["labels"].any()  # the best source of background


def test_ignored_objects_are_neither_objects_nor_background():
    image = np.full((*SIZE_HW, 3), 20, np.uint8)
    image[40:70, 60:100] = 250
    ignored = target(BOXES[1:2], np.array([0])) | {"ignore": np.array([True])}
    for rng in generators():
        found = ObjectPatches(32, calm=True)(image, ignored, rng)
        assert not found["labels"].any() and found["images"].max() < 100


def test_neighbours_patches_read_no_target_and_anchor_and_view_are_one_place():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SIZE_HW, 3), np.uint8)
    plain = NeighbourPatches(32, places="published", colours=0.0)
    found = plain(image, None, np.random.default_rng(3))
    assert (found["images"][0] == found["images"][1]).all() and found["valid"].all()
    assert (found["shared"] == (0, 0, 32, 32)).all()
    own = NeighbourPatches(32, places="published")(image, None, np.random.default_rng(3))
    assert (own["images"][0] != own["images"][1]).any()  # each patch has colours of its own
    shared = NeighbourPatches(32, places="published", jitter="image")
    assert len(shared.roles) == 10
    found = shared(image, None, np.random.default_rng(3))
    assert (found["images"][0] == found["images"][1]).all()


def test_what_anchor_and_view_share_is_the_same_place():
    image = np.zeros((*SIZE_HW, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(160)[None], np.arange(90)[:, None]  # x and y
    mirrored = set()
    for rng in generators():
        found = NeighbourPatches(64, near=0, far=0, colours=0.0)(image, None, rng)
        middles = (found["shared"][:, :2] + found["shared"][:, 2:]) / 2
        seen = [
            patch[int(y), int(x)] for patch, (x, y) in zip(found["images"], middles, strict=True)
        ]
        assert (np.abs(np.subtract(*map(np.int16, seen))) <= 1).all()
        mirrored.add(bool(found["images"][0, 0, 0, 0] > found["images"][0, 0, -1, 0]))
    assert mirrored == {False, True}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in "abc":
        scene = rng.integers(0, 256, (40, 60, 3), np.uint8)
        (folder / f"{name}.png").write_bytes(cv2.imencode(".png", scene)[1])
    return folder


def batches(records, **options):
    options = {
        "train": True,
        "sides": (64, 64),
        "batch_size": 1,
        "num_workers": 0,
        "seed": 1,
        **options,
    }
    loader = build_patch_loader(records, NeighbourPatches(32), **options)
    found = list(loader.batches(2))
    loader.close()
    return found


def test_batches_of_patches_depend_on_seed_and_epoch_alone(photos):
    records = read([str(photos)])["train"]
    first, again = batches(records), batches(records)
    for (images, targets), (others, _) in zip(first, again, strict=True):
        assert images.shape == (1, 6, 3, 32, 32) and images.dtype == torch.uint8
        assert torch.equal(images, others) and targets["valid"].shape == (1, 6)
    assert "labels" not in first[0][1]
    assert not torch.equal(first[0][0], batches(records, seed=2)[0][0])
    many = batches(records, num_workers=1)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, many, strict=True))


def test_folders_and_films_become_records_without_labels(photos, tmp_path):
    rng = np.random.default_rng(0)
    with Writer(tmp_path / "film", 10.0) as writer:
        for number in range(60):
            if number % 10 == 0:  # a new scene each second, the third of them black
                scene = rng.integers(60, 250, (4, 4, 3), np.uint8) * (number != 20)
            writer.write(np.kron(scene, np.ones((12, 16, 1))).astype(np.uint8))
    film = writer.path
    assert frames_of(film, 1.0) == ([0, 10, 30, 40, 50], (48, 64), 1, "")
    assert frames_of(film, 0.5)[0] == [0, 10, 30, 40, 50]  # repeated ones are left out
    parts = read([str(photos), str(film), str(film), str(photos / "a.png")])  # each once
    assert len(parts["train"]) == 7 and len(parts["val"]) == 1
    assert not len(parts["train"].boxes) and parts["train"].classes == ()
    assert "5 frames, 1 black" in parts["train"].summary()
    with pytest.raises(UserError, match="no such file"):
        read([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="too few"):
        read([str(photos / "a.png")])
