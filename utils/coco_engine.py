"""Precision and recall by COCO's rules, counted by faster-coco-eval or by pycocotools.

T IoU thresholds, R recalls, C classes, A ranges of area, M limits of detections. Both functions
return precision [T, R, C, A] at the last limit and recall [T, C, A, M], -1 where a class has no
object that counts. `ranges` are (least, greatest) areas, both included; `limits` rise: so many
detections of a class count in an image, best first.
"""

import contextlib
import gc
import io

import numpy as np

from utils.truth import Detections, Truth

THRESHOLDS, RECALLS = 10, 101


def named(engine: str):
    """The function of "faster", "pycocotools" or "auto", the first that is installed."""
    if engine == "auto":
        try:
            import faster_coco_eval  # noqa: F401
        except ImportError:
            return plain
        return faster
    return {"faster": faster, "pycocotools": plain}[engine]


def plain(truth: Truth, found: Detections, ranges, limits) -> tuple[np.ndarray, np.ndarray]:
    """pycocotools as it is meant to be called: the reference."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    run = _run(
        (COCO, COCOeval),
        range(len(truth.image_ids)),
        range(len(truth.category_ids)),
        _objects(truth, slice(None), truth.images, truth.labels),
        _detections(found.boxes, found.images, found.labels, found.scores),
        ranges,
        limits,
    )
    return run["precision"][..., -1], run["recall"]


def faster(truth: Truth, found: Detections, ranges, limits) -> tuple[np.ndarray, np.ndarray]:
    """faster-coco-eval, one class at a time, on as few images as give the same numbers.

    Most of an evaluation's time goes into pairs of image and class, and few pairs have an object.
    The detections of a class in the images without one are all false, wherever they lie: they are
    put together, `limits[-1]` in an image. Only the order of scores matters: ranks stand for them,
    which keeps the order of equal scores (by image, then as given) whatever the images are.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    classes, areas, most = len(truth.category_ids), len(ranges), limits[-1]
    precision = np.full((THRESHOLDS, RECALLS, classes, areas), -1.0)
    recall = np.full((THRESHOLDS, classes, areas, len(limits)), -1.0)
    objects = np.lexsort((truth.images, truth.labels))
    detections = best(found, most)
    first_object = np.searchsorted(truth.labels[objects], range(classes + 1))
    first_detection = np.searchsorted(found.labels[detections], range(classes + 1))
    with _no_collection():
        for label in np.unique(truth.labels[truth.counted]).tolist():
            of_class = objects[first_object[label] : first_object[label + 1]]
            own, image = np.unique(truth.images[of_class], return_inverse=True)
            truths = _objects(truth, of_class, image, np.zeros_like(image))
            of_class = detections[first_detection[label] : first_detection[label + 1]]
            image = _few_images(found.images[of_class], own, most)
            rank = np.empty(len(of_class))
            rank[np.argsort(-found.scores[of_class], kind="stable")] = np.arange(len(of_class))
            guesses = _detections(found.boxes[of_class], image, np.zeros_like(image), -rank)
            count = max(len(own), image.max(initial=-1) + 1)
            tools = (COCO, COCOeval_faster)
            run = _run(tools, range(count), range(1), truths, guesses, ranges, limits)
            precision[:, :, label] = np.asarray(run["precision"])[:, :, 0, :, -1]
            recall[:, label] = np.asarray(run["recall"])[:, 0]
    return precision, recall


def best(found: Detections, most: int) -> np.ndarray:
    """Rows of the detections by class, then image, best first, at most `most` in each."""
    order = np.lexsort((-found.scores, found.images, found.labels))
    images, labels = found.images[order], found.labels[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (images[1:] != images[:-1]) | (labels[1:] != labels[:-1])
    place = np.arange(len(order)) - np.maximum.accumulate(
        np.where(begins, np.arange(len(order)), 0)
    )
    return order[place < most]


def _few_images(images: np.ndarray, own: np.ndarray, most: int) -> np.ndarray:
    """Images numbered anew: those of `own` by their place there, the others filled up in turn."""
    place = np.searchsorted(own, images)
    others = own[np.minimum(place, len(own) - 1)] != images
    place[others] = len(own) + np.arange(others.sum()) // most
    return place


def _objects(truth: Truth, rows, images, labels) -> list[dict]:
    areas, crowd = truth.areas[rows], truth.crowd[rows].astype(int)
    return _annotations(images, labels, truth.boxes[rows], areas, crowd, np.zeros(len(images)))


def _detections(boxes, images, labels, scores) -> list[dict]:
    areas, crowd = boxes[:, 2] * boxes[:, 3], np.zeros(len(boxes), int)
    return _annotations(images, labels, boxes, areas, crowd, scores)


def _annotations(*columns) -> list[dict]:
    """COCO's form, numbered from 1: for the engines an id of 0 is "not matched"."""
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
            "score": score,
        }
        for number, (image, label, box, area, crowd, score) in enumerate(rows, start=1)
    ]


def _run(tools, images: range, categories: range, objects, detections, ranges, limits) -> dict:
    """What an engine's two classes (COCO, COCOeval) make of two lists of annotations."""
    coco, evaluation = tools
    shared = {"images": [{"id": i} for i in images], "categories": [{"id": i} for i in categories]}
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for annotations in (objects, detections):
            one = coco()
            one.dataset = {**shared, "annotations": annotations}
            one.createIndex()
            sets.append(one)
        run = evaluation(*sets, iouType="bbox")
        run.params.areaRng = [list(bounds) for bounds in ranges]
        run.params.areaRngLbl = [str(i) for i in range(len(ranges))]
        run.params.maxDets = list(limits)
        run.evaluate()
        run.accumulate()
    return run.eval


@contextlib.contextmanager
def _no_collection():
    """No search for garbage: beside a million small dicts it takes most of their making's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
