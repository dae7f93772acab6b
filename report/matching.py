"""Which detection finds which object, by COCO's rules, for all images at once.

D detections, N objects, P pairs of both in one image that overlap.
"""

from dataclasses import dataclass

import numpy as np

from utils.coco_engine import best
from utils.truth import Detections, Truth

LIMIT = 100  # detections of a class in an image, the best ones
AT_ONCE = 2**20  # pairs whose overlap is computed at a time
FINDS, TOUCHES = 0.5, 0.1  # the IoU that finds an object, and the least that means one


@dataclass(frozen=True)
class Pairs:
    """The pairs that overlap by TOUCHES or more, by detection; of a crowd `iou` is the part of
    the detection that lies in it."""

    found: np.ndarray  # int64 [P] row of the detections
    objects: np.ndarray  # int64 [P] row of the truth
    iou: np.ndarray  # float64 [P]

    def where(self, chosen: np.ndarray) -> "Pairs":
        return Pairs(self.found[chosen], self.objects[chosen], self.iou[chosen])


@dataclass(frozen=True)
class Match:
    """What each detection finds: `objects` [D], row of the truth or -1; `ignored` bool [D]: it is
    neither right nor false."""

    objects: np.ndarray
    ignored: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return (self.objects >= 0) & ~self.ignored

    @property
    def false(self) -> np.ndarray:
        return (self.objects < 0) & ~self.ignored


def ranked(found: Detections) -> Detections:
    """The detections that COCO counts, best first; equal scores are ordered as COCO does."""
    rows = best(found, LIMIT)
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    return Detections(*(column[rows] for column in vars(found).values()))


def overlapping(truth: Truth, found: Detections) -> Pairs:
    """All pairs of an image that touch, whatever their classes."""
    by_image = np.argsort(truth.images, kind="stable")
    bounds = np.searchsorted(truth.images[by_image], np.arange(len(truth.image_ids) + 1))
    first, counts = bounds[found.images], np.diff(bounds)[found.images]
    parts = np.cumsum(counts) // AT_ONCE
    chunks = np.split(np.arange(len(counts)), np.flatnonzero(np.diff(parts)) + 1)
    touching = []
    for rows in chunks:
        begins = np.cumsum(counts[rows]) - counts[rows]
        own = np.repeat(rows, counts[rows])
        place = np.arange(len(own)) - np.repeat(begins - first[rows], counts[rows])
        objects = by_image[place]
        iou = _iou(found.boxes[own], truth.boxes[objects], truth.crowd[objects])
        near = iou >= TOUCHES
        touching.append((own[near], objects[near], iou[near]))
    return Pairs(*(np.concatenate(columns) for columns in zip(*touching, strict=True)))


def of_one_class(pairs: Pairs, truth: Truth, found: Detections) -> Pairs:
    """The pairs whose detection has its object's class."""
    return pairs.where(found.labels[pairs.found] == truth.labels[pairs.objects])


def match(
    pairs: Pairs, truth: Truth, count: int, least: float = FINDS, aside: np.ndarray | None = None
) -> Match:
    """What `count` ranked detections find among the pairs of their own class.

    Best first, each takes the object that it overlaps most (by `least` or more) and that is free;
    if there is none, one of those `aside` (bool [N]), which count for nothing.
    """
    aside = ~truth.counted if aside is None else aside
    pairs = pairs.where(pairs.iou >= least)
    # The later of equals, as COCO's tools have it.
    order = np.lexsort((-pairs.objects, -pairs.iou, aside[pairs.objects], pairs.found))
    pairs = pairs.where(order)
    # Any number of detections may lie in a crowd: each meets one of its own.
    crowd = truth.crowd[pairs.objects]
    sides = np.where(crowd, len(truth.labels) + np.arange(len(crowd)), pairs.objects)
    taken = greedy(pairs.found, sides)
    objects = np.full(count, -1)
    objects[pairs.found[taken]] = pairs.objects[taken]
    return Match(objects, (objects >= 0) & np.append(aside, False)[objects])


def greedy(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The pairs, best first, that are taken if each member of either side is taken once.

    A pair that is the first of both its members is taken whatever happens elsewhere; so all such
    pairs go at once, and the next are looked for among those still free.
    """
    taken, left = [], np.arange(len(one))
    first_one = np.empty(one.max(initial=-1) + 1, np.int64)
    first_two = np.empty(two.max(initial=-1) + 1, np.int64)
    while len(left):
        # Of an index that is met repeatedly the last value stays: backwards, the first.
        first_one[one[left[::-1]]] = left[::-1]
        first_two[two[left[::-1]]] = left[::-1]
        mutual = (first_one[one[left]] == left) & (first_two[two[left]] == left)
        taken.append(left[mutual])
        used_one, used_two = np.zeros(len(first_one), bool), np.zeros(len(first_two), bool)
        used_one[one[taken[-1]]] = used_two[two[taken[-1]]] = True
        left = left[~used_one[one[left]] & ~used_two[two[left]]]
    return np.sort(np.concatenate(taken)) if taken else left


def _iou(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Overlap of aligned boxes [P, 4] (x, y, w, h): [P]."""
    low = np.maximum(boxes[:, :2], objects[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], objects[:, :2] + objects[:, 2:])
    width, height = np.maximum(high - low, 0).T
    shared, own = width * height, boxes[:, 2] * boxes[:, 3]
    whole = np.where(crowd, own, own + objects[:, 2] * objects[:, 3] - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
