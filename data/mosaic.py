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
    Patch,
    Shift,
    Unread,
    clip_boxes,
    flip_target,
    has_area,
    has_objects,
    merge,
    moved,
    select,
    warp_boxes,
    whole,
)
from utils.errors import UserError
from utils.image import fit, is_square

PARTNER_TRIES = 16  # draws before mixup gives up finding a partner with objects


@dataclass(frozen=True)
class Mixup:
    """Averages each frame with a resized, randomly cropped partner that has objects; `size_hw` is
    a square that holds either of them."""

    prob: float
    size_hw: tuple[int, int]
    scale: tuple[float, float] = (0.5, 1.5)
    fill: int = 114

    def __call__(self, frames, rng, draw):
        if rng.random() >= self.prob:
            return frames
        for _ in range(PARTNER_TRIES):
            partners = draw()
            if has_objects(partner.target for partner in partners):
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
        image, target, other_target = frame[0].image(), frame[1], partner.target
        other, (ratio, _) = fit(partner.load(), self.size_hw)
        canvas = np.full((*self.size_hw, 3), self.fill, np.uint8)
        canvas[: other.shape[0], : other.shape[1]] = other
        canvas = cv2.resize(canvas, [int(side * factor) for side in self.size_hw[::-1]])
        size_hw = canvas.shape[:2]
        boxes = clip_boxes(other_target["boxes"] * np.float32(ratio * factor), size_hw)
        other_target = moved(other_target, boxes)
        if mirrored:
            canvas, other_target = cv2.flip(canvas, 1), flip_target(other_target, size_hw[1])

        height, width = image.shape[:2]
        x, y = (
            int(p * max(s - t, 0))
            for p, s, t in zip(place, size_hw[::-1], (width, height), strict=True)
        )
        cut = np.zeros_like(image)  # a partner smaller than the frame darkens what it leaves free
        part = canvas[y : y + height, x : x + width]
        cut[: part.shape[0], : part.shape[1]] = part
        boxes = other_target["boxes"] - np.array([x, y, x, y], np.float32)
        boxes = clip_boxes(boxes, (height, width))
        other_target = select(moved(other_target, boxes), has_area(boxes))
        half = (image & cut) + ((image ^ cut) >> 1)  # floor of the mean without leaving uint8
        return whole(half), merge([target, other_target])


@dataclass(frozen=True)
class Mosaic:
    """Joins each frame and three partners on a canvas, of which the output shows a warped part.

    The canvas has twice the output's size, and the four meet at a random point of it; frames fit
    into the output's size. Mixup follows.
    """

    prob: float
    affine: Affine
    mixup: Mixup | None = None
    fill: int = 114

    def __call__(self, frames, rng, draw):
        if rng.random() >= self.prob:
            return frames
        own = [Unread(patch.size_hw, target, patch.image) for patch, target in frames]
        clips = [own, draw(), draw(), draw()]
        centre_yx = [int(rng.uniform(0.5, 1.5) * side) for side in self.affine.size_hw]
        matrix = self.affine.draw_matrix(rng)
        frames = [self.join(tiles, centre_yx, matrix) for tiles in zip(*clips, strict=True)]
        # Asked of what was joined: the warp may have lost all objects.
        if self.mixup and has_objects(tile.target for clip in clips for tile in clip):
            frames = self.mixup(frames, rng, draw)
        return frames

    def join(self, tiles, centre_yx, matrix):
        """(patch, target): four `Unread` tiles that meet at centre_yx, warped by matrix."""
        heights, widths = np.array([tile.size_hw for tile in tiles]).T
        lefts = centre_yx[1] - widths * (1, 0, 1, 0)
        tops = centre_yx[0] - heights * (1, 1, 0, 0)
        places = np.stack([lefts, tops, lefts + widths, tops + heights], axis=1)  # [4, xyxy]
        return self._patch(tiles, places, matrix), self._target(tiles, places[:, :2], matrix)

    def _patch(self, tiles, places, matrix):
        """What the output shows of the tiles; only those that it shows are read."""
        size_hw, ground = self.affine.size_hw, np.full(3, self.fill, np.uint8)
        view = shown_part(matrix, size_hw, [2 * side for side in size_hw])
        parts = np.clip(places, view[:2] * 2, view[2:] * 2)  # [4, xyxy]
        seen = np.flatnonzero(has_area(parts))
        if not len(seen):
            return Patch(ground[None, None], 0, 0, size_hw, ground)
        x1, y1 = parts[seen, :2].min(axis=0).tolist()
        x2, y2 = parts[seen, 2:].max(axis=0).tolist()
        # A fourth channel, unused, because OpenCV warps four channels in half the time of three.
        canvas = np.full((y2 - y1, x2 - x1, 4), self.fill, np.uint8)
        for number in seen.tolist():
            (x, y, _, _), part = places[number].tolist(), parts[number].tolist()
            hole = crop(canvas, part, x1, y1)
            cv2.cvtColor(crop(tiles[number].load(), part, x, y), cv2.COLOR_BGR2BGRA, dst=hole)
        hull = warp_boxes(np.array([[x1 - 1, y1 - 1, x2 + 1, y2 + 1]]), matrix)[0]
        left, top, right, bottom = inner_part(hull, size_hw)
        matrix = np.column_stack([matrix[:, :2], matrix @ (x1, y1, 1) - (left, top)])
        size = right - left, bottom - top
        pixels = cv2.warpAffine(canvas, matrix, size, borderValue=(self.fill,) * 4)
        return Patch(cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR), left, top, size_hw, ground)

    def _target(self, tiles, corners, matrix):
        """All tiles' objects in output pixels; those that left canvas or output are dropped."""
        size_hw = self.affine.size_hw
        target = merge([tile.target for tile in tiles])
        counts = [len(tile.target["boxes"]) for tile in tiles]
        shifts = np.repeat(corners[:, [0, 1, 0, 1]].astype(np.float32), counts, axis=0)
        boxes = clip_boxes(target["boxes"] + shifts, [2 * side for side in size_hw])
        warped = clip_boxes(warp_boxes(boxes, matrix), size_hw)
        return select(moved(target, warped), has_area(boxes) & has_area(warped))


def shown_part(matrix, size_hw, canvas_hw):
    """(x1, y1, x2, y2): the part of a canvas from which a warp onto size_hw takes its pixels."""
    output = np.array([[0, 0, size_hw[1], size_hw[0]]])
    return inner_part(warp_boxes(output, cv2.invertAffineTransform(matrix))[0], canvas_hw)


def inner_part(box, size_hw):
    """(x1, y1, x2, y2): the pixels of a box and those next to it that lie in size_hw; some."""
    x1, y1, x2, y2 = box.tolist()
    left, right = _span(x1, x2, size_hw[1])
    top, bottom = _span(y1, y2, size_hw[0])
    return left, top, right, bottom


def _span(low, high, side):
    """(first, last + 1) of the pixels from low to high, and of two more at either end."""
    first = min(max(int(low) - 2, 0), side - 1)
    return first, min(max(int(high) + 2, first + 1), side)


def crop(image, box, left, top):
    """The pixels of a box, of an image that begins at (left, top)."""
    x1, y1, x2, y2 = box
    return image[y1 - top : y2 - top, x1 - left : x2 - left]


def build_transforms(augment, sides):
    """The training transforms of a recipe's augmentation, in order.

    `augment` has the fields mosaic, mixup, hsv and flip (probabilities), mosaic_scale and
    mixup_scale (lo, hi), degrees, translate, shear, fill, shift (pixels of `sides`) and min_box.
    """
    if augment.mosaic and not is_square(sides):
        raise UserError(
            f"mosaic makes square images, and this model's are {sides[0]} to {sides[1]} pixels; "
            "give the side of a square with --img_size, or train without mosaic: as many "
            "--plain_epochs as --epochs"
        )
    affine = Affine(
        sides,
        augment.mosaic_scale,
        augment.degrees,
        augment.translate,
        augment.shear,
    )
    mixup = Mixup(augment.mixup, sides, augment.mixup_scale, augment.fill)
    shift = [Shift(augment.shift)] if augment.shift else []
    return [
        Mosaic(augment.mosaic, affine, mixup, augment.fill),
        Hsv(augment.hsv),
        Flip(augment.flip),
        Fit(sides),
        *shift,
        DropSmall(augment.min_box),
    ]
