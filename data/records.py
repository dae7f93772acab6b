"""Records: what every reader returns. One table of images, one of boxes, no pixels.

I images, N boxes, C classes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.names import Names, collect
from utils.errors import UserError
from utils.truth import IGNORED_AREA


@dataclass(frozen=True)
class Records:
    """An annotated set: per-image columns of length I, per-box columns of length N."""

    root: Path  # file names are relative to it
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # the set's own id of each class
    files: Names  # of images, or of frames of films: data/films.py
    image_ids: np.ndarray  # int64 [I] the set's own ids
    sizes: np.ndarray  # int32 [I, 2] (h, w)
    starts: np.ndarray  # int64 [I + 1] boxes of image i are rows starts[i]:starts[i + 1]
    boxes: np.ndarray  # float32 [N, 4] xyxy pixels, 0-based, clipped to the image
    labels: np.ndarray  # int64 [N] in 0..C-1
    crowd: np.ndarray  # bool [N] regions rather than objects
    difficult: np.ndarray  # bool [N] VOC's mark
    areas: np.ndarray  # float64 [N] the set's own area, or width times height
    video: np.ndarray  # int64 [I] index into videos, -1 for a still
    frame: np.ndarray  # int64 [I] number in its video, 0 for a still
    videos: tuple[str, ...]
    notes: tuple[str, ...]  # what the reader dropped or found odd

    def __len__(self):
        return len(self.files)

    def path(self, index):
        """Where image `index` lies; data.films.Images reads what is there, whatever it is."""
        return self.root / self.files[index]

    def boxes_of(self, index):
        """dict(boxes, labels, crowd, difficult) of one image: views, not copies."""
        rows = slice(self.starts[index], self.starts[index + 1])
        return {
            "boxes": self.boxes[rows],
            "labels": self.labels[rows],
            "crowd": self.crowd[rows],
            "difficult": self.difficult[rows],
        }

    def limit(self, count):
        """The first `count` images with their boxes."""
        return self.subset(range(min(count, len(self))))

    def subset(self, indices):
        """The images of these indices, in this order, with their boxes."""
        indices = np.asarray(indices, np.int64)
        counts = np.diff(self.starts)[indices]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(self.starts[indices] - starts[:-1], counts) + np.arange(starts[-1])
        images = ("image_ids", "sizes", "video", "frame")
        boxes = ("boxes", "labels", "crowd", "difficult", "areas")
        columns = vars(self)
        return replace(
            self,
            files=collect(self.files[index] for index in indices.tolist()),
            starts=starts,
            **{name: columns[name][indices] for name in images},
            **{name: columns[name][rows] for name in boxes},
        )

    def unlabelled(self):
        """The same images, without any box or class."""
        empty = ("boxes", "labels", "crowd", "difficult", "areas")
        columns = {name: vars(self)[name][:0] for name in empty}
        return replace(
            self, classes=(), category_ids=(), starts=np.zeros(len(self) + 1, np.int64), **columns
        )

    def ground_truth(self):
        """The set as a COCO-format dict: crowd is iscrowd 1; difficult has IGNORED_AREA.

        That lies outside every size range, so evaluation ignores the object, and
        matches it with one detection, while any number of detections may match a crowd.
        """
        images = [
            {"id": image_id, "file_name": file, "height": height, "width": width}
            for image_id, file, (height, width) in zip(
                self.image_ids.tolist(), self.files, self.sizes.tolist(), strict=True
            )
        ]
        owners = np.repeat(self.image_ids, np.diff(self.starts)).tolist()
        xywh = self.boxes.astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        areas = np.where(self.difficult & ~self.crowd, IGNORED_AREA, self.areas)
        rows = zip(owners, self.labels, xywh.tolist(), areas.tolist(), self.crowd, strict=True)
        annotations = [
            {
                "id": number,
                "image_id": owner,
                "category_id": self.category_ids[label],
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (owner, label, bbox, area, crowd) in enumerate(rows, start=1)
        ]
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def summary(self):
        """Counts in a line, boxes per class (the ten most frequent), and the notes."""
        if not self.classes:
            return "\n".join((f"{len(self)} images", *(f"  note: {n}" for n in self.notes)))
        counts = np.bincount(self.labels, minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")[:10]
        shown = ", ".join(f"{self.classes[i]} {counts[i]}" for i in order)
        more = f" and {len(counts) - len(order)} more" if len(counts) > len(order) else ""
        empty = int((np.diff(self.starts) == 0).sum())
        line = (
            f"{len(self)} images ({empty} without objects), {len(self.boxes)} boxes, "
            f"{len(self.classes)} classes: {shown}{more}"
        )
        return "\n".join((line, *(f"  note: {note}" for note in self.notes)))


def read_classes(path):
    """Class names of a text file, one a line, in the order in which they are numbered."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of class names ({error})") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) != len(names):
        raise UserError(f"{path}: expected one class name a line, each once; found {names}")
    return names
