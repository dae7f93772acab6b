"""Transforms: (frames, rng, draw) -> frames, where a frame is (patch, target).

Pixels are uint8 BGR [H, W, 3] and are never written to, for a cache may hold them. A target is a
dict: boxes float32 [N, 4] xyxy pixels, labels int64 [N], ignore bool [N]. The frames of a clip
share each random draw. `draw()` gives the frames of a random partner, `Unread`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from utils.image import fit

_TWICE = np.array([0, 1, 0, 1])
_SAME_SIDE = np.kron(np.eye(2), np.ones((2, 2))) > 0  # [4, 4] lower with lower, upper with upper


class Unread(NamedTuple):
    """A frame whose image is read when it turns out to be needed."""

    size_hw: tuple[int, int]
    target: dict
    load: Callable  # -> image


class Patch(NamedTuple):
    """An image that is of one colour outside of some pixels, whose place is (left, top)."""

    pixels: np.ndarray  # uint8 BGR [h, w, 3]
    left: int
    top: int
    size_hw: tuple[int, int]
    colour: np.ndarray  # uint8 BGR [3]

    def recoloured(self, function):
        """The patch after a function of colours."""
        colour = function(self.colour[None, None])[0, 0]
        return self._replace(pixels=function(self.pixels), colour=colour)

    def image(self):
        """All pixels of the image, uint8 BGR [H, W, 3]."""
        height, width = self.pixels.shape[:2]
        if (height, width) == self.size_hw:
            return self.pixels
        image = np.empty((*self.size_hw, 3), np.uint8)
        image.reshape(self.size_hw[0], -1)[:] = np.tile(self.colour, self.size_hw[1])
        image[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return image


def whole(image):
    """The patch that is all of an image."""
    return Patch(image, 0, 0, image.shape[:2], np.zeros(3, np.uint8))


def select(target, keep):
    """The objects of a target for which keep [N] is true."""
    return {name: column[keep] for name, column in target.items()}


def merge(targets):
    """The objects of several targets in one."""
    return {name: np.concatenate([target[name] for target in targets]) for name in targets[0]}


def moved(target, boxes):
    """The target with other boxes."""
    return {**target, "boxes": boxes.astype(np.float32, copy=False)}


def resize(frame, sides):
    """The frame fitted into sides (short, long), and its boxes with it."""
    image, target = frame
    image, scale = fit(image, sides)
    return image, moved(target, target["boxes"] * np.float32(scale * 2))


def clip_boxes(boxes, size_hw):
    """Boxes cut at the edges of an image."""
    height, width = size_hw
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def has_area(boxes):
    """[N] which boxes have both sides longer than zero."""
    return (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def has_objects(targets):
    """Whether there is an object in any of the targets."""
    return any(len(target["boxes"]) for target in targets)


@dataclass(frozen=True)
class Fit:
    """Resizes each frame to fit into sides (short, long)."""

    sides: tuple[int, int]

    def __call__(self, frames, rng, draw):
        return [self._fitted(*frame) for frame in frames]

    def _fitted(self, patch, target):
        if patch.size_hw == self.sides:
            return patch, target
        image, target = resize((patch.image(), target), self.sides)
        return whole(image), target


@dataclass(frozen=True)
class Hsv:
    """Shifts hue, saturation and value, each with probability 0.5, by up to `gain`."""

    prob: float = 1.0
    gain: tuple[int, int, int] = (5, 30, 30)

    def __call__(self, frames, rng, draw):
        # As the reference does, frames without objects are left as they are.
        if rng.random() >= self.prob or not has_objects(target for _, target in frames):
            return frames
        shifts = (rng.uniform(-1, 1, 3) * self.gain * rng.integers(0, 2, 3)).astype(int).tolist()
        if not any(shifts):
            return frames
        shift = partial(shift_hsv, shifts=shifts)
        return [(patch.recoloured(shift), target) for patch, target in frames]


def shift_hsv(image, shifts):
    """The image with its hue turned (modulo 180); the others stop at 0 and 255."""
    # Channel by channel: one table for all three takes twice the time.
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    if shifts[0]:
        hue = cv2.LUT(hue, ((np.arange(256) + shifts[0]) % 180).astype(np.uint8))
    channels = hue, cv2.add(saturation, shifts[1]), cv2.add(value, shifts[2])
    return cv2.cvtColor(cv2.merge(channels), cv2.COLOR_HSV2BGR)


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right."""

    prob: float = 0.5

    def __call__(self, frames, rng, draw):
        if rng.random() >= self.prob:
            return frames
        return [self._mirrored(*frame) for frame in frames]

    def _mirrored(self, patch, target):
        width = patch.size_hw[1]
        left = width - patch.left - patch.pixels.shape[1]
        patch = patch._replace(pixels=cv2.flip(patch.pixels, 1), left=left)
        return patch, flip_target(target, width)


def flip_target(target, width):
    """The target of a mirrored image."""
    boxes, width = target["boxes"], np.float32(width)
    left, right = width - boxes[:, 2], width - boxes[:, 0]
    return moved(target, np.stack([left, boxes[:, 1], right, boxes[:, 3]], axis=1))


@dataclass(frozen=True)
class Shift:
    """Moves all by up to `pixels` to the left and up, or by one less to the right and down.

    What is left free is black; objects that leave the image are dropped.
    """

    pixels: int
    prob: float = 0.5

    def __call__(self, frames, rng, draw):
        if rng.random() >= self.prob:
            return frames
        shift = rng.integers(-self.pixels, self.pixels, 2).tolist()
        return [self._shifted(*frame, *shift) for frame in frames]

    def _shifted(self, patch, target, dx, dy):
        height, width = patch.size_hw
        dx, dy = np.clip((dx, dy), (1 - width, 1 - height), (width - 1, height - 1)).tolist()
        seen = patch.image()[max(-dy, 0) : height - dy, max(-dx, 0) : width - dx]
        boxes = target["boxes"] + np.array([dx, dy, dx, dy], np.float32)
        boxes = clip_boxes(boxes, patch.size_hw)
        patch = whole(seen)._replace(left=max(dx, 0), top=max(dy, 0), size_hw=patch.size_hw)
        return patch, select(moved(target, boxes), has_area(boxes))


@dataclass(frozen=True)
class DropSmall:
    """Drops objects whose shorter side is at most min_box pixels."""

    min_box: float = 1.0

    def __call__(self, frames, rng, draw):
        return [(patch, self._dropped(target)) for patch, target in frames]

    def _dropped(self, target):
        boxes = target["boxes"]
        return select(
            target, (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) > self.min_box
        )


@dataclass(frozen=True)
class Affine:
    """Random rotation, scale, shear and shift about the origin, onto an output of size_hw.

    With scale 1 the output shows the top-left part of what is larger: nothing is centred again.
    """

    size_hw: tuple[int, int]
    scale: tuple[float, float] = (0.1, 2.0)
    degrees: float = 10.0
    translate: float = 0.1  # of the output's size
    shear: float = 2.0  # degrees

    def draw_matrix(self, rng):
        """Random matrix float64 [2, 3] that maps input to output pixels."""
        height, width = self.size_hw
        angle = rng.uniform(-self.degrees, self.degrees)
        rotation = cv2.getRotationMatrix2D((0, 0), angle, rng.uniform(*self.scale))[:, :2]
        shear_x, shear_y = np.tan(np.radians(rng.uniform(-self.shear, self.shear, 2)))
        shift = rng.uniform(-self.translate, self.translate, 2) * (width, height)
        linear = np.array([[1, shear_y], [shear_x, 1]]) @ rotation
        return np.concatenate([linear, shift[:, None]], axis=1)


def warp_boxes(boxes, matrix):
    """Axis-aligned hulls of the four warped corners of each box [N, 4]."""
    # What grows with a coordinate is lowest at the box's lower side, else at its upper side.
    factors = matrix[_TWICE][:, _TWICE]  # [4, 4]
    factors = np.where(_SAME_SIDE, np.maximum(factors, 0), np.minimum(factors, 0))
    return (boxes @ factors.T + matrix[_TWICE, 2]).astype(np.float32)


def apply(transforms, frames, rng, draw):
    """Runs the transforms in turn on (image, target) frames.

    Frames that lost all their objects teach the background.
    """
    frames = [(whole(image), target) for image, target in frames]
    for transform in transforms:
        frames = transform(frames, rng, draw)
    return [(patch.image(), target) for patch, target in frames]
