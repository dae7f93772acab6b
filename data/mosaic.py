"""Augmentations that mix several images, and the order of all augmentations in training.

Parameters are drawn once for a clip; each partner brings as many frames as the clip has.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from data.transforms import (
    Affine,
    DropSmall,
    Fit,
    Flip,
    Hsv,
    clip_boxes,
    flip_target,
    has_area,
    has_objects,
    merge,
    moved,
    resize,
    select,
)
from utils.image import fit

PARTNER_TRIES = 16  # draws before mixup gives up finding a partner with objects


@dataclass(frozen=True)
class Mixup:
    """Averages each frame with a resized, randomly cropped partner that has objects."""

    prob: float
    size_hw: tuple[int, int]
    scale: tuple[float, float] = (0.5, 1.5)
    fill: int = 114

    def __call__(self, frames, rng, draw):
        if rng.random() >= self.prob:
            return frames
        for _ in range(PARTNER_TRIES):
            partners = draw()
            if has_objects(partners):
                factor, mirrored, place = (
                    rng.uniform(*self.scale),
                    rng.random() < 0.5,
                    rng.random(2),
                )
                return [
                    self._mix(frame, partner, factor, mirrored, place)
                    for frame, partner in zip(frames, partners, strict=True)
                ]
        return frames

    def _mix(self, frame, partner, factor, mirrored, place):
        """Frame and partner at half strength each; `place` [2] chooses the crop (x, y)."""
        (image, target), (other, other_target) = frame, partner
        other, ratio = fit(other, self.size_hw)
        canvas = np.full((*self.size_hw, 3), self.fill, np.uint8)
        canvas[: other.shape[0], : other.shape[1]] = other
        canvas = cv2.resize(canvas, [int(side * factor) for side in self.size_hw[::-1]])
        size_hw = canvas.shape[:2]
        boxes = clip_boxes(other_target["boxes"] * np.float32(ratio * factor), size_hw)
        other_target = moved(other_target, boxes)
        if mirrored:
            canvas, other_target = cv2.flip(canvas, 1), flip_target(other_target, canvas)

        height, width = image.shape[:2]
        x, y = (
            int(p * max(s - t, 0))
            for p, s, t in zip(place, size_hw[::-1], (width, height), strict=True)
        )
        crop = np.zeros_like(image)  # a partner smaller than the frame darkens what it leaves free
        part = canvas[y : y + height, x : x + width]
        crop[: part.shape[0], : part.shape[1]] = part
        boxes = other_target["boxes"] - np.array([x, y, x, y], np.float32)
        boxes = clip_boxes(boxes, (height, width))
        other_target = select(moved(other_target, boxes), has_area(boxes))
        half = (image & crop) + ((image ^ crop) >> 1)  # floor of the mean without leaving uint8
        return half, merge([target, other_target])


@dataclass(frozen=True)
class Mosaic:
    """Joins each frame and three partners around a random point, then warps; mixup follows."""

    prob: float
    affine: Affine
    mixup: Mixup | None = None

    def __call__(self, frames, rng, draw):
        if rng.random() >= self.prob:
            return frames
        clips = [frames, draw(), draw(), draw()]
        centre_yx = [int(rng.uniform(0.5, 1.5) * side) for side in self.affine.size_hw]
        matrix = self.affine.draw_matrix(rng)
        joined = [self.join(four, centre_yx) for four in zip(*clips, strict=True)]
        mixes = self.mixup and has_objects(joined)  # before the warp, which may lose them all
        frames = [self.affine.warp(image, target, matrix) for image, target in joined]
        return self.mixup(frames, rng, draw) if mixes else frames

    def join(self, tiles, centre_yx):
        """Four frames set against a point of a canvas of twice the size, cut at its edges."""
        size_hw = self.affine.size_hw
        canvas_hw = 2 * size_hw[0], 2 * size_hw[1]
        canvas = np.full((*canvas_hw, 3), self.affine.fill, np.uint8)
        targets = []
        for number, tile in enumerate(tiles):
            image, target = resize(tile, size_hw)
            height, width = image.shape[:2]
            top = centre_yx[0] - (height if number < 2 else 0)
            left = centre_yx[1] - (width if number % 2 == 0 else 0)
            y, x = max(top, 0), max(left, 0)
            part = image[y - top : canvas_hw[0] - top, x - left : canvas_hw[1] - left]
            canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
            boxes = target["boxes"] + np.array([left, top, left, top], np.float32)
            boxes = clip_boxes(boxes, canvas_hw)
            targets.append(select(moved(target, boxes), has_area(boxes)))
        return canvas, merge(targets)


def build_transforms(augment, size_hw):
    """The training transforms of a recipe's augmentation, in order.

    `augment` has the fields mosaic, mixup, hsv and flip (probabilities), mosaic_scale and
    mixup_scale (lo, hi), degrees, translate, shear, fill and min_box.
    """
    affine = Affine(
        size_hw,
        augment.mosaic_scale,
        augment.degrees,
        augment.translate,
        augment.shear,
        augment.fill,
    )
    mixup = Mixup(augment.mixup, size_hw, augment.mixup_scale, augment.fill)
    return [
        Mosaic(augment.mosaic, affine, mixup),
        Hsv(augment.hsv),
        Flip(augment.flip),
        Fit(size_hw),
        DropSmall(augment.min_box),
    ]
