"""Which class is taken for which, whatever the detector's own opinion of the class.

C classes; index C stands for the background.
"""

from dataclasses import dataclass

import numpy as np

from report.matching import FINDS, Pairs, greedy
from utils.truth import Detections, Truth

SHOWN = 16  # classes that a matrix shows; the rest are put together


@dataclass(frozen=True)
class Confusion:
    """`counts` [R, R]: detections, by what they are called (row) and what they lie on (column);
    the last row counts missed objects, the last column detections on nothing."""

    names: tuple[str, ...]  # of the R rows and columns
    counts: np.ndarray

    def pairs(self) -> list[tuple[str, str, int]]:
        """(what it is, what it is taken for, how often) of two classes, the most frequent first."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        called, real = np.nonzero(between)
        order = np.argsort(-between[called, real], kind="stable")
        return [
            (self.names[real[i]], self.names[called[i]], int(between[called[i], real[i]]))
            for i in order.tolist()
        ]


def confusion(
    truth: Truth, found: Detections, pairs: Pairs, least_score: float, classes: tuple[str, ...]
) -> Confusion:
    """Of ranked detections from a score on. Pairs are taken by IoU, greatest first, from FINDS on,
    each detection and each object once, regardless of class; a detection that is left and lies on
    an object that does not count is left out."""
    background = len(classes)
    strong = found.scores >= least_score
    pairs = pairs.where(strong[pairs.found] & (pairs.iou >= FINDS))
    counted = truth.counted[pairs.objects]
    excused = np.zeros(len(strong), bool)
    excused[pairs.where(~counted).found] = True
    pairs = pairs.where(counted)
    pairs = pairs.where(np.argsort(-pairs.iou, kind="stable"))
    pairs = pairs.where(greedy(pairs.found, pairs.objects))
    on = np.full(len(strong), background)
    on[pairs.found] = truth.labels[pairs.objects]
    missed = truth.counted.copy()
    missed[pairs.objects] = False
    shown = strong & ~(excused & (on == background))
    counts = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(counts, (found.labels[shown], on[shown]), 1)
    np.add.at(counts, (background, truth.labels[missed]), 1)
    return Confusion((*classes, "background"), counts)


def shortened(whole: Confusion) -> Confusion:
    """The classes that are confused, or missed, most often; all others are put together."""
    classes = len(whole.names) - 1
    if classes <= SHOWN:
        return whole
    wrong = whole.counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-(wrong.sum(0) + wrong.sum(1))[:-1], kind="stable")
    place = np.full(classes + 1, SHOWN)  # of each row and column in the shorter matrix
    place[np.sort(order[:SHOWN])] = np.arange(SHOWN)
    place[-1] = SHOWN + 1
    counts = np.zeros((SHOWN + 2, SHOWN + 2), np.int64)
    np.add.at(counts, (place[:, None], place[None, :]), whole.counts)
    names = [whole.names[i] for i in np.sort(order[:SHOWN])]
    return Confusion((*names, f"{classes - SHOWN} other classes", "background"), counts)
