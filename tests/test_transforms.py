import cv2
import numpy as np
import pytest

from data.transforms import (
    Affine,
    DropSmall,
    Fit,
    Flip,
    Hsv,
    Patch,
    Shift,
    apply,
    shift_hsv,
    warp_boxes,
)
from tests.painting import make_target, no_partner, painted, random_box


def painted_extent(image, channel=1, level=60):
    """xyxy hull of what is painted."""
    rows, columns = np.nonzero(image[..., channel] > level)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    "transform, tolerance",
    [(Fit((40, 60)), 1), (Fit((200, 200)), 2), (Fit((60, 150)), 2), (Flip(1.0), 0), (Hsv(), 0)],
)
@pytest.mark.parametrize("seed", range(8))
def test_a_painted_rectangle_keeps_its_box(transform, tolerance, seed):
    rng = np.random.default_rng(seed)
    frame = painted(random_box(rng))
    [(image, target)] = apply([transform], [frame], rng, no_partner)
    assert np.abs(target["boxes"][0] - painted_extent(image)).max() <= tolerance


def test_affine_matrix_is_the_references():
    """Rotation and scale about the origin, then shear, then shift, as in YOLOX."""
    affine, rng = Affine((48, 64), scale=(0.5, 1.5)), np.random.default_rng(5)
    matrix, again = affine.draw_matrix(np.random.default_rng(5)), rng
    angle, scale = again.uniform(-10, 10), again.uniform(0.5, 1.5)
    shear_x, shear_y = np.tan(np.radians(again.uniform(-2, 2, 2)))
    rotation = cv2.getRotationMatrix2D((0, 0), angle, scale)
    assert np.allclose(matrix[0, :2], (rotation[0] + shear_y * rotation[1])[:2])
    assert np.allclose(matrix[1, :2], (rotation[1] + shear_x * rotation[0])[:2])
    assert np.all(np.abs(matrix[:, 2]) <= (6.4, 4.8))


def test_warp_boxes_quarter_turn():
    turn = np.array([[0.0, -1, 100], [1, 0, 0]])
    assert warp_boxes(np.float32([[10, 20, 30, 60]]), turn).tolist() == [[40, 10, 80, 30]]
    assert warp_boxes(np.zeros((0, 4), np.float32), turn).shape == (0, 4)


def test_warp_boxes_are_hulls_of_corners():
    rng = np.random.default_rng(0)
    for _ in range(20):
        low, size = rng.uniform(-50, 50, (2, 7, 2))
        x, y = np.stack([low, low + np.abs(size)], axis=1).transpose(
            2, 0, 1
        )  # [N, lower and upper]
        matrix = rng.uniform(-2, 2, (2, 3))
        corners = np.stack([x[:, [0, 1, 0, 1]], y[:, [0, 0, 1, 1]]], axis=2)  # [N, 4, 2]
        corners = corners @ matrix[:, :2].T + matrix[:, 2]
        expected = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
        assert np.allclose(warp_boxes(boxes, matrix), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shifts", [(4, -30, 29), (-5, 30, -30), (0, 7, 0), (3, 0, 0)])
def test_hsv_equals_the_plain_formula(shifts):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + shifts[0]) % 180
    hsv[..., 1:] = np.clip(hsv[..., 1:] + shifts[1:], 0, 255)
    expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)
    assert np.array_equal(shift_hsv(image, shifts), expected)


def test_hsv_keeps_each_channel_in_half_of_the_samples():
    frame, kept = painted((3, 4, 50, 60)), 0
    for seed in range(200):
        [(image, _)] = apply([Hsv()], [frame], np.random.default_rng(seed), no_partner)
        kept += image is frame[0]  # none was shifted: one in eight
    assert 10 <= kept <= 50
    empty = [(frame[0], make_target([]))]
    assert all(Hsv()(empty, np.random.default_rng(s), no_partner) is empty for s in range(5))


def test_flip_twice_is_nothing():
    image, target = painted((3, 4, 50, 60))
    [(twice, back)] = apply(
        [Flip(1.0)] * 2, [(image, target)], np.random.default_rng(0), no_partner
    )
    assert np.array_equal(twice, image) and np.array_equal(back["boxes"], target["boxes"])


def test_a_shift_moves_pixels_and_boxes_and_leaves_black():
    image = np.random.default_rng(0).integers(1, 256, (80, 128, 3), np.uint8)
    target = make_target([[0, 0, 5, 5], [40, 30, 60, 50], [100, 70, 128, 80]], [0, 1, 2])
    drawn, still = set(), 0
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        [(found, moved)] = apply([Shift(4)], [(image, target)], rng, no_partner)
        if found is image:
            assert moved is target
            still += 1
            continue
        x, y = moved["boxes"][moved["labels"] == 1][0, :2].astype(int) - (40, 30)
        drawn.add((x, y))
        expected = np.zeros_like(image)
        to = slice(max(y, 0), 80 + min(y, 0)), slice(max(x, 0), 128 + min(x, 0))
        expected[to] = image[max(-y, 0) : 80 + min(-y, 0), max(-x, 0) : 128 + min(-x, 0)]
        assert np.array_equal(found, expected)
        boxes = (target["boxes"] + np.float32([x, y, x, y])).clip(0, (128, 80, 128, 80))
        assert np.array_equal(moved["boxes"], boxes)
    assert 900 < still < 1100
    assert drawn == {(x, y) for x in range(-4, 4) for y in range(-4, 4)}


def test_what_a_shift_moves_out_of_the_image_is_dropped():
    image, target = painted((0, 0, 3, 3))
    seen = set()
    for seed in range(40):
        frame = [(image, target)] * 2  # a clip: both alike
        rng = np.random.default_rng(seed)
        (_, one), (_, other) = apply([Shift(6, 1.0)], frame, rng, no_partner)
        assert np.array_equal(one["boxes"], other["boxes"])
        seen.add(len(one["boxes"]))
    assert seen == {0, 1}
    [(thin, _)] = apply([Shift(500, 1.0)], [(image, target)], rng, no_partner)
    assert thin.shape == image.shape


def test_small_boxes_go_and_a_sample_without_any_stays():
    image, _ = painted((0, 0, 20, 20))
    target = make_target([[0, 0, 1, 9], [0, 0, 1.5, 9], [3, 3, 9, 3.5]], [0, 1, 2])
    [(_, kept)] = DropSmall(1.0)([(image, target)], None, no_partner)
    assert kept["labels"].tolist() == [1]
    frames = [(image, make_target([[0, 0, 1, 1]]))]
    [(kept_image, left)] = apply([DropSmall(1.0)], frames, None, no_partner)
    assert kept_image is image and len(left["boxes"]) == 0
    assert len(apply([DropSmall(0.5)], frames, None, no_partner)[0][1]["boxes"]) == 1


@pytest.mark.parametrize(
    "transform", [Flip(1.0), Hsv(), Fit((60, 90)), Fit((20, 30)), Shift(25, 1.0)]
)
@pytest.mark.parametrize("left, top", [(0, 0), (20, 7), (30, 20)])
def test_a_patch_is_treated_as_its_image(transform, left, top):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    patch = Patch(pixels, left, top, (60, 90), np.uint8([114, 90, 200]))
    image, target = patch.image(), make_target([[30, 20, 50, 30]])
    assert image.shape == (60, 90, 3) and (image[:top] == (114, 90, 200)).all()
    assert np.array_equal(image[top : top + 40, left : left + 60], pixels)
    rng = [np.random.default_rng(2) for _ in range(2)]
    [(found, _)] = transform([(patch, target)], rng[0], no_partner)
    [(expected, _)] = apply([transform], [(image, target)], rng[1], no_partner)
    # OpenCV rounds otherwise at the end of a row of HSV pixels than within it.
    assert np.abs(found.image().astype(int) - expected).max() <= (transform == Hsv())
