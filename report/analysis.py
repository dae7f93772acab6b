"""All that a report tells of detections: computed once, in columns."""

from dataclasses import dataclass

import numpy as np

from report import confusion, errors, groups, matching, precision
from utils.truth import Detections, Truth

SCORE = 0.3  # from which on detections are drawn and counted, as test.py draws them
IOUS = (0.5, 0.75)  # of the curves of precision and recall


@dataclass(frozen=True)
class Analysis:
    """Of D detections, best first, and N objects of C classes."""

    truth: Truth
    found: Detections  # ranked: COCO's best of each class in an image
    touching: matching.Pairs
    match: matching.Match  # at IoU 0.5
    curves: dict[float, np.ndarray]  # of each of IOUS: [C, 101]
    thresholds: precision.Thresholds
    errors: errors.Errors
    confusion: confusion.Confusion
    sizes: list[groups.Group]
    shapes: list[groups.Group]

    @property
    def strong(self) -> np.ndarray:
        """bool [D]: from SCORE on."""
        return self.found.scores >= SCORE

    def missed(self) -> np.ndarray:
        """bool [N]: objects that no strong detection finds."""
        missed = self.truth.counted.copy()
        missed[self.match.objects[self.match.right & self.strong]] = False
        return missed


def analyze(truth: Truth, detections: Detections, classes: tuple[str, ...]) -> Analysis:
    found = matching.ranked(detections)
    count, objects = len(found.labels), truth.objects()
    touching = matching.overlapping(truth, found)
    alike = matching.of_one_class(touching, truth, found)
    matches = {iou: matching.match(alike, truth, count, iou) for iou in IOUS}
    curves = {
        iou: precision.curves(found.labels, match.right, ~match.ignored, objects)
        for iou, match in matches.items()
    }
    match = matches[matching.FINDS]
    return Analysis(
        truth,
        found,
        touching,
        match,
        curves,
        precision.thresholds(found.scores, match.right, ~match.ignored, int(objects.sum())),
        errors.explain(truth, found, touching, match),
        confusion.confusion(truth, found, touching, SCORE, classes),
        groups.by_size(truth, found, alike),
        groups.by_shape(truth, found, alike),
    )
