"""Measure what pretraining a backbone brings: none, center, patches, against COCO's weights.

    python -m docs.pretraining --root FOLDER --weight yolox_nano.pth   # the tables of the page

Trains yolox-nano on a VOC folder at 224 pixels, from each start, with a tenth of the images that
have labels and with all of them, three seeds each, all with the same number of updates. `center`
learns from the labels that the detector has, `center_all` from all; `patches` from all images and
no label. A second table measures the published rule of `patches` against ours. What is finished is
not trained again.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

import data
import recipes
from data.patches import NeighbourPatches, ObjectPatches, build_patch_loader, cut, padded
from docs.runs import launch
from models import build_backbone, convert
from models.selfsup import PatchContrast
from utils import cli
from utils.errors import UserError
from utils.log import say
from utils.patch_scores import ContrastScores, Probe, score

SEEDS = 3
SIZE, TENTH = 224, 10
COMMON = f"--img_size {SIZE} --num_workers 0 --device cpu"
# Epochs that make the same number of updates: a tenth of the images makes 3 an epoch, all make 36.
# Half of them are too few: seeds alone then change AP50 from 0.27 to 0.50.
SHARES = {"10 %": (TENTH, 144), "100 %": (1, 12)}
DETECTOR = "-v yolox-nano --batch_size 8 --eval_epoch 1000"
METHODS = {"center": "center -v yolox-nano", "patches": "patches -v yolox-nano"}
EPOCHS = {("center", "10 %"): 400, ("center", "100 %"): 30, ("patches", "100 %"): 40}
# Of each start that is pretrained here the method, and the images it has (none: the detector's).
PRETRAINED = {
    "center": ("center", None),
    "center_all": ("center", "100 %"),
    "patches": ("patches", "100 %"),
}
STARTS = ("none", *PRETRAINED, "coco_backbone", "coco")
NUMBERS = ("AP50", "AP", "AP75")
# The rules that are compared, all trained alike, by flags of pretrain.py.
COSINE = "--objective cosine --colours 1 --no_guard"
RULES = {
    "published": f"{COSINE} --places published --jitter image",
    "published, colours by patch": f"{COSINE} --places published",
    "published, places anywhere": f"{COSINE} --jitter image",
    "ours, cosine loss": "--objective cosine --no_guard",
    "ours, SimSiam": "--objective simsiam --no_guard",
    "ours, without the dense term": "--dense 0 --no_guard",
    "ours, colours 1": "--colours 1 --no_guard",
    "ours": "",
}
RULE_EPOCHS = 40


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", required=True, metavar="DIR", help="of the VOC set")
    parser.add_argument(
        "--weight", metavar="FILE", help="COCO's weights of yolox-nano, for the rows of that"
    )
    parser.add_argument(
        "--save_folder", default="runs/pretraining_study", metavar="DIR", help="parent of the runs"
    )
    parser.add_argument(
        "--seeds", type=cli.whole(1), default=SEEDS, metavar="N", help=f"how many ({SEEDS})"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*STARTS, "rules"),
        metavar="ROW",
        help=f"only these rows ({', '.join(STARTS)}, rules)",
    )
    parser.add_argument(
        "--shares",
        nargs="+",
        choices=SHARES,
        default=[*SHARES],
        metavar="SHARE",
        help="only these parts of the labels (10 %% and 100 %%)",
    )
    parser.add_argument(
        "--jobs", type=cli.whole(1), default=2, metavar="N", help="trainings at once, a core each"
    )
    cli.add_debug_flag(parser)
    return parser.parse_args()


def write_shares(root: str, folder: Path) -> dict[str, list[str]]:
    """Data flags by share: COCO labels of every tenth image to train on, or of all; of all images
    to evaluate on."""
    train, val = (data.read("voc", root, split) for split in ("train", "val"))
    folder.mkdir(parents=True, exist_ok=True)
    flags = {}
    for share, (every, _) in SHARES.items():
        part = train.subset(range(0, len(train), every))
        paths = [folder / f"train_{every}.json", folder / "val.json"]
        for path, records in zip(paths, (part, val), strict=True):
            path.write_text(json.dumps(records.ground_truth()))
        where = ["--ann", *map(str, paths), "--images", str(train.root)]
        flags[share] = ["-d", "coco", *where]
    return flags


class Study:
    """The runs of one data set, by start, share of the labels and seed."""

    def __init__(self, parent: Path, flags: dict[str, list[str]], weight: str | None):
        self.parent, self.flags, self.weight = parent, flags, weight

    def pretrained(self, method: str, known: str, seed: int) -> Path:
        """The run of a pretraining on a share of the images."""
        epochs = f"--epochs {EPOCHS[method, known]} --eval_epoch 1000 --seed {seed}".split()
        flags = [*METHODS[method].split(), *self.flags[known], *COMMON.split(), *epochs]
        every = SHARES[known][0]
        folder = self.parent / f"{method}_{every}" / str(seed)
        return launch("pretrain.py", folder, flags, one_thread=True)

    def detector(self, start: str, share: str, seed: int) -> dict[str, float]:
        """The numbers of a detector from one start."""
        every, epochs = SHARES[share]
        name = start
        flags = f"{DETECTOR} {COMMON} --epochs {epochs} --seed {seed}".split() + self.flags[share]
        if start == "coco":
            flags += ["--weight", self.weight]
        elif start == "coco_backbone":
            flags += ["--backbone_weight", self.weight]
        elif start != "none":
            method, known = PRETRAINED[start]
            best = self.pretrained(method, known or share, seed) / "best.pth"
            flags += ["--backbone_weight", str(best)]
            name = f"{method}_{SHARES[known or share][0]}"
        folder = self.parent / f"from_{name}_{every}" / str(seed)
        folder = launch("train.py", folder, flags, one_thread=True)
        return json.loads((folder / "metrics.json").read_text())

    def rule(self, name: str) -> Path:
        """The run of `patches` under one of the rules."""
        flags = [*METHODS["patches"].split(), *self.flags["100 %"], *COMMON.split()]
        flags += [*RULES[name].split(), "--epochs", str(RULE_EPOCHS), "--eval_epoch", "1000"]
        folder = self.parent / "rules" / name.replace(" ", "_").replace(",", "")
        return launch("pretrain.py", folder, flags, one_thread=True)


def line(start: str, runs: dict[str, list[dict]]) -> str:
    """A row of the table: of each share the means over the seeds, with their standard deviation."""
    cells = []
    for found in runs.values():
        for number in NUMBERS:
            values = [run[number] for run in found]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}" if values else "-")
    return f"| {start} | " + " | ".join(cells) + " |"


def loader_of(records, cutter):
    return build_patch_loader(
        records, cutter, train=False, sides=(SIZE, SIZE), batch_size=16, num_workers=0, seed=0
    )


@dataclass(frozen=True)
class Halves:
    """Squares anywhere in an image, labelled 1 where more of them lies in the right half."""

    side: int
    count: int = 8

    def __call__(self, image, target, rng):
        height, width = image.shape[:2]
        square = min(self.side, height)
        left = rng.integers(0, width - square + 1, self.count)
        top = rng.integers(0, height - square + 1, self.count)
        corners = np.stack([left, top, left + square, top + square], axis=1)
        images = [cut(image, square, self.side) for square in corners]
        return padded(images, self.count, self.side) | {
            "labels": (left + square / 2 > width / 2).astype(np.int64),
            "regions": np.tile(np.float32((0, 0, self.side, self.side)), (self.count, 1)),
        }


def measured(folder: Path | None, val) -> dict[str, float]:
    """What a run's network knows of images it has not seen, whatever it was trained by; without a
    folder an untrained one."""
    recipe = recipes.pretraining.recipe_of("patches", recipes.RECIPES["yolox-nano"])
    cutter = NeighbourPatches(recipes.pretraining.LEAST_PATCH)
    torch.manual_seed(0)
    model = PatchContrast(build_backbone(recipe.backbone, {}), roles=cutter.roles)
    if folder:
        opened = convert.open_file(folder / "best.pth")
        options = {name: opened.recipe["model"][name] for name in ("objective", "dense")}
        model = PatchContrast(model.backbone, roles=cutter.roles, **options)
        model.load_state_dict(opened.state)
    device = torch.device("cpu")
    scores = ContrastScores(cutter.roles)
    found = score(model, loader_of(val.unlabelled(), cutter), scores, device).compute()
    published = NeighbourPatches(cutter.side, places="published", jitter="image")
    theirs = ContrastScores(published.roles)
    fixed = score(model, loader_of(val.unlabelled(), published), theirs, device).compute()
    probe = score(model, loader_of(val, ObjectPatches(cutter.side, calm=True)), Probe(), device)
    halves = score(model, loader_of(val.unlabelled(), Halves(cutter.side)), Probe(), device)
    return {
        "spread": found["spread"],
        "others": found["others"],
        "closer": found["closer"],
        "closer, published places": fixed["closer"],
        "left or right": halves.compute()["probe"],
        **probe.compute(),
    }


def main() -> None:
    args = parse_arguments()
    parent = Path(args.save_folder)
    study = Study(parent, write_shares(args.root, parent / "labels"), args.weight)
    wanted = args.only or [*STARTS, "rules"]
    if {"coco", "coco_backbone"} & set(wanted) and not args.weight:
        raise UserError(
            "rows of coco start from --weight FILE; give it, or name the others: --only"
        )
    starts = [start for start in STARTS if start in wanted]
    shares = args.shares
    found = {start: {share: [] for share in shares} for start in starts}
    tasks = [
        (start, share, seed)
        for share in shares
        for seed in range(1, args.seeds + 1)
        for start in starts
        if (start, share) != ("center_all", "100 %")  # which is the row of center
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        for task, numbers in zip(tasks, pool.map(lambda t: study.detector(*t), tasks), strict=True):
            start, share, seed = task
            found[start][share].append(numbers)
            say(f"from {start}, {share} of the labels, seed {seed}: AP50 {numbers['AP50']:.3f}")
        if "rules" in wanted:
            folders = dict(zip(RULES, pool.map(study.rule, RULES), strict=True))
    if starts:
        heads = [f"{number}, {share}" for share in shares for number in NUMBERS]
        say(f"\n| start | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
        for start in starts:
            say(line(start, found[start]))
    if "rules" in wanted:
        val = data.read("voc", args.root, "val")
        rows = {"untrained": measured(None, val)}
        rows |= {name: measured(folder, val) for name, folder in folders.items()}
        heads = list(rows["untrained"])
        say(f"\n| rule | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
        for name, numbers in rows.items():
            say(f"| {name} | " + " | ".join(f"{numbers[head]:.3f}" for head in heads) + " |")


if __name__ == "__main__":
    cli.run_main(main)
