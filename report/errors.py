"""What is wrong with false detections and missed objects, and what each kind costs: TIDE's
definitions (Bolya et al., arXiv 2008.08115).

D detections, best first; N objects.
"""

from dataclasses import dataclass

import numpy as np

from report import precision
from report.matching import FINDS, Match, Pairs
from utils.truth import Detections, Truth

KINDS = {  # name: what it is, and how an oracle repairs it
    "wrong class": "on an object of another class (IoU 0.5 or more); gets the right class",
    "misplaced": "near an object of its class (0.1 to 0.5); is moved onto it",
    "both": "near an object, and of the wrong class; is left out",
    "second box": "on an object that a better one has found; is left out",
    "background": "on nothing (below 0.1); is left out",
    "missed": "an object that no detection finds, takes for another class or misplaces; is not "
    "counted",
}
CLASS, PLACE, BOTH, SECOND, BACKGROUND = range(5)  # of the detections, in the order of KINDS
FALSE, UNFOUND = "all false detections", "all objects not found"


@dataclass(frozen=True)
class Errors:
    """`kinds` [D]: index into KINDS, -1 for detections that are right or ignored; `meant` [D]: the
    object that one of the wrong class, or misplaced, is about, else -1; `missed` bool [N]; `gains`:
    the AP50 that the repair of each kind alone brings, and of FALSE and UNFOUND."""

    kinds: np.ndarray
    meant: np.ndarray
    missed: np.ndarray
    gains: dict[str, float]


def explain(truth: Truth, found: Detections, pairs: Pairs, match: Match) -> Errors:
    """The errors among ranked detections, given all touching pairs and what was found at FINDS."""
    kinds, meant = _kinds(truth, found, pairs, match)
    unfound = truth.counted.copy()
    unfound[match.objects[match.right]] = False
    missed = unfound.copy()
    missed[meant[meant >= 0]] = False
    gains = _gains(truth, found, match, kinds, meant, unfound, missed)
    return Errors(kinds, meant, missed, gains)


def _kinds(truth, found, pairs, match):
    """(kind, object that is meant) of each detection."""
    pairs = pairs.where(truth.counted[pairs.objects] & match.false[pairs.found])
    same = found.labels[pairs.found] == truth.labels[pairs.objects]
    count = len(found.labels)
    own_iou, own = _nearest(pairs.where(same), count)
    other_iou, other = _nearest(pairs.where(~same), count)
    cases = {  # the first that holds; of touching pairs only, so 0 is below 0.1
        PLACE: (own_iou > 0) & (own_iou < FINDS),
        CLASS: other_iou >= FINDS,
        SECOND: own_iou >= FINDS,
        BOTH: other_iou > 0,
    }
    kinds = np.select(list(cases.values()), list(cases), BACKGROUND)
    kinds[~match.false] = -1
    meant = np.select([kinds == PLACE, kinds == CLASS], [own, other], -1)
    return kinds, meant


def _nearest(pairs: Pairs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """([D] the greatest IoU of each detection, 0 without any, [D] with which object, or -1)."""
    order = np.argsort(pairs.iou, kind="stable")  # the last one written stays
    iou, objects = np.zeros(count), np.full(count, -1)
    iou[pairs.found[order]] = pairs.iou[order]
    objects[pairs.found[order]] = pairs.objects[order]
    return iou, objects


def _gains(truth, found, match, kinds, meant, unfound, missed) -> dict[str, float]:
    objects, classes = truth.objects(), len(truth.category_ids)

    def ap50(labels=found.labels, right=match.right, out=match.ignored, objects=objects):
        return precision.curves(labels, right, ~out, objects)

    def without(rows):
        return ap50(out=match.ignored | rows)

    def repaired(kind):
        """Of several that are about one object, or about one found already, the best is kept."""
        rows = np.flatnonzero((kinds == kind) & np.append(unfound, False)[meant])
        _, first = np.unique(meant[rows], return_index=True)
        kept = np.zeros(len(kinds), bool)
        kept[rows[first]] = True
        out = match.ignored | ((kinds == kind) & ~kept)
        labels = found.labels.copy()
        labels[kept] = truth.labels[meant[kept]]
        return ap50(labels, match.right | kept, out)

    def uncounted(rows):
        """A class whose last objects go stays in the mean, with what it had."""
        left = objects - np.bincount(truth.labels[rows], minlength=classes)
        return np.where(left[:, None] > 0, ap50(objects=left), plain)

    plain = ap50()
    curves = {
        "wrong class": repaired(CLASS),
        "misplaced": repaired(PLACE),
        "both": without(kinds == BOTH),
        "second box": without(kinds == SECOND),
        "background": without(kinds == BACKGROUND),
        "missed": uncounted(missed),
        FALSE: without(kinds >= 0),
        UNFOUND: uncounted(unfound),
    }
    before = precision.average(plain)
    return {name: precision.average(curve) - before for name, curve in curves.items()}
