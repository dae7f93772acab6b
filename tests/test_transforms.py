from dataclasses import replace

import cv2
import numpy as np
import pytest

from data.mosaic import Mixup, Mosaic, build_transforms
from data.transforms import Affine, DropSmall, Fit, Flip, Hsv, apply, flip_target, warp_boxes
from recipes import Augment

SIZE = 96, 128
AFFINE = Affine(SIZE, scale=(0.6, 1.6), fill=0)

AUGMENT = Augment(mosaic=1.0, mixup=1.0, mosaic_scale=(0.5, 1.5))


def make_target(boxes, labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels)
    return {"boxes": boxes, "labels": labels, "ignore": np.zeros(len(boxes), bool)}


def painted(box, channel=1, size_hw=(80, 128)):
    """A black frame with one filled rectangle."""
    image = np.zeros((*size_hw, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2, channel] = 255
    return image, make_target([box])


def random_box(rng, size_hw=(80, 128)):
    x, y = (int(rng.integers(0, side - 30)) for side in size_hw[::-1])
    return x, y, x + int(rng.integers(12, 30)), y + int(rng.integers(12, 30))


def painted_extent(image, channel=1, level=60):
    """xyxy hull of what is painted."""
    rows, columns = np.nonzero(image[..., channel] > level)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def no_partner():
    raise AssertionError("this transform needs no partner")


@pytest.mark.parametrize(
    "transform, tolerance",
    [(Fit((40, 60)), 1), (Fit((200, 200)), 2), (Flip(1.0), 0), (AFFINE, 2.5), (Hsv(), 0)],
)
@pytest.mark.parametrize("seed", range(8))
def test_a_painted_rectangle_keeps_its_box(transform, tolerance, seed):
    rng = np.random.default_rng(seed)
    frame = painted(random_box(rng))
    [(image, target)] = transform([frame], rng, no_partner)
    if not len(target["boxes"]):
        assert (image[..., 1] > 60).sum() <= image.shape[0]  # at most a sliver is seen
        return
    assert np.abs(target["boxes"][0] - painted_extent(image)).max() <= tolerance


@pytest.mark.parametrize("seed", range(12))
def test_mosaic_and_mixup_keep_boxes(seed):
    """Frame in blue, three partners in green, the mixup partner in red: all within their boxes."""
    rng = np.random.default_rng(seed)
    partners = [painted(random_box(rng), channel) for channel in (1, 1, 1, 2)]
    for number, (_, target) in enumerate(partners, start=1):
        target["labels"][:] = number
    drawn = iter(partners)
    mixup = Mixup(1.0, SIZE, fill=0)
    mosaic = Mosaic(1.0, AFFINE, mixup)
    [(image, target)] = mosaic([painted(random_box(rng), 0)], rng, lambda: [next(drawn)])
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


def test_mosaic_joins_around_the_centre():
    tiles = [painted((0, 0, 64, 48), size_hw=(48, 64)) for _ in range(4)]
    mosaic = Mosaic(1.0, Affine((48, 64)))
    canvas, target = mosaic.join(tiles, (40, 70))
    assert canvas.shape == (96, 128, 3)
    expected = [[6, 0, 70, 40], [70, 0, 128, 40], [6, 40, 70, 88], [70, 40, 128, 88]]
    assert target["boxes"].tolist() == expected
    assert (canvas[:88, 6:, 1] == 255).all() and (canvas[88:] == 114).all()


def test_affine_without_randomness_shows_the_top_left_part():
    affine = Affine((20, 30), scale=(1, 1), degrees=0, translate=0, shear=0)
    image, target = painted((5, 6, 20, 40), size_hw=(50, 60))
    [(warped, moved)] = affine([(image, target)], np.random.default_rng(0), no_partner)
    assert np.array_equal(warped, image[:20, :30])
    assert moved["boxes"].tolist() == [[5, 6, 20, 20]]
    outside = make_target([[31, 0, 50, 10]])
    assert len(affine.warp(image, outside, np.eye(2, 3))[1]["labels"]) == 0


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


def test_hsv_equals_the_plain_formula():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    rng = np.random.default_rng(1)
    assert rng.random() < 1.0
    shifts = (rng.uniform(-1, 1, 3) * (5, 30, 30) * rng.integers(0, 2, 3)).astype(np.int16)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + shifts[0]) % 180
    hsv[..., 1:] = np.clip(hsv[..., 1:] + shifts[1:], 0, 255)
    expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)
    frames = [(image, make_target([[1, 1, 5, 5]]))]
    [(shifted, _)] = Hsv()(frames, np.random.default_rng(1), no_partner)
    assert shifts.any() and np.array_equal(shifted, expected)


def test_flip_twice_is_nothing():
    image, target = painted((3, 4, 50, 60))
    assert np.array_equal(flip_target(flip_target(target, image), image)["boxes"], target["boxes"])


def test_mixup_is_the_floor_of_the_mean():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (*SIZE, 3), np.uint8), make_target([[1, 1, 9, 9]])
    partner = rng.integers(0, 256, (*SIZE, 3), np.uint8), make_target([[2, 2, 50, 60]])
    mixed, target = Mixup(1.0, SIZE)._mix(frame, partner, 1.0, False, (0.0, 0.0))
    mean = (frame[0].astype(np.int32) + partner[0]) // 2
    assert np.array_equal(mixed, mean)
    assert target["boxes"].tolist() == [[1, 1, 9, 9], [2, 2, 50, 60]]


def test_mixup_gives_up_on_a_set_without_objects():
    frames = [painted((1, 1, 20, 20))]
    empty = np.zeros((*SIZE, 3), np.uint8), make_target([])
    mixup = Mixup(1.0, SIZE)
    assert mixup(frames, np.random.default_rng(0), lambda: [empty]) is frames


def test_small_boxes_go_and_a_sample_without_any_stays():
    image, _ = painted((0, 0, 20, 20))
    target = make_target([[0, 0, 1, 9], [0, 0, 1.5, 9], [3, 3, 9, 3.5]], [0, 1, 2])
    [(_, kept)] = DropSmall(1.0)([(image, target)], None, no_partner)
    assert kept["labels"].tolist() == [1]
    frames = [(image, make_target([[0, 0, 1, 1]]))]
    [(kept_image, left)] = apply([DropSmall(1.0)], frames, None, no_partner)
    assert kept_image is image and len(left["boxes"]) == 0
    assert len(apply([DropSmall(0.5)], frames, None, no_partner)[0][1]["boxes"]) == 1


@pytest.mark.parametrize("seed", range(6))
def test_frames_of_a_clip_share_every_draw(seed):
    rng = np.random.default_rng(seed)
    still, other = painted(random_box(rng)), painted(random_box(rng))
    transforms = build_transforms(AUGMENT, SIZE)
    frames = apply(transforms, [still] * 3, rng, lambda: [other] * 3)
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
    transforms = build_transforms(AUGMENT, SIZE)
    for frame in frames * 4:
        apply(transforms, [frame], rng, lambda: [frames[int(rng.integers(5))]])


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
    for augment in (AUGMENT, replace(AUGMENT, mosaic=0)):
        [(image, target)] = apply(build_transforms(augment, SIZE), [empty], rng, lambda: [empty])
        assert image.shape == (*SIZE, 3) and target["boxes"].shape == (0, 4)
