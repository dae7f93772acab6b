"""Average precision and the curves it is the area of.

D detections, best first; C classes.
"""

from dataclasses import dataclass

import numpy as np

RECALLS = np.linspace(0, 1, 101)  # COCO's


def curves(labels, right, counts, objects) -> np.ndarray:
    """[C, 101]: the best precision at each of RECALLS or beyond, -1 for a class without objects.

    Of the detections [D] those that `counts` (bool) are right or false; `objects` [C] are to be
    found.
    """
    result = np.full((len(objects), len(RECALLS)), -1.0)
    rows = np.flatnonzero(counts)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    bounds = np.searchsorted(labels[rows], np.arange(len(objects) + 1))
    for label in np.flatnonzero(objects).tolist():
        of_class = right[rows[bounds[label] : bounds[label + 1]]]
        result[label] = _curve(of_class, objects[label])
    return result


def _curve(right: np.ndarray, objects: int) -> np.ndarray:
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / objects, RECALLS)
    return np.append(precision, 0.0)[np.minimum(at, len(precision))]


def average(curves: np.ndarray) -> float:
    """The mean over the classes that have objects; -1 without any."""
    some = curves[curves[:, 0] >= 0]
    return float(some.mean()) if len(some) else -1.0


@dataclass(frozen=True)
class Thresholds:
    """What a threshold on the score brings: precision, recall and F1 of the detections from each
    of `scores` (falling) on."""

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @property
    def best(self) -> int:
        """Index of the greatest F1."""
        return int(self.f1.argmax())


def thresholds(scores, right, counts, objects: int) -> Thresholds:
    """For all classes together; empty without detections that count."""
    scores, right = scores[counts], right[counts]
    last = np.append(np.diff(scores) != 0, True)[: len(scores)]  # equal scores pass together
    hits, seen = np.cumsum(right)[last], np.arange(1, len(right) + 1)[last]
    return Thresholds(
        scores[last],
        hits / seen,
        hits / max(objects, 1),
        2 * hits / (seen + max(objects, 1)),
    )
