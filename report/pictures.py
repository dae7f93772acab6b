"""The images, objects and detections that went worst, as pictures."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import cv2
import numpy as np

from report.analysis import Analysis
from report.errors import CLASS, KINDS
from utils import page, vis
from utils.errors import UserError
from utils.verdicts import judge

IMAGES, CROPS, PER_IMAGE = 8, 12, 2  # how many are shown, and of crops at most from one image
IMAGE_SIDE, CROP_SIDE = 640, 220  # pixels
ROOM, LEAST_ROOM = 2.2, 64  # a crop's side, in longer sides of its box, and at least in pixels


class Pictures:
    """The pictures of a set's records (data.records.Records) and an analysis of detections on it;
    `read(path)` reads an image."""

    def __init__(self, analysis: Analysis, records, read: Callable[[Path], np.ndarray]):
        self._analysis, self._records, self._read = analysis, records, read
        self._index = np.argsort(records.image_ids)  # of the image in each row of the truth
        self._classes = records.classes
        self._missed = analysis.missed()
        self._boxes = _corners(analysis.found.boxes)
        self._objects = _corners(analysis.truth.boxes)

    def worst(self) -> list[str]:
        """Figures of the images with most errors from SCORE on."""
        found, truth = self._analysis.found, self._analysis.truth
        strong = self._analysis.strong & self._analysis.match.false
        count = len(truth.image_ids)
        errors = np.bincount(found.images[strong], minlength=count)
        errors = errors + np.bincount(truth.images[self._missed], minlength=count)
        rows = np.argsort(-errors, kind="stable")[:IMAGES]
        return self._readable(self._image, rows[errors[rows] > 0])

    def missed(self) -> list[str]:
        """Figures of objects that nothing finds, the largest first."""
        truth = self._analysis.truth
        rows = np.flatnonzero(self._missed)
        rows = rows[np.argsort(-truth.areas[rows], kind="stable")]
        return self._readable(self._object, _few(rows, truth.images))

    def false(self) -> list[str]:
        """Figures of the false detections with the highest scores."""
        rows = np.flatnonzero(self._analysis.match.false)
        return self._readable(self._detection, _few(rows, self._analysis.found.images))

    def _readable(self, draw, rows) -> list[str]:
        figures = []
        for row in rows.tolist():
            try:
                figures.append(draw(row))
            except UserError:
                continue  # an image that has gone, or is damaged
        return figures

    def _image(self, row: int) -> str:
        found, index = self._analysis.found, self._index[row]
        chosen = np.flatnonzero(self._analysis.strong & (found.images == row))
        of_image = {
            "boxes": self._boxes[chosen],
            "scores": found.scores[chosen],
            "labels": found.labels[chosen],
        }
        truth = self._records.boxes_of(index)
        judged = judge(of_image, truth)
        image = self._read(self._records.path(index))
        drawn = vis.draw_verdicts(image, of_image, truth, judged, self._classes)
        counts = judged.counts()
        counts = ", ".join(f"{counts[name]} {name}" for name in vis.VERDICTS if counts[name])
        return self._figure(drawn, row, counts, IMAGE_SIDE)

    def _object(self, row: int) -> str:
        truth, found = self._analysis.truth, self._analysis.found
        _, _, width, height = truth.boxes[row].tolist()
        pairs = self._analysis.touching
        on = pairs.found[(pairs.objects == row) & (pairs.iou >= 0.5)]
        text = f"{self._classes[truth.labels[row]]}, {width:.0f} x {height:.0f} px; "
        if len(on):
            best = on.min()  # they are ranked
            text += f"best box on it: {self._classes[found.labels[best]]} {found.scores[best]:.2f}"
        else:
            text += "no box on it"
        image = truth.images[row]
        crop = self._crop(image, self._objects[row], vis.VERDICTS["missed"], ())
        return self._figure(crop, image, text, CROP_SIDE)

    def _detection(self, row: int) -> str:
        found, errors = self._analysis.found, self._analysis.errors
        kind, meant = errors.kinds[row], errors.meant[row]
        text = f"{self._classes[found.labels[row]]} {found.scores[row]:.2f}: {list(KINDS)[kind]}"
        if kind == CLASS:
            text += f", it is {self._classes[self._analysis.truth.labels[meant]]}"
        image = found.images[row]
        objects = self._objects[self._analysis.truth.images == image]
        crop = self._crop(image, self._boxes[row], vis.VERDICTS["false"], objects)
        return self._figure(crop, image, text, CROP_SIDE)

    def _crop(self, row: int, box, color, others) -> np.ndarray:
        """The surroundings of a box, enlarged: the box in its colour, others in white."""
        image = self._read(self._records.path(self._index[row]))
        side = max(ROOM * max(box[2] - box[0], box[3] - box[1]), LEAST_ROOM)
        height, width = (min(side, size) for size in image.shape[:2])
        centre = (box[:2] + box[2:]) / 2
        low = np.clip(
            centre - (width / 2, height / 2), 0, np.array(image.shape[1::-1]) - (width, height)
        )
        x, y = np.floor(low).astype(int)
        part = image[y : y + round(height), x : x + round(width)]
        zoom = CROP_SIDE / max(part.shape[:2])
        kind = cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA
        part = np.ascontiguousarray(cv2.resize(part, None, fx=zoom, fy=zoom, interpolation=kind))
        for each, ink in (*((other, vis.WHITE) for other in others), (box, color)):
            corners = np.rint((each - (x, y, x, y)) * zoom).astype(int).tolist()
            vis.frame(part, corners, vis.RIM, 5)
            vis.frame(part, corners, ink, 3)
        return part

    def _figure(self, picture: np.ndarray, row: int, text: str, side: int) -> str:
        name = str(self._records.files[self._index[row]])
        caption = f"{escape(text)}<br>{escape(name)}"
        return page.figure(caption, page.picture(picture, f"{name}: {text}", side), below=True)


def _corners(boxes_xywh: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), axis=1)


def _few(rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The first CROPS of the rows, of one image PER_IMAGE at most."""
    order = np.argsort(images[rows], kind="stable")
    of_image = images[rows][order]
    place = np.empty(len(rows), np.int64)  # among the rows of its image
    place[order] = np.arange(len(rows)) - np.searchsorted(of_image, of_image)
    return rows[place < PER_IMAGE][:CROPS]
