"""Measure what the overlap in the loss and in the assignment does for objects of 4 to 10 pixels.

    python -m docs.tiny_objects      # prints the table of docs/tiny_objects.md

Trains yolox-nano on the built-in set `synthetic-tiny` once for each overlap in the loss (iou, giou,
ciou), each in the assignment's cost (iou, ciou) and each seed, one after the other, all else equal.
Runs that are finished are not trained again.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from utils import cli, history
from utils.errors import UserError
from utils.log import say

LOSSES, COSTS, SEEDS = ("iou", "giou", "ciou"), ("iou", "ciou"), (1, 2, 3)
NUMBERS = ("AP", "AP50", "AP75", "AR100")


def parse_arguments():
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", default="datasets", metavar="DIR", help="of the set (datasets)")
    parser.add_argument(
        "--save_folder", default="runs/tiny", metavar="DIR", help="parent of the runs (runs/tiny)"
    )
    parser.add_argument(
        "--epochs", type=cli.whole(1), default=30, metavar="N", help="of each run (30)"
    )
    cli.add_debug_flag(parser)
    return parser.parse_args()


def train(parent: Path, root: str, epochs: int, loss: str, cost: str, seed: int) -> Path:
    """The folder of a finished run, trained where it is missing."""
    save_folder = parent / f"{loss}_{cost}_{seed}"
    folder = save_folder / "synthetic-tiny" / "yolox-nano" / "1"
    if not (folder / "metrics.json").is_file():
        flags = (
            f"-d synthetic-tiny -v yolox-nano --iou_loss {loss} --assign_cost {cost} --seed {seed}"
        )
        flags += f" --epochs {epochs} --eval_epoch 10"
        command = [sys.executable, "train.py", *flags.split(), "--root", root]
        done = subprocess.run([*command, "--save_folder", str(save_folder)])
        if done.returncode:
            raise UserError(f"the training of {save_folder} ended with code {done.returncode}")
    return folder


def numbers_of(folder: Path) -> dict[str, float]:
    """A run's numbers, and the share of positives that missed their box in its second half."""
    metrics = json.loads((folder / "metrics.json").read_text())
    shares = [line["disjoint"] for line in history.read(folder).training]
    found = {name: metrics[name] for name in NUMBERS}
    return found | {"first": mean(shares[:3]), "later": mean(shares[len(shares) // 2 :])}


def row(loss: str, cost: str, runs: list[dict[str, float]]) -> str:
    """A line of the table: means over the seeds, and the range of the AP."""
    cells = []
    for name in NUMBERS:
        values = [run[name] for run in runs]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if name in ("AP", "AP50") else ""
        cells.append(f"{mean(values):.3f}{spread}")
    cells += [f"{mean(run[name] for run in runs):.1%}" for name in ("first", "later")]
    return f"| {loss} | {cost} | " + " | ".join(cells) + " |"


def main():
    args = parse_arguments()
    lines = [
        "| loss | assignment | AP | AP50 | AP75 | AR100 | missed at first | missed later |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for loss, cost in itertools.product(LOSSES, COSTS):
        runs = [
            numbers_of(train(Path(args.save_folder), args.root, args.epochs, loss, cost, seed))
            for seed in SEEDS
        ]
        lines.append(row(loss, cost, runs))
    say("\n".join(lines))


if __name__ == "__main__":
    cli.run_main(main)
