"""COCO numbers of detections against a COCO-format ground truth, whatever set that came from."""

import contextlib
import io

import numpy as np
from torch import Tensor

from utils import dist

# name, line of the table: (average precision?, IoU threshold, size range, detections per image)
LINES = {
    "AP": (True, None, "all", 100),
    "AP50": (True, 0.5, "all", 100),
    "AP75": (True, 0.75, "all", 100),
    "APs": (True, None, "small", 100),
    "APm": (True, None, "medium", 100),
    "APl": (True, None, "large", 100),
    "AR1": (False, None, "all", 1),
    "AR10": (False, None, "all", 10),
    "AR100": (False, None, "all", 100),
    "ARs": (False, None, "small", 100),
    "ARm": (False, None, "medium", 100),
    "ARl": (False, None, "large", 100),
}
SIZES = ("all", "small", "medium", "large")
LIMITS = (1, 10, 100)
FIRST_IOU = {None: slice(None), 0.5: slice(0, 1), 0.75: slice(5, 6)}  # of 0.50, 0.55, ... 0.95


class Evaluator:
    """Collects detections of a data set and scores them.

    Crowds (iscrowd 1) may match any number of detections and count for nothing; an object whose
    area is -1 counts for nothing and matches one detection (VOC's difficult ones). `engine` is
    "faster" (faster-coco-eval), "pycocotools", or "auto": the first that is installed.
    """

    def __init__(
        self,
        ground_truth: dict,
        classes: tuple[str, ...],
        category_ids: tuple[int, ...],
        *,
        engine: str = "auto",
        max_dets: int = 100,
    ):
        self.ground_truth = ground_truth
        self.classes, self.category_ids = tuple(classes), np.asarray(category_ids, np.int64)
        self.engine = engine
        self._parts: list[np.ndarray] = []
        self._metrics: dict | None = None

    def add(self, image_ids, detections: list[dict]):
        """Takes each image's boxes (xyxy in its own pixels), scores and labels (0..C-1)."""
        self._metrics = None
        for image_id, found in zip(image_ids, detections, strict=True):
            boxes = _numpy(found["boxes"]).astype(np.float64).reshape(-1, 4)  # [K, 4]
            scores, labels = _numpy(found["scores"]), _numpy(found["labels"]).astype(np.int64)
            rows = np.empty((len(boxes), 7))
            rows[:, 0] = int(image_id)
            rows[:, 1:3] = boxes[:, :2]
            rows[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
            rows[:, 5] = scores
            rows[:, 6] = self.category_ids[labels]
            self._parts.append(rows)

    def gather(self):
        """Every process gets the detections of all."""
        self._metrics = None
        self._parts = dist.gather_objects(self.rows())

    def rows(self) -> np.ndarray:
        """[n, 7]: image id, x, y, w, h, score, category id; by image, then by falling score."""
        rows = np.concatenate([np.empty((0, 7)), *self._parts])
        return rows[np.lexsort((-rows[:, 5], rows[:, 0]))]

    def results(self) -> list[dict]:
        """The detections as the list that COCO's servers and tools read."""
        return [
            {
                "image_id": int(image_id),
                "category_id": int(category),
                "bbox": [round(value, 4) for value in xywh],
                "score": round(score, 7),
            }
            for image_id, *xywh, score, category in self.rows().tolist()
        ]

    def compute(self) -> dict:
        """The twelve numbers by name, "per_class" rows and "notes": sentences on what is missing.

        A number is -1 where the ground truth has no object that could count.
        """
        if self._metrics is None:
            rows = self.rows()
            unknown = set(rows[:, 0]) - {image["id"] for image in self.ground_truth["images"]}
            if unknown:
                raise ValueError(
                    f"detections of images without ground truth: {sorted(unknown)[:5]}"
                )
            precision, recall = self._curves(rows)
            numbers = {
                name: _mean((precision if is_ap else recall)[_select(is_ap, iou, size, limit)])
                for name, (is_ap, iou, size, limit) in LINES.items()
            }
            per_class = self._per_class(rows, precision, recall)
            notes = self._notes(rows, numbers, per_class)
            self._metrics = {**numbers, "per_class": per_class, "notes": notes}
        return self._metrics

    def table(self) -> str:
        """The twelve lines in pycocotools' own format."""
        metrics = self.compute()
        lines = []
        for name, (is_ap, iou, size, limit) in LINES.items():
            title, short = ("Average Precision", "(AP)") if is_ap else ("Average Recall", "(AR)")
            ious = "0.50:0.95" if iou is None else f"{iou:.2f}"
            lines.append(
                f" {title:<18} {short} @[ IoU={ious:<9} | area={size:>6s} | maxDets={limit:>3d} ]"
                f" = {metrics[name]:0.3f}"
            )
        return "\n".join(lines)

    def _curves(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Precision [T, R, K, A, M] and recall [T, K, A, M] over IoUs, recalls, classes, sizes."""
        detections = [
            {
                "id": number,
                "image_id": int(image_id),
                "category_id": int(category),
                "bbox": xywh,
                "area": xywh[2] * xywh[3],
                "score": score,
                "iscrowd": 0,
            }
            for number, (image_id, *xywh, score, category) in enumerate(rows.tolist(), start=1)
        ]
        # Copies, because the engines write into them; numbered from 1, because they take an id of 0
        # for "not matched".
        truth = [
            {**annotation, "id": number}
            for number, annotation in enumerate(self.ground_truth["annotations"], start=1)
        ]
        coco, evaluation = _engine(self.engine)
        with contextlib.redirect_stdout(io.StringIO()):
            sets = []
            for annotations in (truth, detections):
                one = coco()
                one.dataset = {**self.ground_truth, "annotations": annotations}
                one.createIndex()
                sets.append(one)
            run = evaluation(*sets, iouType="bbox")
            run.evaluate()
            run.accumulate()
        return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])

    def _per_class(self, rows, precision, recall) -> list[dict]:
        counted = [
            annotation["category_id"]
            for annotation in self.ground_truth["annotations"]
            if not annotation.get("iscrowd") and annotation["area"] >= 0
        ]
        order = np.argsort(np.argsort(self.category_ids))  # the engines sort the classes by id
        table = []
        for name, category, k in zip(self.classes, self.category_ids, order, strict=True):
            table.append(
                {
                    "name": name,
                    "AP": _mean(precision[:, :, k, 0, 2]),
                    "AP50": _mean(precision[0, :, k, 0, 2]),
                    "AR100": _mean(recall[:, k, 0, 2]),
                    "objects": counted.count(category),
                    "detections": int((rows[:, 6] == category).sum()),
                }
            )
        return table

    def _notes(self, rows, numbers, per_class) -> list[str]:
        if not self.ground_truth["images"]:
            return ["no images, so nothing was evaluated"]
        if numbers["AR100"] < 0:
            return ["the ground truth has no object that counts, so every number is -1"]
        notes = []
        if not len(rows):
            notes.append("no detection at all above the confidence threshold")
        missing = [size for size in SIZES[1:] if numbers[f"AR{size[0]}"] < 0]
        if missing:
            notes.append(f"-1: the ground truth has no {' and no '.join(missing)} objects")
        absent = [row["name"] for row in per_class if not row["objects"]]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            notes.append(
                f"classes without objects, left out of the mean: {', '.join(absent[:5])}{more}"
            )
        return notes


def _engine(name: str):
    """The classes (COCO, COCOeval) of the engine."""
    if name not in ("auto", "faster", "pycocotools"):
        raise ValueError(f"engine {name!r} is none of auto, faster, pycocotools")
    if name != "pycocotools":
        try:
            from faster_coco_eval import COCO, COCOeval_faster
        except ImportError:
            if name == "faster":
                raise
        else:
            return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _select(is_ap: bool, iou: float | None, size: str, limit: int) -> tuple:
    """Index of one table line into precision [T, R, K, A, M] or recall [T, K, A, M]."""
    inner = (slice(None),) * (2 if is_ap else 1)
    return FIRST_IOU[iou], *inner, SIZES.index(size), LIMITS.index(limit)


def _mean(values: np.ndarray) -> float:
    """Mean of the entries that exist (the engines mark the others by -1), -1 without any."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def _numpy(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
