"""The numbers of detections against a set's objects: COCO's, VOC's, and those of each class."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils import coco_engine, dist, voc_map
from utils.columns import aligned
from utils.truth import Detections, truth_of


class Line(NamedTuple):
    """What one number is of: average precision or recall, at an IoU (None: the mean over all ten),
    of objects in a range of sizes, with so many detections of a class in an image."""

    is_ap: bool
    iou: float | None
    size: str
    limit: int


LINES = {
    "AP": Line(True, None, "all", 100),
    "AP50": Line(True, 0.5, "all", 100),
    "AP75": Line(True, 0.75, "all", 100),
    "APs": Line(True, None, "small", 100),
    "APm": Line(True, None, "medium", 100),
    "APl": Line(True, None, "large", 100),
    "AR1": Line(False, None, "all", 1),
    "AR10": Line(False, None, "all", 10),
    "AR100": Line(False, None, "all", 100),
    "ARs": Line(False, None, "small", 100),
    "ARm": Line(False, None, "medium", 100),
    "ARl": Line(False, None, "large", 100),
}
LIMITS = (1, 10, 100)
# Sides of a square of that area, in pixels; both ends belong to the range.
SIZES = {"all": (0, 1e5), "small": (0, 32), "medium": (32, 96), "large": (96, 1e5)}
# Those of XS-VID (arXiv 2407.18137): extremely, relatively and generally small objects.
TINY_SIZES = {"eS 0-12 px": (0, 12), "rS 12-20 px": (12, 20), "gS 20-32 px": (20, 32)}
TINY_LINES = {
    name + size[:2]: Line(True, iou, size, 100)
    for size in TINY_SIZES
    for name, iou in (("AP", None), ("AP50", 0.5), ("AP75", 0.75))
}
XSVID = ("AP", "AP50", "AP75", "APeS", "APrS", "APgS")  # in the order of its table
AP_BESIDE_THE_FIRST = ("AP50", "AP75", "APs", "APm", "APl")
IOU_ROWS = {None: slice(None), 0.5: slice(0, 1), 0.75: slice(5, 6)}  # of 0.50, 0.55, ... 0.95


class Evaluator:
    """Collects detections of a data set and scores them.

    Crowds (iscrowd 1) may match any number of detections and count for nothing; an object whose
    area is -1 counts for nothing and matches one detection (VOC's difficult ones). `ground_truth`
    is the set's Records, or a dict in COCO's format; of a set of videos the three sizes of small
    objects are scored too, TINY_LINES. `engine` is "faster" (faster-coco-eval),
    "pycocotools", or "auto": the first that is installed. `max_dets` and `areas`, as in
    {"tiny": (0, 16)} pixels of a side, ask for the lines of `extra_table`.
    """

    main = ("AP", "AP50")  # what a training prints; best.pth has the highest of the first

    def __init__(
        self,
        ground_truth,
        classes: tuple[str, ...],
        category_ids: tuple[int, ...],
        *,
        engine: str = "auto",
        max_dets: tuple[int, ...] = (),
        areas: dict[str, tuple[float, float]] | None = None,
    ):
        self.classes = tuple(classes)
        self.truth = truth_of(ground_truth, category_ids)
        self.max_dets = tuple(sorted(set(max_dets)))
        areas = {f"{name} {lo:g}-{hi:g} px": (lo, hi) for name, (lo, hi) in (areas or {}).items()}
        self.of_videos = _has_videos(ground_truth)
        self.sizes = {**SIZES, **(TINY_SIZES if self.of_videos else {}), **areas}
        self._asked = list(areas)
        self._curves = coco_engine.named(engine)
        self._parts: list[tuple] = []  # image ids, labels, boxes xywh, scores
        self._not_finite = 0
        self._metrics: dict | None = None

    def __len__(self):
        return sum(len(scores) for *_, scores in self._parts)

    def add(self, image_ids, detections: list[dict]):
        """Takes each image's boxes (xyxy in its own pixels), scores and labels (0..C-1)."""
        if not detections:
            return
        boxes, scores, labels = (
            _joined([found[name] for found in detections]) for name in ("boxes", "scores", "labels")
        )
        counts = [len(found["scores"]) for found in detections]
        ids = np.array([int(image_id) for image_id in image_ids], np.int64)
        boxes = boxes.reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        self.add_columns(np.repeat(ids, counts), labels.astype(np.int64), boxes, scores)

    def add_columns(self, image_ids, labels, boxes_xywh, scores):
        """Takes detections as columns; those that are not finite are left out and counted."""
        finite = np.isfinite(boxes_xywh).all(axis=1) & np.isfinite(scores)
        self._not_finite += int(len(finite) - finite.sum())
        columns = (image_ids, labels, boxes_xywh, scores)
        self._parts.append(tuple(column[finite] for column in columns))
        self._metrics = None

    def gather(self):
        """Every process gets the detections of all."""
        self._metrics = None
        gathered = dist.gather_objects((self._columns(), self._not_finite))
        self._parts = [columns for columns, _ in gathered]
        self._not_finite = sum(count for _, count in gathered)

    def results(self) -> list[dict]:
        """The detections as the list that COCO's servers and tools read."""
        image_ids, labels, boxes, scores = self._columns()
        order = np.lexsort((-scores, image_ids))
        columns = (image_ids, self.truth.category_ids[labels], boxes.round(4), scores.round(10))
        rows = zip(*(column[order].tolist() for column in columns), strict=True)
        return [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            for image_id, category, box, score in rows
        ]

    def found(self) -> Detections:
        """All detections, in the order in which they came."""
        image_ids, labels, boxes, scores = self._columns()
        unknown = np.setdiff1d(image_ids, self.truth.image_ids)
        if len(unknown):
            raise ValueError(f"detections of images without ground truth: {unknown[:5].tolist()}")
        return Detections(np.searchsorted(self.truth.image_ids, image_ids), labels, boxes, scores)

    def compute(self) -> dict:
        """The numbers by name, "per_class" rows and "notes": sentences on what is missing.

        A number is -1 where the ground truth has no object that could count.
        """
        if self._metrics is None:
            found = self.found()
            tiny = TINY_LINES if self.of_videos else {}
            # Beyond these, the sizes and limits that were asked for.
            lines = {**LINES, **tiny, **self._size_lines(), **self._limit_lines()}
            ranges = [(low * low, high * high) for low, high in self.sizes.values()]
            curves = {
                limits: self._curves(self.truth, found, ranges, limits)
                for limits in {LIMITS: None, self.max_dets or LIMITS: None}
            }
            numbers = {name: self._number(line, curves) for name, line in lines.items()}
            per_class = self._per_class(found, *curves[LIMITS])
            notes = self._notes(found, numbers, per_class)
            self._metrics = {**numbers, "per_class": per_class, "notes": notes}
        return self._metrics

    def table(self) -> str:
        """COCO's twelve lines in pycocotools' own format."""
        return self._table(LINES)

    def tiny_table(self) -> str:
        """AP, AP50 and AP75 of the three sizes of small objects, in the same format, and XS-VID's
        line; of a set of videos."""
        numbers = self.compute()
        line = ", ".join(f"{name} {numbers[name]:.4f}" for name in XSVID)
        return f"{self._table(TINY_LINES)}\n{line}"

    def extra_table(self) -> str:
        """The lines that `max_dets` and `areas` ask for, in the same format; empty without."""
        parts = []
        if self.max_dets:
            limits = ", ".join(map(str, self.max_dets))
            lines = {"AP": LINES["AP"], **self._limit_lines()}
            parts += [f"with at most {limits} detections of a class in an image:"]
            parts += [self._table(lines)]
        if self._asked:
            parts += ["by size, the side of a square of the object's area:"]
            parts += [self._table(self._size_lines())]
        return "\n".join(parts)

    def voc(self) -> np.ndarray:
        """[C, 2]: each class' AP by the two rules of voc_map.RULES, -1 without objects."""
        return voc_map.average_precisions(self.truth, self.found())

    def voc_table(self) -> str:
        """The mean of each VOC rule over the classes that have objects, a line each."""
        results = self.voc()
        count = int((results[:, 0] >= 0).sum())
        over = f"mean of {count} class{'es' if count > 1 else ''}" if count else "no object counts"
        return "\n".join(
            f" {rule:<15} AP @[ IoU 0.50, {over} ] = {_mean(column):0.3f}"
            for rule, column in zip(voc_map.RULES, results.T, strict=True)
        )

    def per_class_table(self, voc: bool = False) -> str:
        """A line for each class, best AP first, with VOC's two numbers if asked for."""
        heads = ["AP", "AP50", "AP75", "AR100"]
        rows = [{**row} for row in self.compute()["per_class"]]
        if voc:
            heads += voc_map.RULES
            for row, pair in zip(rows, self.voc().tolist(), strict=True):
                row.update(zip(voc_map.RULES, pair, strict=True))
        rows.sort(key=lambda row: -row["AP"])
        cells = [["class", *heads, "objects", "detections"]]
        for row in rows:
            numbers = ["-" if row[head] < 0 else f"{row[head]:.3f}" for head in heads]
            cells.append([row["name"], *numbers, str(row["objects"]), str(row["detections"])])
        return "\n".join(aligned(cells))

    def _columns(self) -> tuple:
        """(image ids, labels, boxes xywh, scores) of all detections, as they came."""
        empty = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0)
        return tuple(np.concatenate(parts) for parts in zip(empty, *self._parts, strict=True))

    def _size_lines(self) -> dict[str, Line]:
        """AP, AP50 and AR of each size that was asked for."""
        lines = {}
        for size in self._asked:
            lines[f"AP {size}"] = Line(True, None, size, 100)
            lines[f"AP50 {size}"] = Line(True, 0.5, size, 100)
            lines[f"AR {size}"] = Line(False, None, size, 100)
        return lines

    def _limit_lines(self) -> dict[str, Line]:
        """AR at each limit that was asked for; the others of the twelve, but AP, at the largest."""
        if not self.max_dets:
            return {}
        most = self.max_dets[-1]
        lines = {f"{name}@{most}": line._replace(limit=most) for name, line in LINES.items()}
        return {
            **{f"{name}@{most}": lines[f"{name}@{most}"] for name in AP_BESIDE_THE_FIRST},
            **{f"AR@{limit}": Line(False, None, "all", limit) for limit in self.max_dets},
            **{f"{name}@{most}": lines[f"{name}@{most}"] for name in ("ARs", "ARm", "ARl")},
        }

    def _number(self, line: Line, curves: dict[tuple, tuple]) -> float:
        """The mean of a line's entries. Of precision, curves hold their last limit only."""
        limits = next(
            limits
            for limits in curves
            if line.limit == limits[-1] or (not line.is_ap and line.limit in limits)
        )
        precision, recall = curves[limits]
        by_id = np.argsort(self.truth.category_ids)  # the order in which COCO's tools sum
        ious, size = IOU_ROWS[line.iou], list(self.sizes).index(line.size)
        if line.is_ap:
            return _mean(precision[ious][:, :, by_id, size])
        return _mean(recall[ious][:, by_id, size, limits.index(line.limit)])

    def _table(self, lines: dict[str, Line]) -> str:
        """In pycocotools' format, whose columns are as wide unless a size or limit needs more."""
        numbers, text = self.compute(), []
        wide = max(6, *(len(line.size) for line in lines.values()))
        digits = max(3, *(len(str(line.limit)) for line in lines.values()))
        for name, line in lines.items():
            title, short = "Average Recall", "(AR)"
            if line.is_ap:
                title, short = "Average Precision", "(AP)"
            ious = "0.50:0.95" if line.iou is None else f"{line.iou:.2f}"
            text.append(
                f" {title:<18} {short} @[ IoU={ious:<9} | area={line.size:>{wide}s} | "
                f"maxDets={line.limit:>{digits}d} ] = {numbers[name]:0.3f}"
            )
        return "\n".join(text)

    def _per_class(self, found: Detections, precision, recall) -> list[dict]:
        objects = self.truth.objects().tolist()
        detections = np.bincount(found.labels, minlength=len(self.classes)).tolist()
        return [
            {
                "name": name,
                "AP": _mean(precision[:, :, k, 0]),
                "AP50": _mean(precision[IOU_ROWS[0.5]][:, :, k, 0]),
                "AP75": _mean(precision[IOU_ROWS[0.75]][:, :, k, 0]),
                "AR100": _mean(recall[:, k, 0, LIMITS.index(100)]),
                "objects": objects[k],
                "detections": detections[k],
            }
            for k, name in enumerate(self.classes)
        ]

    def _notes(self, found: Detections, numbers: dict, per_class: list[dict]) -> list[str]:
        if not len(self.truth.image_ids):
            return ["no images, so nothing was evaluated"]
        notes = []
        if self._not_finite:
            notes.append(f"{self._not_finite} detections that are not finite were left out")
        if numbers["AR100"] < 0:
            return [*notes, "the ground truth has no object that counts, so every number is -1"]
        if not len(found.scores):
            notes.append("no detection at all above the confidence threshold")
        recalls = {"small": "ARs", "medium": "ARm", "large": "ARl"}
        recalls |= {line.size: name for name, line in self._size_lines().items() if not line.is_ap}
        recalls |= {line.size: n for n, line in TINY_LINES.items() if n in numbers}
        missing = [size for size, name in recalls.items() if numbers[name] < 0]
        if missing:
            notes.append(f"-1: no ground truth of this size: {', '.join(missing)}")
        absent = [row["name"] for row in per_class if not row["objects"]]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            notes.append(
                f"classes without objects, left out of the mean: {', '.join(absent[:5])}{more}"
            )
        return notes


def _has_videos(ground_truth) -> bool:
    if isinstance(ground_truth, dict):
        return bool(ground_truth.get("videos"))
    return bool(ground_truth.videos)


def _mean(values: np.ndarray) -> float:
    """Mean of the entries that exist (the others are -1), -1 without any."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def _joined(columns: list) -> np.ndarray:
    """Tensors (moved from their device at once) or arrays, end to end, in float64."""
    if isinstance(columns[0], Tensor):
        return torch.cat(columns).detach().cpu().double().numpy()
    return np.concatenate(columns).astype(np.float64)
