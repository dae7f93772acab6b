"""Mosaic and mixup, and the transforms of a recipe run as a whole."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from data.mosaic import Mixup, Mosaic, build_transforms, shown_part
from data.transforms import Affine, apply, clip_boxes, has_area, merge, warp_boxes, whole
from recipes import RECIPES, Augment, with_epochs
from tests.painting import make_target, no_partner, painted, random_box, unread
from utils.errors import UserError

SIZE = 96, 128
SQUARE = 128, 128
AUGMENT = Augment(mosaic=1.0, mixup=1.0, mosaic_scale=(0.5, 1.5))
PLAIN = np.eye(2, 3)


def two_steps(tiles, centre_yx, matrix, size_hw, fill):
    """Mosaic as it is described: a canvas of all tiles, then a warp. (image, boxes, labels)"""
    canvas = np.full((2 * size_hw[0], 2 * size_hw[1], 3), fill, np.uint8)
    targets = []
    for number, (image, target) in enumerate(tiles):
        height, width = image.shape[:2]
        top = centre_yx[0] - (height if number < 2 else 0)
        left = centre_yx[1] - (width if number % 2 == 0 else 0)
        y, x = max(top, 0), max(left, 0)
        part = image[y - top : len(canvas) - top, x - left : canvas.shape[1] - left]
        canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
        boxes = target["boxes"] + np.float32([left, top, left, top])
        targets.append({**target, "boxes": clip_boxes(boxes, canvas.shape[:2])})
    target = merge(targets)
    target = {name: column[has_area(target["boxes"])] for name, column in target.items()}
    boxes = clip_boxes(warp_boxes(target["boxes"], matrix), size_hw)
    image = cv2.warpAffine(canvas, matrix, size_hw[::-1], borderValue=(fill,) * 3)
    return image, boxes[has_area(boxes)], target["labels"][has_area(boxes)]


@pytest.mark.parametrize("seed", range(30))
def test_join_equals_canvas_and_warp(seed):
    rng = np.random.default_rng(seed)
    tiles = []
    for number in range(4):
        size_hw = [(96, 128), (96, 80), (60, 128), (3, 128)][int(rng.integers(4))]
        image = cv2.resize(rng.integers(0, 256, (8, 9, 3), np.uint8), size_hw[::-1])
        corners = rng.uniform(0, np.tile(size_hw[::-1], (5, 2)))
        boxes = np.concatenate(
            [corners.reshape(5, 2, 2).min(1), corners.reshape(5, 2, 2).max(1)], 1
        )
        tiles.append((image, make_target(boxes, [number] * 5)))
    affine = Affine(SIZE, scale=(0.1, 2.0), translate=0.5 if seed % 3 else 0.1)
    centre_yx = [int(rng.uniform(0.5, 1.5) * side) for side in SIZE]
    matrix = affine.draw_matrix(rng)
    patch, target = Mosaic(1.0, affine, fill=114).join(
        [unread(tile) for tile in tiles], centre_yx, matrix
    )
    expected, boxes, labels = two_steps(tiles, centre_yx, matrix, SIZE, 114)
    assert np.array_equal(target["boxes"], boxes) and np.array_equal(target["labels"], labels)
    assert len(target["ignore"]) == len(labels)
    # The part's matrix has another shift, so a position may be rounded otherwise.
    assert (np.abs(patch.image().astype(int) - expected) > 1).mean() < 0.001


def test_join_reads_only_what_is_seen():
    read, whole = [], painted((0, 0, 128, 96), size_hw=SIZE)
    tiles = [
        unread(whole)._replace(load=lambda number=number: read.append(number) or whole[0])
        for number in range(4)
    ]
    mosaic = Mosaic(1.0, Affine(SIZE))
    patch, target = mosaic.join(tiles, (100, 130), PLAIN)  # they meet outside of the output
    assert read == [0] and target["boxes"].tolist() == [[2, 4, 128, 96]]
    image = patch.image()
    assert (image[4:, 2:, 1] == 255).all() and (image[:4] == 114).all()
    read.clear()
    mosaic.join(tiles, (90, 130), PLAIN)
    assert read == [0, 2]


def test_join_of_an_output_beside_the_canvas():
    tiles = [unread(painted((0, 0, 128, 96), size_hw=SIZE))] * 4
    for shift in ((500, 0), (-500, 0), (0, 500), (0, -500)):
        matrix = np.column_stack([np.eye(2), shift])
        patch, target = Mosaic(1.0, Affine(SIZE)).join(tiles, (96, 128), matrix)
        assert (patch.image() == 114).all() and patch.image().shape == (*SIZE, 3)
        assert target["boxes"].shape == (0, 4)


def test_mosaic_joins_around_the_centre():
    tiles = [unread(painted((0, 0, 64, 48), size_hw=(48, 64)))] * 4
    half = np.array([[0.5, 0, 0], [0, 0.5, 0]])
    patch, target = Mosaic(1.0, Affine((48, 64))).join(tiles, (40, 70), half)
    image = patch.image()
    assert image.shape == (48, 64, 3)
    expected = [[3, 0, 35, 20], [35, 0, 64, 20], [3, 20, 35, 44], [35, 20, 64, 44]]
    assert target["boxes"].tolist() == expected
    assert (image[:44, 3:, 1] == 255).all() and (image[44:] == 114).all()


def test_shown_part():
    assert shown_part(PLAIN, (10, 20), (20, 40)) == (0, 0, 22, 12)
    shifted = np.array([[2.0, 0, -10], [0, 2.0, -20]])
    assert shown_part(shifted, (10, 20), (40, 40)) == (3, 8, 17, 17)
    beside = np.array([[1.0, 0, 0], [0, 1, 90]])
    assert shown_part(beside, (10, 20), (40, 40)) == (0, 0, 22, 1)


@pytest.mark.parametrize("seed", range(12))
def test_mosaic_and_mixup_keep_boxes(seed):
    """Frame in blue, three partners in green, the mixup partner in red: all within their boxes."""
    rng = np.random.default_rng(seed)
    partners = [painted(random_box(rng), channel) for channel in (1, 1, 1, 2)]
    for number, (_, target) in enumerate(partners, start=1):
        target["labels"][:] = number
    drawn = iter(partners)
    mixup = Mixup(1.0, SIZE, fill=0)
    mosaic = Mosaic(1.0, Affine(SIZE, scale=(0.6, 1.6)), mixup, fill=0)
    [(image, target)] = apply(
        [mosaic], [painted(random_box(rng), 0)], rng, lambda: [unread(next(drawn))]
    )
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    seen = np.zeros((3, *SIZE), bool)
    for (x1, y1, x2, y2), label in zip(target["boxes"], target["labels"], strict=True):
        assert 0 <= x1 < x2 <= SIZE[1] and 0 <= y1 < y2 <= SIZE[0]
        channel = (0, 1, 1, 1, 2)[label]
        y, x = slice(max(int(y1) - 3, 0), int(y2) + 4), slice(max(int(x1) - 3, 0), int(x2) + 4)
        seen[channel][y, x] = True
        inner = image[int(y1 + y2) // 2, int(x1 + x2) // 2, channel]
        assert inner > 60 or min(x2 - x1, y2 - y1) < 6
    assert not ((image.transpose(2, 0, 1) > 60) & ~seen).any()


def test_mixup_is_the_floor_of_the_mean():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (*SIZE, 3), np.uint8), make_target([[1, 1, 9, 9]])
    partner = rng.integers(0, 256, (*SIZE, 3), np.uint8), make_target([[2, 2, 50, 60]])
    frame_patch = whole(frame[0]), frame[1]
    mixed, target = Mixup(1.0, SIZE)._mix(frame_patch, unread(partner), 1.0, False, (0.0, 0.0))
    mean = (frame[0].astype(np.int32) + partner[0]) // 2
    assert np.array_equal(mixed.image(), mean)
    assert target["boxes"].tolist() == [[1, 1, 9, 9], [2, 2, 50, 60]]


def test_mixup_gives_up_on_a_set_without_objects():
    frames = [painted((1, 1, 20, 20))]
    empty = np.zeros((*SIZE, 3), np.uint8), make_target([])
    partner = unread(empty)._replace(load=no_partner)  # nothing is read in vain
    mixup = Mixup(1.0, SIZE)
    assert mixup(frames, np.random.default_rng(0), lambda: [partner]) is frames


@pytest.mark.parametrize("seed", range(6))
def test_frames_of_a_clip_share_every_draw(seed):
    rng = np.random.default_rng(seed)
    still, other = painted(random_box(rng)), painted(random_box(rng))
    transforms = build_transforms(AUGMENT, SQUARE)
    frames = apply(transforms, [still] * 3, rng, lambda: [unread(other)] * 3)
    for image, target in frames[1:]:
        assert np.array_equal(image, frames[0][0])
        assert np.array_equal(target["boxes"], frames[0][1]["boxes"])


def test_inputs_are_never_written_to():
    """A cache may hold them."""
    rng = np.random.default_rng(0)
    frames = [painted(random_box(rng), size_hw=SIZE) for _ in range(5)]
    for image, target in frames:
        image.flags.writeable = False
        for column in target.values():
            column.flags.writeable = False
    transforms = build_transforms(replace(AUGMENT, shift=9), SQUARE)
    for frame in frames * 4:
        apply(transforms, [frame], rng, lambda: [unread(frames[int(rng.integers(5))])])


def test_all_switched_off_only_fits():
    frame = painted((3, 4, 50, 60))
    off = Augment(mosaic=0, hsv=0, flip=0)
    [(image, target)] = apply(
        build_transforms(off, (40, 64)), [frame], np.random.default_rng(0), no_partner
    )
    assert image.shape == (40, 64, 3) and target["boxes"].tolist() == [[1.5, 2, 25, 30]]


def test_images_without_objects_pass():
    empty = np.full((*SIZE, 3), 7, np.uint8), make_target([])
    rng = np.random.default_rng(0)
    for augment, size_hw in ((AUGMENT, SQUARE), (replace(AUGMENT, mosaic=0, shift=9), SIZE)):
        transforms = build_transforms(augment, size_hw)
        [(image, target)] = apply(transforms, [empty], rng, lambda: [unread(empty)])
        assert image.shape == (*size_hw, 3) and target["boxes"].shape == (0, 4)


def test_mosaic_wants_a_square():
    with pytest.raises(UserError, match="96 to 128 pixels; .* --img_size"):
        build_transforms(AUGMENT, SIZE)
    # What the error advises: as many plain epochs as there are.
    [plain] = with_epochs(RECIPES["yolof-cspdarknet53-c5"], 5, 5).stages
    build_transforms(plain.augment, SIZE)


def test_flips_come_before_shifts():
    """As published; and what a shift cuts off may be too small to stay."""
    augment = Augment(hsv=0, flip=1.0, shift=8, min_box=3)
    kinds = [type(transform).__name__ for transform in build_transforms(augment, SIZE)]
    assert kinds == ["Mosaic", "Hsv", "Flip", "Fit", "Shift", "DropSmall"]
    assert "Shift" not in str(build_transforms(replace(augment, shift=0), SIZE))
