"""What an evaluation compares, in columns: the objects of a set and the detections on it."""

from dataclasses import dataclass

import numpy as np

IGNORED_AREA = -1.0  # of an object that counts for nothing, such as VOC's difficult ones


@dataclass(frozen=True)
class Truth:
    """The objects of a set of I images and C classes, N rows in the order of the set."""

    image_ids: np.ndarray  # int64 [I] rising
    category_ids: np.ndarray  # int64 [C] the set's own id of each class
    images: np.ndarray  # int64 [N] row of image_ids
    labels: np.ndarray  # int64 [N] in 0..C-1
    boxes: np.ndarray  # float64 [N, 4] x, y, w, h
    areas: np.ndarray  # float64 [N] the set's own, IGNORED_AREA where the object is to be ignored
    crowd: np.ndarray  # bool [N] regions rather than objects

    @property
    def counted(self) -> np.ndarray:
        """bool [N]: the objects that are to be found."""
        return ~self.crowd & (self.areas >= 0)

    def objects(self) -> np.ndarray:
        """[C]: how many objects of each class count."""
        return np.bincount(self.labels[self.counted], minlength=len(self.category_ids))


@dataclass(frozen=True)
class Detections:
    """N rows in the order in which a detector gave them, which decides between equal scores."""

    images: np.ndarray  # int64 [N] row of the truth's image_ids
    labels: np.ndarray  # int64 [N]
    boxes: np.ndarray  # float64 [N, 4] x, y, w, h
    scores: np.ndarray  # float64 [N]


def truth_of(ground_truth, category_ids) -> Truth:
    """The truth in a COCO-format dict, or in the records of a data set."""
    columns = _of_coco if isinstance(ground_truth, dict) else _of_records
    return columns(ground_truth, np.asarray(category_ids, np.int64))


def _of_coco(content: dict, category_ids: np.ndarray) -> Truth:
    """Objects of categories or images that the set does not list are left out, as COCO's own tools
    do."""
    label_of = {category: label for label, category in enumerate(category_ids.tolist())}
    known = {image["id"] for image in content["images"]}
    rows = [
        row
        for row in content["annotations"]
        if row["category_id"] in label_of and row["image_id"] in known
    ]
    image_ids = np.array(sorted(known), np.int64)
    owners = np.array([row["image_id"] for row in rows], np.int64)
    return Truth(
        image_ids=image_ids,
        category_ids=category_ids,
        images=np.searchsorted(image_ids, owners),
        labels=np.array([label_of[row["category_id"]] for row in rows], np.int64),
        boxes=np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        areas=np.array([row["area"] for row in rows], np.float64),
        crowd=np.array([row.get("iscrowd", 0) for row in rows], bool),
    )


def _of_records(records, category_ids: np.ndarray) -> Truth:
    image_ids = np.sort(records.image_ids)
    boxes = records.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    images = np.searchsorted(image_ids, records.image_ids)
    ignored = records.difficult & ~records.crowd
    return Truth(
        image_ids=image_ids,
        category_ids=category_ids,
        images=np.repeat(images, np.diff(records.starts)),
        labels=records.labels,
        boxes=boxes,
        areas=np.where(ignored, IGNORED_AREA, records.areas),
        crowd=records.crowd,
    )
