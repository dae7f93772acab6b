"""Measure whether YOLOFT uses motion: with its memory, without it, and against YOLOX-nano.

    python -m docs.motion --drone FOLDER      # prints the tables of docs/video.md

Trains from scratch on the built-in set `synthetic-video`, and on the frames of a CocoVID set of
small flying objects (FOLDER: annotations/{train,val}.json, frames/) with all its classes as one.
Every row sees the same number of training frames at the same size, three seeds each. Runs that are
finished are not trained again. `--save` draws the first seed's
detections on the built-in set.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import mean, stdev

import cv2

import data
import models
from docs.runs import finished, launch
from utils import cli, vis
from utils.image import read_image
from utils.log import say

SEEDS = (1, 2, 3)
COMMON = "--num_workers 0 --device cpu --eval_epoch 1000"
# What a row is compared with has the same clips in the same order, or the same number of frames.
CLIPS = "-v yoloft-nano-p2 --batch_size 32 --split_length 8"
ROWS = {
    "yoloft-nano-p2": CLIPS,
    "its memory empty before each frame": f"{CLIPS} --forget",
    "yolox-nano": "-v yolox-nano",
}
COCO_ROW = "yolox-nano, from COCO weights"
SETS = {
    "synthetic-video": "-d synthetic-video --epochs 10",
    "drone": "-d cocovid --img_size 128 --epochs 24",
}
NUMBERS = ("AP", "AP50", "AP75")
# What the picture shows of the validation set: its first frames, every so many, enlarged so much.
SHOWN, EVERY, ZOOM, SCORE = 24, 6, 3, 0.12


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", default="datasets", metavar="DIR", help="of the built-in set")
    parser.add_argument("--drone", metavar="DIR", help="of the CocoVID set (not measured without)")
    parser.add_argument(
        "--weight", metavar="FILE", help="COCO weights of yolox-nano, for one row more of each"
    )
    parser.add_argument("--save_folder", default="runs/motion", metavar="DIR", help="of the runs")
    parser.add_argument("--save", metavar="FILE.jpg", help="the picture of docs/video.md")
    parser.add_argument(
        "--jobs", type=cli.whole(1), default=2, metavar="N", help="trainings at once, a core each"
    )
    cli.add_debug_flag(parser)
    return parser.parse_args()


def one_class(folder: Path, parent: Path) -> list[str]:
    """Flags that name the set's labels, all of one class, written below `parent`."""
    paths = []
    for split in ("train", "val"):
        labels = json.loads((folder / "annotations" / f"{split}.json").read_text())
        labels["categories"] = [{"id": 1, "name": "object"}]
        for annotation in labels["annotations"]:
            annotation["category_id"] = 1
        paths.append(parent / "one_class" / f"{split}.json")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_text(json.dumps(labels))
    return ["--ann", *map(str, paths), "--images", str(folder / "frames")]


def train(save_folder: Path, flags: list[str]) -> dict[str, float]:
    """The numbers of a run, trained where it is missing."""
    folder = launch("train.py", save_folder, flags, one_thread=True)
    return json.loads((folder / "metrics.json").read_text())


def line(name: str, runs: list[dict[str, float]]) -> str:
    """A row of the table: means over the seeds and their standard deviation."""
    cells = []
    for number in NUMBERS:
        values = [run[number] for run in runs]
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.3f}{spread}")
    cells.append(", ".join(f"{run['AP50']:.3f}" for run in runs))
    return f"| {name} | " + " | ".join(cells) + " |"


def picture(folders: dict[str, Path], root: str):
    """A row of frames with the annotated objects, then one with what each model finds in them."""
    records = data.read("synthetic-video", root, "val")
    frames = [read_image(records.path(index)) for index in range(SHOWN)]

    def large(frame, boxes):
        image = cv2.resize(frame, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
        return image, boxes * ZOOM

    rows = [[]]
    for index, frame in enumerate(frames):
        truth = records.boxes_of(index)
        image, boxes = large(frame, truth["boxes"])
        rows[0].append(vis.draw_truth(image, boxes, truth["labels"], records.classes))
    for folder in folders.values():
        model = models.load(finished(folder)[0] / "best.pth", conf=SCORE)
        rows.append([])
        for frame, found in zip(frames, model.detect_video(frames), strict=True):
            image, boxes = large(frame, found["boxes"])
            rows[-1].append(
                vis.draw(image, {**found, "boxes": boxes}, model.classes, threshold=0.0)
            )
    for row, name in zip(rows, ("annotated", *folders), strict=True):
        vis.note(row[EVERY - 1], name)
    shown = [image for row in rows for image in islice(row, EVERY - 1, None, EVERY)]
    return vis.mosaic_sheet(shown, SHOWN // EVERY, cell=shown[0].shape[0])


def main() -> None:
    args = parse_arguments()
    parent = Path(args.save_folder)
    where = {"synthetic-video": ["--root", args.root]}
    if args.drone:
        where["drone"] = one_class(Path(args.drone), parent)
    rows = dict(ROWS)
    if args.weight:
        rows[COCO_ROW] = f"{ROWS['yolox-nano']} --weight {args.weight}"
    tasks = [(known, name, seed) for known in where for seed in SEEDS for name in rows]

    def folder_of(known: str, name: str, seed: int) -> Path:
        return parent / known / name.replace(" ", "_").replace(",", "") / str(seed)

    def run(task: tuple[str, str, int]) -> dict[str, float]:
        known, name, seed = task
        flags = f"{SETS[known]} {rows[name]} {COMMON} --seed {seed}".split()
        return train(folder_of(*task), [*flags, *where[known]])

    found = {(known, name): [] for known in where for name in rows}
    with ThreadPoolExecutor(args.jobs) as pool:
        for (known, name, seed), numbers in zip(tasks, pool.map(run, tasks), strict=True):
            found[known, name].append(numbers)
            say(f"{known}, {name}, seed {seed}: AP50 {numbers['AP50']:.3f}")
    for known in where:
        say(f"\n{known}\n\n| | AP | AP50 | AP75 | AP50 of each seed |\n|---|---|---|---|---|")
        for name in rows:
            say(line(name, found[known, name]))
    if args.save:
        folders = {name: folder_of("synthetic-video", name, SEEDS[0]) for name in ROWS}
        vis.save(Path(args.save), picture(folders, args.root))


if __name__ == "__main__":
    cli.run_main(main)
