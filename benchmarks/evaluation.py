"""Time an evaluation, from detections in memory to the table, in turn with pycocotools.

python benchmark.py evaluation
python benchmark.py evaluation --images 5000 --detections 300

Both sides start from the same list of tensors and have read the ground truth before. pycocotools
gets an array of seven columns, the quickest form that its loadRes takes. Equal scores occur on
purpose: the numbers show whether both sides break ties alike.
"""

import argparse
import contextlib
import io
import statistics
import time

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils import cli
from utils.evaluator import LINES, Evaluator
from utils.log import say

BATCH = 8  # images at a time that the evaluator is given
OBJECTS = 7  # an image, on average
SIDES = (15.0, 60.0, 170.0)  # pixels, of small, medium and large objects


def add_flags(parser: cli.Parser):
    for name, default, text in (
        ("images", 2500, "images"),
        ("detections", 100, "detections an image"),
        ("num_classes", 80, "classes"),
        ("rounds", 5, "timed runs"),
        ("peer_rounds", 3, "timed runs of pycocotools"),
    ):
        parser.add_argument(
            f"--{name}", type=cli.whole(1), default=default, metavar="N", help=f"{text} ({default})"
        )


def random_set(images: int, detections: int, num_classes: int) -> tuple[dict, list[dict]]:
    """(ground truth as a COCO dict with crowds, detections): half of the boxes lie near objects."""
    rng = np.random.default_rng(0)
    annotations, found = [], []
    for image in range(images):
        count = rng.poisson(OBJECTS)
        labels = rng.integers(0, num_classes, count)
        boxes = np.empty((count, 4))  # x, y, w, h
        boxes[:, :2] = rng.uniform(0, 400, (count, 2))
        boxes[:, 2:] = rng.choice(SIDES, (count, 1)) * rng.uniform(0.6, 1.4, (count, 2))
        for label, box, crowd in zip(labels, boxes, rng.random(count) < 0.02, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(label) + 1,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(crowd),
                }
            )
        guess = np.empty((detections, 4))  # x, y, w, h
        guess[:, :2] = rng.uniform(0, 400, (detections, 2))
        guess[:, 2:] = rng.uniform(8, 200, (detections, 2))
        guess_labels = rng.integers(0, num_classes, detections)
        if count:
            near = rng.random(detections) < 0.5
            chosen = rng.integers(0, count, detections)
            sides = np.tile(boxes[chosen, 2:], 2)
            shifted = boxes[chosen] + rng.normal(0, 0.12, (detections, 4)) * sides
            guess = np.where(near[:, None], np.maximum(shifted, 1), guess)
            same = near & (rng.random(detections) < 0.8)
            guess_labels = np.where(same, labels[chosen], guess_labels)
        guess[:, 2:] += guess[:, :2]
        scores = np.sort(rng.random(detections).round(3))[::-1].copy()
        found.append(
            {
                "boxes": torch.tensor(guess, dtype=torch.float32),
                "scores": torch.tensor(scores, dtype=torch.float32),
                "labels": torch.tensor(guess_labels),
            }
        )
    truth = {
        "images": [{"id": i + 1, "width": 640, "height": 640} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": str(i)} for i in range(num_classes)],
    }
    return truth, found


def ours(evaluator: Evaluator, found: list[dict]) -> list[float]:
    """The twelve numbers by way of the empty evaluator's table."""
    for first in range(0, len(found), BATCH):
        batch = found[first : first + BATCH]
        evaluator.add(range(first + 1, first + 1 + len(batch)), batch)
    evaluator.table()
    return [evaluator.compute()[name] for name in LINES]


def theirs(coco: COCO, found: list[dict]) -> list[float]:
    """The twelve numbers of pycocotools, its prints swallowed."""
    boxes = torch.cat([one["boxes"] for one in found]).double().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    rows = np.column_stack(
        (
            np.repeat(np.arange(len(found)) + 1, [len(one["scores"]) for one in found]),
            boxes,
            torch.cat([one["scores"] for one in found]).double().numpy(),
            torch.cat([one["labels"] for one in found]).numpy() + 1,
        )
    )
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(coco, coco.loadRes(rows), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats.tolist()


def run(args: argparse.Namespace):
    truth, found = random_set(args.images, args.detections, args.num_classes)
    names = tuple(str(i) for i in range(args.num_classes))
    ids = tuple(range(1, args.num_classes + 1))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
    sides = {
        "pycocotools": (args.peer_rounds, lambda: coco, theirs),
        "ours": (args.rounds, lambda: Evaluator(truth, names, ids), ours),
    }
    ours(Evaluator(truth, names, ids), found[:BATCH])  # imports the engine
    seconds, numbers = {name: [] for name in sides}, {}
    for turn in range(max(args.rounds, args.peer_rounds)):
        for name, (rounds, prepare, score) in sides.items():
            if turn < rounds:
                against = prepare()
                start = time.perf_counter(), time.process_time()
                numbers[name] = score(against, found)
                seconds[name].append(
                    (time.perf_counter() - start[0], time.process_time() - start[1])
                )
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)]
        for name, values in seconds.items()
    }
    apart = max(abs(a - b) for a, b in zip(*numbers.values(), strict=True))
    say(
        f"{args.images} images, {args.detections} detections each, {args.num_classes} classes, "
        f"{len(truth['annotations'])} objects, AP {numbers['ours'][0]:.3f}:"
    )
    for name, (wall, processor) in medians.items():
        times = ", ".join(f"{value:.2f}" for value, _ in seconds[name])
        say(f"  {name:12s} {wall:7.2f} s, median of {times}; {processor:.2f} s of the processor")
    ratios = [a / b for a, b in zip(medians["pycocotools"], medians["ours"], strict=True)]
    say(f"  ratio {ratios[0]:.1f}x, of processor time {ratios[1]:.1f}x")
    say(f"  greatest difference of the twelve numbers {apart:.1e}")
