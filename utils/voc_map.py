"""Average precision by the rules of Pascal VOC's devkit.

A detection belongs to the object of its class that it overlaps most. From an overlap of 0.5 on the
best detection of an object is right and every further one false; one that belongs to a difficult
object is neither. Overlaps are those of whole pixels: a box reaches from its first pixel to its
last one, both included, so that a side is x2 - x1 + 1. Detections are not limited in number.
"""

import numpy as np

from utils.truth import Detections, Truth

LEAST_IOU = 0.5
AT_ONCE = 2**21  # pairs of detection and object that are compared at a time
RULES = ("VOC07 11-point", "VOC area")  # the two ways to sum up a curve of precision and recall


def average_precisions(truth: Truth, found: Detections) -> np.ndarray:
    """[C, 2]: the AP of each class by each of the RULES, -1 for a class without objects."""
    order = np.lexsort((found.images, -found.scores, found.labels))
    labels = found.labels[order]
    nearest, overlap = _nearest(truth, found.images[order], labels, found.boxes[order])
    near = overlap >= LEAST_IOU
    ignored = near & ~np.append(truth.counted, False)[nearest]
    rows = np.flatnonzero(near & ~ignored)
    _, first = np.unique(nearest[rows], return_index=True)  # rows are by class, best score first
    right = np.zeros(len(order), bool)
    right[rows[first]] = True
    results = np.full((len(truth.category_ids), len(RULES)), -1.0)
    for label, objects in enumerate(truth.objects().tolist()):
        if objects:
            results[label] = _under_curve(right[(labels == label) & ~ignored], objects)
    return results


def _nearest(truth: Truth, images, labels, boxes) -> tuple[np.ndarray, np.ndarray]:
    """(row of the truth that each detection overlaps most, the first of equals; that overlap)."""
    classes = len(truth.category_ids)
    keys = truth.images * classes + truth.labels
    by_key = np.argsort(keys, kind="stable")
    wanted = images * classes + labels
    first = np.searchsorted(keys[by_key], wanted, side="left")
    counts = np.searchsorted(keys[by_key], wanted, side="right") - first
    nearest, best = np.zeros(len(wanted), np.int64), np.zeros(len(wanted))
    some = np.flatnonzero(counts)
    parts = np.cumsum(counts[some]) // AT_ONCE
    for rows in np.split(some, np.flatnonzero(np.diff(parts)) + 1):
        if not len(rows):
            continue
        begins = np.cumsum(counts[rows]) - counts[rows]
        place = np.arange(counts[rows].sum()) - np.repeat(begins - first[rows], counts[rows])
        objects = by_key[place]
        overlap = _iou(boxes[np.repeat(rows, counts[rows])], truth.boxes[objects])
        best[rows] = np.maximum.reduceat(overlap, begins)
        equal = np.flatnonzero(overlap == np.repeat(best[rows], counts[rows]))
        nearest[rows] = objects[equal[np.searchsorted(equal, begins)]]
    return nearest, best


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of aligned boxes [N, 4] (x, y, w, h) whose last pixels belong to them."""
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    shared = np.clip(high - low + 1, 0, None).prod(axis=1)
    return shared / ((a[:, 2:] + 1).prod(axis=1) + (b[:, 2:] + 1).prod(axis=1) - shared)


def _under_curve(right: np.ndarray, objects: int) -> tuple[float, float]:
    """AP by each of the RULES, of a class' detections, best first, and its number of objects."""
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a greater one
    # In whole numbers, for 3 of 10 is not 0.1 + 0.1 + 0.1.
    at = np.searchsorted(hits * 10, np.arange(11) * objects)
    eleven = np.append(highest, 0.0)[at].sum() / 11
    return eleven, highest[right].sum() / objects
