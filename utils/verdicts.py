"""Which detections are right, misplaced, of the wrong class or false, and which objects missed.

K detections, G annotated objects. The rules are made after TIDE (arXiv 2008.08115), with three
differences: a duplicate and a wrong class come before a misplaced box, and what TIDE calls both
misplaced and of the wrong class counts as false.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from utils import boxes as box_ops

RIGHT_IOU, NEAR_IOU = 0.5, 0.1  # what finds an object, what at least means one


@dataclass(frozen=True)
class Judged:
    """`verdicts` [K] names; `taken_for` [K] the object that a detection of the wrong class lies on
    (-1 for all others); `missed` and `ignored` bool [G]."""

    verdicts: list[str]
    taken_for: list[int]
    missed: np.ndarray
    ignored: np.ndarray

    def counts(self) -> Counter:
        """How often each verdict was given; "missed" counts objects."""
        return Counter(self.verdicts) + Counter(missed=int(self.missed.sum()))


def judge(found: dict, truth: dict) -> Judged:
    """Judges detections (boxes, scores, labels) by the objects (boxes, labels, crowd, difficult).

    Best first, each takes the object of its class that it overlaps most (IoU of 0.5 or more) and
    that is still free: right. One of the others is, by the first of these that holds: ignored (on
    a difficult object or a crowd of its class), false (a second box on a found object), wrong class
    (IoU of 0.5 or more), misplaced (0.1 or more, the right class), false. Missed are the objects
    that no detection found, named wrongly or misplaced; crowds and difficult ones never are.
    """
    ignored = truth["crowd"] | truth["difficult"]
    overlap, covered = _overlaps(found["boxes"], truth["boxes"])  # [K, G]
    covering = np.where(truth["crowd"], covered, overlap) >= RIGHT_IOU
    same = found["labels"][:, None] == truth["labels"]
    overlap = np.where(ignored, -1.0, overlap)
    free, met = ~ignored, np.zeros(len(ignored), bool)
    verdicts, taken_for = [""] * len(found["scores"]), [-1] * len(found["scores"])
    for i in np.argsort(-found["scores"], kind="stable"):
        candidates = np.where(same[i] & free, overlap[i], -1.0)
        right = same[i] & (overlap[i] >= RIGHT_IOU)
        wrong = ~same[i] & (overlap[i] >= RIGHT_IOU)
        near = same[i] & (overlap[i] >= NEAR_IOU)
        if candidates.max(initial=-1.0) >= RIGHT_IOU:
            verdicts[i] = "right"
            best = candidates.argmax()
            free[best], met[best] = False, True
        elif (same[i] & ignored & covering[i]).any():
            verdicts[i] = "ignored"
        elif right.any():
            verdicts[i] = "false"
        elif wrong.any():
            verdicts[i] = "wrong class"
            taken_for[i] = int(np.where(wrong, overlap[i], -1.0).argmax())
            met |= wrong
        elif near.any():
            verdicts[i] = "misplaced"
            met |= near
        else:
            verdicts[i] = "false"
    return Judged(verdicts, taken_for, ~met & ~ignored, ignored)


def _overlaps(boxes: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and the shared part of each box, of every pair: [K, 4], [G, 4] -> two of [K, G]."""
    one, two = torch.from_numpy(boxes).double(), torch.from_numpy(objects).double()
    return box_ops.pairwise_iou(one, two).numpy(), box_ops.pairwise_covered(one, two).numpy()
