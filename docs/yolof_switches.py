"""Measure YOLOF's switches one against another, at equal budget.

    python -m docs.yolof_switches --root FOLDER      # prints the table of docs/yolof.md

Trains yolof-r18-c5 from scratch on a VOC folder, once for each row and each seed: 300 batches of 2
images, as squares of 256 pixels. Runs that are finished are not trained again: stopped, it goes on
where it was. Of a finished run the weights, half a gigabyte, are deleted.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from docs.runs import launch
from utils import cli, history
from utils.errors import UserError
from utils.log import say

SEEDS = (1, 2, 3)
COMMON = (
    "-d voc -v yolof-r18-c5 --no_pretrained --img_size 256 --batch_size 2 --limit 200 --epochs 3 "
    "--eval_epoch 3 --random_shift --num_workers 0 --device cpu"
)
NONE = (
    "--matcher iou_topk --ignore_thresh 0 --no_image_mask --no_random_shift --decode_method 1 "
    "--ctr_clamp 0 --loss_norm image --head_kernel 1"
)
# Flags beside the common ones, by row. An hour of two cores holds 17 rows: the anchors' offset, the
# backbone's rate and the warm-up are measured together, in the seed's preset; the order of images
# is not.
ROWS = {
    "official": "",
    "matcher iou_topk": "--matcher iou_topk",
    "matcher l1_topk": "--matcher l1_topk",
    "topk 8": "--topk 8",
    "pos_thresh 0.3": "--pos_thresh 0.3",
    "ignore_thresh 0": "--ignore_thresh 0",
    "ignore_on anchors": "--ignore_on anchors",
    "no image_mask": "--no_image_mask",
    "no random_shift": "--no_random_shift",
    "decode_method 1": "--decode_method 1",
    "ctr_clamp 0": "--ctr_clamp 0",
    "loss_norm image": "--loss_norm image",
    "head_kernel 1": "--head_kernel 1",
    "preset seed": "--preset seed",
    "none of the tricks": NONE,
    "sgd": "--optimizer sgd",
    "sgd, accumulate 4": "--optimizer sgd --accumulate 4",
}
REFERENCE = "official"  # the row that others are compared with
REFERENCES = {"sgd, accumulate 4": "sgd"}  # where one is compared with another
CAPTION = (
    f"Each row: 300 batches of 2 images, {len(SEEDS)} seeds (mean ± standard deviation). They make "
    "300 updates, in the row `sgd, accumulate 4` 75. That row is compared with `sgd`, all others "
    f"with `{REFERENCE}`."
)
HEADER = (
    "| row | flags | AP50 | AP | AP against its reference | objects of a batch without any |\n"
    "|---|---|---|---|---|---|"
)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", required=True, metavar="DIR", help="of the VOC set")
    parser.add_argument(
        "--save_folder", default="runs/switches", metavar="DIR", help="parent of the runs"
    )
    parser.add_argument(
        "--jobs", type=cli.whole(1), default=2, metavar="N", help="trainings at once, a core each"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="only these rows")
    cli.add_debug_flag(parser)
    return parser.parse_args()


def train(parent: Path, root: str, name: str, seed: int) -> Path:
    """The folder of a finished run without its weights, trained where it is missing."""
    save_folder = parent / name.replace(" ", "_").replace(",", "") / str(seed)
    flags = [*flags_of(name, seed), "--root", root]
    folder = launch("train.py", save_folder, flags, one_thread=True)
    for weights in save_folder.glob("*/*/*/*.pth"):
        weights.unlink()
    return folder


def flags_of(name: str, seed: int) -> list[str]:
    """The flags of a row's training."""
    return f"{COMMON} {ROWS[name]} --seed {seed}".split()


def numbers_of(folder: Path) -> dict[str, float]:
    """A run's numbers, and how many objects of a batch had no positive in its second half."""
    metrics = json.loads((folder / "metrics.json").read_text())
    unmatched = [line["unmatched"] for line in history.read(folder).training]
    found = {name: metrics[name] for name in ("AP", "AP50")}
    return found | {"unmatched": mean(unmatched[len(unmatched) // 2 :])}


def row(name: str, runs: list[dict[str, float]], reference: list[dict[str, float]]) -> str:
    """A line of the table: means over the seeds, their standard deviation, and the difference from
    the runs it is compared with, if there are any."""
    cells = [f"`{flag}`" if (flag := ROWS[name]) else "defaults"]
    for number in ("AP50", "AP"):
        values = [run[number] for run in runs]
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.3f}{spread}")
    if reference:
        difference = mean(run["AP"] for run in runs) - mean(run["AP"] for run in reference)
        cells.append(f"{difference:+.3f}")
    else:
        cells.append("-")
    cells.append(f"{mean(run['unmatched'] for run in runs):.2f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    args = parse_arguments()
    for name in args.only or ():
        if name not in ROWS:
            raise UserError(cli.unknown("row", name, ROWS))
    names, parent = args.only or list(ROWS), Path(args.save_folder)
    found = {name: [] for name in names}
    # Seed by seed, so that what was stopped early has all rows already.
    tasks = [(name, seed) for seed in SEEDS for name in names]
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = pool.map(lambda task: train(parent, args.root, *task), tasks)
        for (name, seed), folder in zip(tasks, folders, strict=True):
            found[name].append(numbers_of(folder))
            say(f"{name}, seed {seed}: AP50 {found[name][-1]['AP50']:.3f}")
    say(f"{CAPTION}\n\n{HEADER}")
    for name in names:
        reference = REFERENCES.get(name, REFERENCE)
        say(row(name, found[name], found.get(reference, [])))


if __name__ == "__main__":
    cli.run_main(main)
