"""Sliced inference: a detector looks at tiles of an image as well as at the whole, for objects that
are small in a large image.

K boxes of one image.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from models.detector import BEFORE_NMS, Detector
from utils import boxes as box_ops
from utils.errors import UserError

BATCH = 8  # tiles detected at a time
EDGE = 0.01  # of a tile's side: a box that ends so near to an inner edge counts as cut by it
COVERED = 0.5  # part of a cut box that lies in another one, from which on they are one object


def finder(
    model: Detector, side: int | None, overlap: float, least: float
) -> Callable[[np.ndarray], dict]:
    """`model.detect`, or with a side the sliced one; `least` is the score that will be shown."""
    if side is None:
        return model.detect
    if model.remembers:
        raise UserError(
            "--slice: this model remembers at each place what was there in the frames before, and "
            "tiles lie at other places; leave --slice out, or ask for more pixels with --img_size"
        )
    return lambda image: detect(model, image, side, overlap, least)


def spans(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    """(start, end) of tiles along one side of an image: evenly spread, all of `side` pixels (or of
    the image's), neighbours sharing at least the part `overlap`."""
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - side) / (side * (1 - overlap))) + 1
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    return [(start, start + side) for start in starts]


def detect(
    model: Detector, image: np.ndarray, side: int, overlap: float = 0.2, least: float = 0.0
) -> dict:
    """The detections of the image and of its tiles of `side` pixels, as `model.detect` gives them.

    An object no larger than the overlap lies whole in some tile; larger ones are left to the whole
    image. Boxes that a tile's edge cuts are dropped where a whole box covers them. Those of a score
    of at least `least` are the same whether or not the model gives weaker ones too.
    """
    height, width = image.shape[:2]
    rows, columns = spans(height, side, overlap), spans(width, side, overlap)
    tiles = [(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]
    if len(tiles) == 1:
        return model.detect(image)
    found = [model.detect(image)]
    cut = [torch.zeros_like(found[0]["labels"], dtype=torch.bool)]
    for tile, part in zip(tiles, _detect_tiles(model, image, tiles), strict=True):
        x1, y1, x2, y2 = tile
        cut.append(_cut(part["boxes"], tile, (width, height), EDGE * side))
        found.append({**part, "boxes": part["boxes"] + part["boxes"].new_tensor([x1, y1, x1, y1])})
    merged = {key: torch.cat([part[key] for part in found]) for key in found[0]}
    keep = merge(merged, torch.cat(cut), model.nms, least)[: model.max_dets]
    return {key: value[keep] for key, value in merged.items()}


def merge(found: dict, cut: Tensor, nms: float, least: float = 0.0) -> Tensor:
    """Indices of the boxes that stay, best first: whole ones by NMS, of the cut ones (bool [K])
    those that no whole one and no better cut one of their class covers. A whole one of a score
    below `least` drops only cut ones that are weaker still."""
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    whole = torch.nonzero(~cut).squeeze(1)
    whole = whole[box_ops.nms(boxes[whole], scores[whole], labels[whole], nms)][:BEFORE_NMS]
    rest = torch.nonzero(cut).squeeze(1)
    rest = rest[scores[rest].argsort(descending=True, stable=True)][:BEFORE_NMS]
    # Of any class: the side of a bus in a tile may look like a truck.
    covered = box_ops.pairwise_covered(boxes[rest], boxes[whole]) >= COVERED
    covered &= scores[whole] >= scores[rest][:, None].clamp(max=least)
    rest = rest[~covered.any(dim=1)]
    parts = box_ops.pairwise_covered(boxes[rest], boxes[rest])
    rivals = (torch.maximum(parts, parts.mT) >= COVERED) & (labels[rest][:, None] == labels[rest])
    kept: list[int] = []
    for i, row in enumerate(rivals.tolist()):
        if not any(row[j] for j in kept):
            kept.append(i)
    keep = torch.cat((whole, rest[kept]))
    return keep[scores[keep].argsort(descending=True, stable=True)]


def _detect_tiles(model: Detector, image: np.ndarray, tiles: list[tuple]) -> Iterator[dict]:
    for first in range(0, len(tiles), BATCH):
        batch = tiles[first : first + BATCH]
        yield from model.detect_all([image[y1:y2, x1:x2] for x1, y1, x2, y2 in batch])


def _cut(boxes: Tensor, tile: tuple, size_wh: tuple[int, int], margin: float) -> Tensor:
    """Which boxes, in the tile's own pixels, end at an edge of it that is none of the image's."""
    x1, y1, x2, y2 = tile
    inner = boxes.new_tensor([x1 > 0, y1 > 0, x2 < size_wh[0], y2 < size_wh[1]]).bool()
    gap = torch.cat((boxes[:, :2], boxes.new_tensor([x2 - x1, y2 - y1]) - boxes[:, 2:]), dim=1)
    return ((gap <= margin) & inner).any(dim=1)
