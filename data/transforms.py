"""Transforms: (frames, rng, draw) -> frames, where a frame is (image, target).

Images are uint8 BGR [H, W, 3] and are never written to, for a cache may hold them. A target is a
dict: boxes float32 [N, 4] xyxy pixels, labels int64 [N], ignore bool [N]. The frames of a clip
share each random draw. `draw()` gives the frames of a random partner.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.image import fit


def select(target, keep):
    """The objects of a target for which keep [N] is true."""
    return {name: column[keep] for name, column in target.items()}


def merge(targets):
    """The objects of several targets in one."""
    return {name: np.concatenate([target[name] for target in targets]) for name in targets[0]}


def moved(target, boxes):
    """The target with other boxes."""
    return {**target, "boxes": boxes.astype(np.float32, copy=False)}


def resize(frame, size_hw):
    """The frame fitted into size_hw, boxes by the same ratio."""
    image, target = frame
    image, ratio = fit(image, size_hw)
    return image, moved(target, target["boxes"] * np.float32(ratio))


def clip_boxes(boxes, size_hw):
    """Boxes cut at the edges of an image."""
    height, width = size_hw
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def has_area(boxes):
    """[N] which boxes have both sides longer than zero."""
    return (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def has_objects(frames):
    return any(len(target["boxes"]) for _, target in frames)


@dataclass(frozen=True)
class Fit:
    """Resizes each frame to fit into size_hw."""

    size_hw: tuple[int, int]

    def __call__(self, frames, rng, draw):
        return [resize(frame, self.size_hw) for frame in frames]


@dataclass(frozen=True)
class Hsv:
    """Shifts hue, saturation and value, each with probability 0.5, by up to `gain`."""

    prob: float = 1.0
    gain: tuple[int, int, int] = (5, 30, 30)

    def __call__(self, frames, rng, draw):
        # As the reference does, frames without objects are left as they are.
        if rng.random() >= self.prob or not has_objects(frames):
            return frames
        shifts = rng.uniform(-1, 1, 3) * self.gain * rng.integers(0, 2, 3)
        table = _hsv_table(shifts.astype(np.int16))
        return [(_shift_hsv(image, table), target) for image, target in frames]


def _hsv_table(shifts):
    """Look-up table uint8 [256, 1, 3]: hue turns (modulo 180), the others stop at 0 and 255."""
    levels = np.arange(256, dtype=np.int16)
    hue = (levels + shifts[0]) % 180
    others = [np.clip(levels + shift, 0, 255) for shift in shifts[1:]]
    return np.stack([hue, *others], axis=1).astype(np.uint8)[:, None]


def _shift_hsv(image, table):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2BGR)


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right."""

    prob: float = 0.5

    def __call__(self, frames, rng, draw):
        if rng.random() >= self.prob:
            return frames
        return [(cv2.flip(image, 1), flip_target(target, image)) for image, target in frames]


def flip_target(target, image):
    """The target of a mirrored image."""
    boxes, width = target["boxes"], np.float32(image.shape[1])
    left, right = width - boxes[:, 2], width - boxes[:, 0]
    return moved(target, np.stack([left, boxes[:, 1], right, boxes[:, 3]], axis=1))


@dataclass(frozen=True)
class DropSmall:
    """Drops objects whose shorter side is at most min_box pixels."""

    min_box: float = 1.0

    def __call__(self, frames, rng, draw):
        return [(image, self._dropped(target)) for image, target in frames]

    def _dropped(self, target):
        boxes = target["boxes"]
        return select(
            target, (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) > self.min_box
        )


@dataclass(frozen=True)
class Affine:
    """Random rotation, scale, shear and shift about the image's origin onto size_hw.

    With scale 1 a larger image shows its top-left part: nothing is centred again.
    """

    size_hw: tuple[int, int]
    scale: tuple[float, float] = (0.1, 2.0)
    degrees: float = 10.0
    translate: float = 0.1  # of the output's size
    shear: float = 2.0  # degrees
    fill: int = 114

    def __call__(self, frames, rng, draw):
        matrix = self.draw_matrix(rng)
        return [self.warp(image, target, matrix) for image, target in frames]

    def draw_matrix(self, rng):
        """Random matrix float64 [2, 3] that maps input to output pixels."""
        height, width = self.size_hw
        angle = rng.uniform(-self.degrees, self.degrees)
        rotation = cv2.getRotationMatrix2D((0, 0), angle, rng.uniform(*self.scale))[:, :2]
        shear_x, shear_y = np.tan(np.radians(rng.uniform(-self.shear, self.shear, 2)))
        shift = rng.uniform(-self.translate, self.translate, 2) * (width, height)
        linear = np.array([[1, shear_y], [shear_x, 1]]) @ rotation
        return np.concatenate([linear, shift[:, None]], axis=1)

    def warp(self, image, target, matrix):
        """The warped image and target; objects that left the output are dropped."""
        height, width = self.size_hw
        fill = (self.fill,) * 3
        image = cv2.warpAffine(image, matrix, (width, height), borderValue=fill)
        boxes = clip_boxes(warp_boxes(target["boxes"], matrix), self.size_hw)
        return image, select(moved(target, boxes), has_area(boxes))


def warp_boxes(boxes, matrix):
    """Axis-aligned hulls of the four warped corners of each box [N, 4]."""
    corners = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 4, 2)  # [N, 4, 2]
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    hulls = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return hulls.astype(np.float32)


def apply(transforms, frames, rng, draw):
    """Runs the transforms in turn. Frames that lost all their objects teach the background."""
    for transform in transforms:
        frames = transform(frames, rng, draw)
    return frames
