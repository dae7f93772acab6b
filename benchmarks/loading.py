"""Time training samples from image files to batches, alone or in turn with peers.

python benchmark.py loading -d voc --root FOLDER --img_size 416
PYTHONPATH=FOLDER_OF_PEERS python benchmark.py loading --root FOLDER --peer yolox ultralytics

A sample is decoded, joined with three others by mosaic, warped, shifted in colour, mirrored and
put into a batch, in this process, on one core. Mixup is off on all sides. Sides that keep images do
so from the first turn on; of 292 images at 416 pixels ours keeps all by default, yolox none, and
ultralytics a window.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import torch
from torch.utils.data import DataLoader

import data
import recipes
from benchmarks.turns import alternate, missing_peer
from data.cache import SharedCache
from data.dataset import WINDOW
from data.records import Records
from utils import cli
from utils.log import say

AUGMENT = replace(recipes.RECIPES["yolox-tiny"].stages[0].augment, mosaic=1.0, mixup=0.0)
SEED = 1
MAX_LABELS = 120  # what the reference pads the labels of a mosaic to
# Images that a side keeps between samples: those of a moving window is what ours does of a set that
# is too large to be kept as a whole, and what ultralytics does by default.
NONE, WINDOW_ONLY, ALL = "none kept", "window kept", "all kept"


def add_flags(parser: cli.Parser):
    cli.add_data_flags(parser, data.READERS, default="voc")
    parser.add_argument("--limit", type=cli.whole(1), metavar="N", help="only the first N images")
    parser.add_argument("--img_size", type=cli.side, default=416, metavar="PX", help="side (416)")
    parser.add_argument(
        "-bs", "--batch_size", type=cli.whole(1), default=16, metavar="N", help="images (16)"
    )
    parser.add_argument(
        "--batches", type=cli.whole(1), default=4, metavar="N", help="batches in a turn (4)"
    )
    parser.add_argument(
        "--rounds", type=cli.whole(1), default=15, metavar="N", help="timed turns of a side (15)"
    )
    parser.add_argument(
        "--peer",
        nargs="+",
        choices=("yolox", "ultralytics"),
        default=[],
        help="in turn with these packages, found by PYTHONPATH",
    )


def own_batches(records: Records, args: argparse.Namespace, keep: str) -> Iterator:
    """Batches of our training loader, epoch after epoch."""
    sides = args.img_size, args.img_size
    loader = data.build_loader(
        records,
        train=True,
        sides=sides,
        batch_size=args.batch_size,
        num_workers=0,
        seed=SEED,
        augment=AUGMENT,
        cache_all=keep == ALL,
    )
    if keep == NONE:
        loader.dataset.cache = None
    elif keep == WINDOW_ONLY:
        loader.dataset.cache = SharedCache(2 * WINDOW + 1 + args.batch_size, sides)
    epoch = 0
    while True:
        yield from loader.batches(epoch)
        epoch += 1


def endless(dataset, batch_size: int, collate: Callable | None = None) -> Iterator:
    """Batches of a peer's dataset in random order, made in this process."""
    loader = DataLoader(
        dataset, batch_size, shuffle=True, drop_last=True, collate_fn=collate, num_workers=0
    )
    while True:
        yield from loader


def yolox_batches(records: Records, args: argparse.Namespace, folder: Path, cache: bool):
    """Batches of the reference, as its trainer sets its datasets up."""
    from yolox.data import COCODataset, MosaicDetection, TrainTransform

    truth = records.ground_truth()
    for image in truth["images"]:
        image["file_name"] = str((records.root / image["file_name"]).resolve())
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "train.json").write_text(json.dumps(truth))
    size_hw = args.img_size, args.img_size
    images = COCODataset(str(folder), "train.json", "train", size_hw, cache=cache)
    dataset = MosaicDetection(
        images,
        size_hw,
        preproc=TrainTransform(MAX_LABELS, flip_prob=AUGMENT.flip, hsv_prob=AUGMENT.hsv),
        degrees=AUGMENT.degrees,
        translate=AUGMENT.translate,
        mosaic_scale=AUGMENT.mosaic_scale,
        shear=AUGMENT.shear,
        enable_mixup=False,
    )
    return endless(dataset, args.batch_size)


def ultralytics_batches(records: Records, args: argparse.Namespace, folder: Path, cache: bool):
    """Batches of ultralytics with its own settings of training."""
    os.environ.update(YOLO_CONFIG_DIR=str(folder), YOLO_OFFLINE="true", YOLO_VERBOSE="false")
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import YOLODataset

    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    for index in range(len(records)):
        found, (height, width) = records.boxes_of(index), records.sizes[index].tolist()
        lines = [
            f"{label} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
            f"{(x2 - x1) / width} {(y2 - y1) / height}"
            for label, (x1, y1, x2, y2) in zip(
                found["labels"].tolist(), found["boxes"].tolist(), strict=True
            )
        ]
        path = records.path(index)
        shutil.copy(path, images / f"{index:07d}{path.suffix}")
        (labels / f"{index:07d}.txt").write_text("\n".join(lines))
    dataset = YOLODataset(
        img_path=str(images),
        imgsz=args.img_size,
        cache="ram" if cache else None,
        augment=True,
        hyp=get_cfg(),
        rect=False,
        batch_size=args.batch_size,
        data={"names": dict(enumerate(records.classes))},
    )
    return endless(dataset, args.batch_size, YOLODataset.collate_fn)


PEERS = {
    "yolox": (yolox_batches, {NONE: False, ALL: True}),
    "ultralytics": (ultralytics_batches, {WINDOW_ONLY: False, ALL: True}),
}


def build_sides(records: Records, args: argparse.Namespace, folder: Path) -> dict[str, Iterator]:
    """The batches of each side by its name; ours come first."""
    sides = {f"ours, {k}": own_batches(records, args, k) for k in (NONE, WINDOW_ONLY, ALL)}
    told = io.StringIO()  # what peers say while they set up
    for peer in args.peer:
        batches, kept = PEERS[peer]
        for keep, cache in kept.items():
            name = f"{peer}, {keep}"
            try:
                with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                    sides[name] = batches(records, args, folder / name, cache)
            except ImportError as error:
                raise missing_peer(peer, error) from error
    return sides


def run(args: argparse.Namespace):
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    records = data.read(args.dataset, args.root, "train", **cli.reader_options(args, "train"))
    count = args.batches * args.batch_size
    with tempfile.TemporaryDirectory() as folder:
        sides = build_sides(records, args, Path(folder))
        turns = {name: partial(take, batches, args.batches) for name, batches in sides.items()}
        for batches in sides.values():  # until what is kept has been filled
            take(batches, -(-len(records) // args.batch_size))
        seconds = alternate(turns, (), args.rounds, warm_up=1)
    medians = {name: statistics.median(values) / count for name, values in seconds.items()}
    say(
        f"{len(records)} images at {args.img_size}, one core, median of {args.rounds} turns of "
        f"{count} samples:"
    )
    for name, median in medians.items():
        say(f"  {name:24s} {median * 1e3:7.2f} ms a sample {1 / median:7.1f} samples/s")
    for name in [name for name in medians if not name.startswith("ours")]:
        ratios = (
            f"{k} {medians[name] / medians[f'ours, {k}']:.2f}" for k in (NONE, WINDOW_ONLY, ALL)
        )
        say(f"  times as fast as {name}: ours with {', '.join(ratios)}")


def take(batches: Iterator, count: int):
    for _ in range(count):
        next(batches)
