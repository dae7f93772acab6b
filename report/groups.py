"""AP50 of objects of a size or shape alone."""

from typing import NamedTuple

import numpy as np

from report import precision
from report.matching import Pairs, match
from utils.truth import Detections, Truth

# Sides in pixels of a square of the object's area; COCO's three sizes meet at 32 and 96.
SIDES = (0, 8, 16, 32, 64, 96, 192, np.inf)
SHAPES = {  # width by height, from the second number on
    "taller than 3:1": 0.0,
    "3:2 to 3:1 tall": 1 / 3,
    "about square": 2 / 3,
    "3:2 to 3:1 broad": 3 / 2,
    "broader than 3:1": 3.0,
}


class Group(NamedTuple):
    name: str
    ap50: float
    objects: int
    found: int  # of the objects, by any detection


def by_size(truth: Truth, found: Detections, pairs: Pairs) -> list[Group]:
    """The sizes that there are, by the areas that the set itself gives its objects."""
    names = [f"{low} to {high} px" for low, high in zip(SIDES[:-2], SIDES[1:-1], strict=True)]
    names.append(f"{SIDES[-2]} px or more")
    own = np.sqrt(found.boxes[:, 2] * found.boxes[:, 3])
    sides = np.sqrt(np.maximum(truth.areas, 0))
    return _groups(truth, found, pairs, names, SIDES[:-1], sides, own)


def by_shape(truth: Truth, found: Detections, pairs: Pairs) -> list[Group]:
    """The shapes that there are."""
    ratios = [boxes[:, 2] / np.maximum(boxes[:, 3], 1e-9) for boxes in (truth.boxes, found.boxes)]
    return _groups(truth, found, pairs, list(SHAPES), list(SHAPES.values()), *ratios)


def _groups(truth, found, pairs, names, lows, of_objects, of_found) -> list[Group]:
    """As COCO scores a range of areas: objects outside count for nothing, and so do detections
    outside that find none. `pairs` are those of one class."""
    object_group = np.searchsorted(lows, of_objects, side="right") - 1
    found_group = np.searchsorted(lows, of_found, side="right") - 1
    groups = []
    for place, name in enumerate(names):
        inside = truth.counted & (object_group == place)
        if not inside.any():
            continue
        objects = np.bincount(truth.labels[inside], minlength=len(truth.category_ids))
        matched = match(pairs, truth, len(found.labels), aside=~inside)
        counts = ~matched.ignored & (matched.right | (found_group == place))
        curves = precision.curves(found.labels, matched.right, counts, objects)
        right = int(matched.right.sum())
        groups.append(Group(name, precision.average(curves), int(inside.sum()), right))
    return groups
