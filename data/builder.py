"""Builder: what every reader puts images and boxes into, and gets Records from."""

from array import array
from pathlib import Path

import numpy as np

from data.faults import Faults
from data.names import NameList
from data.records import Records
from utils.errors import UserError
from utils.image import probe_image

UNREADABLE = "images cannot be read"
NO_NUMBERS = "boxes that are no four finite numbers were dropped"
CLIP_NOTED = 2.0  # pixels a box may reach over the edge unmentioned: annotators round
FAR = 1e9  # pixels: beyond every image, within float32
BLOCK = 1 << 16  # boxes that are cleaned at a time, so that temporary arrays stay small


class Builder:
    """Collects a set in columns; the one place that cleans boxes, telling `faults` what it drops.

    `unit` is what the reader counts boxes by: the word before a box's number in a fault's detail;
    `source` the file that lists the images, if there is one.
    """

    def __init__(
        self, root, classes, faults: Faults, category_ids=None, videos=(), unit="object", source=""
    ):
        self.root, self.classes, self.faults, self.unit = Path(root), classes, faults, unit
        self.category_ids, self.videos, self.source = category_ids, videos, source
        self._files, self._sources = NameList(), {}
        self._heights, self._widths = array("i"), array("i")
        self._image_ids, self._video, self._frame = array("q"), array("q"), array("q")
        self._owners, self._boxes, self._labels = array("i"), array("d"), array("i")
        self._crowd, self._difficult = array("b"), array("b")
        self._areas, self._numbers = array("d"), array("q")

    def image(self, file, size_hw=None, image_id=None, video=-1, frame=0, source="") -> int:
        """Adds an image and returns its row; `size_hw` None is read from the file.

        `source` is the annotation file that faults name ("": the image). The row of an image that
        cannot be read, while faults are being collected, is -1; boxes of that row are left out.
        """
        if size_hw is None:
            try:
                size_hw = probe_image(self.root / file)
            except UserError as error:
                self.faults.error(UNREADABLE, self.root / file, str(error))
                return -1
        row = len(self._heights)
        self._files.append(str(file))
        self._heights.append(size_hw[0])
        self._widths.append(size_hw[1])
        self._image_ids.append(row + 1 if image_id is None else image_id)
        self._video.append(video)
        self._frame.append(frame)
        if source:
            self._sources[row] = str(source)
        return row

    def box(self, row, box, label, crowd=False, difficult=False, area=None, number=0):
        """Adds an object, xyxy pixels; area None (or not positive) becomes width times height."""
        if row < 0:
            return
        self._owners.append(row)
        self._boxes.extend(box)
        self._labels.append(label)
        self._crowd.append(crowd)
        self._difficult.append(difficult)
        self._areas.append(area if area and area > 0 else np.nan)
        self._numbers.append(number)

    def boxes(self, rows, boxes, labels, crowd, difficult, areas, numbers):
        """Adds many objects, given as arrays; rows of -1 are left out, areas of 0 are none."""
        here = rows >= 0
        for column, values in (
            (self._owners, rows),
            (self._boxes, boxes),
            (self._labels, labels),
            (self._crowd, crowd),
            (self._difficult, difficult),
            (self._areas, np.where(areas > 0, areas, np.nan)),
            (self._numbers, numbers),
        ):
            values = np.ascontiguousarray(values[here], column.typecode)
            column.frombytes(values.reshape(-1).view(np.uint8))

    def records(self, notes=()) -> Records:
        """The set; its notes are those given and what `faults` says was dropped."""
        count = len(self._heights)
        if not count:
            where = self.source or self.root
            self.faults.error("sets without images", where, f"{where}: the set lists no images")
        files = self._files.names()
        sizes = np.array((self._heights, self._widths), np.int32).T.copy()
        owners = np.asarray(self._owners)
        boxes, keep = self._clean(files, sizes, owners)
        rows = np.argsort(owners, kind="stable")
        rows = rows[keep[rows]]
        boxes, areas = boxes[rows], np.asarray(self._areas)[rows]
        spans = boxes[:, 2:] - boxes[:, :2]
        counts = np.bincount(owners[rows], minlength=count)
        return Records(
            root=self.root,
            classes=tuple(self.classes),
            category_ids=tuple(self.category_ids or range(1, len(self.classes) + 1)),
            files=files,
            image_ids=np.array(self._image_ids, np.int64),
            sizes=sizes,
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=boxes,
            labels=np.asarray(self._labels)[rows].astype(np.int64),
            crowd=np.asarray(self._crowd)[rows] > 0,
            difficult=np.asarray(self._difficult)[rows] > 0,
            areas=np.where(np.isnan(areas), spans.prod(axis=1), areas),
            video=np.array(self._video, np.int64),
            frame=np.array(self._frame, np.int64),
            videos=tuple(self.videos),
            notes=(*notes, *self.faults.notes()),
        )

    def _clean(self, files, sizes, owners):
        """(boxes float32 [N, 4] clipped to their images, keep [N]); tells the faults."""
        table = np.asarray(self._boxes).reshape(-1, 4)
        boxes, keep = np.empty(table.shape, np.float32), np.empty(len(table), bool)
        for first in range(0, len(table), BLOCK):
            part = slice(first, first + BLOCK)
            boxes[part], keep[part], found = clean(table[part], sizes[owners[part]])
            for kind, faulty in found:
                for row in (np.flatnonzero(faulty) + first).tolist():
                    file = self._sources.get(owners[row]) or files[owners[row]]
                    corners = ", ".join(f"{value:g}" for value in table[row])
                    detail = f"{self.unit} {self._numbers[row]}: ({corners})"
                    self.faults.drop(kind, file, detail)
        return boxes, keep


def clean(boxes, sizes_hw):
    """(boxes clipped to their images, keep [N], named faults): not finite, no size, outside."""
    finite = np.isfinite(boxes).all(axis=1)
    # What has a size in float64 may have none in the float32 that is kept.
    boxes = np.clip(np.where(finite[:, None], boxes, 0.0), -FAR, FAR).astype(np.float32)
    clipped = np.clip(boxes, 0, sizes_hw[:, [1, 0, 1, 0]].astype(np.float32))
    sized = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    keep = finite & sized & inside
    over = keep & (np.abs(boxes - clipped).max(axis=1, initial=0) > CLIP_NOTED)
    faults = [
        (NO_NUMBERS, ~finite),
        ("boxes of zero or negative size were dropped", finite & ~sized),
        ("boxes outside their image were dropped", finite & sized & ~inside),
        (f"boxes reached more than {CLIP_NOTED:g} px over the edge and were clipped", over),
    ]
    return clipped, keep, faults
