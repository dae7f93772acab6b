"""Measure the backbones one against another, under YOLOX and under YOLOF.

    python -m docs.zoo --root FOLDER --save docs/zoo.png      # the tables of docs/models.md

Trains one size of each family from scratch on a VOC folder at 256 pixels, each for the same time on
the same processor: two epochs on trial give the speed, and the epochs are as many as fit. Of the
families' other sizes parameters, MACs and speed are measured only, under YOLOX. Speed is of squares
of the set's images, one at a time, and of random weights, with which nothing is found; parameters
and MACs are those of the folded network. What is finished is not measured again, and its weights
are deleted.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2

import data
from docs.runs import command, launch
from utils import cli, history, vis
from utils.errors import UserError
from utils.image import read_image
from utils.log import say

SIDE = 256  # pixels
PICTURES = 8  # on which speed is measured
SECONDS = 180  # of each training
TRIAL_EPOCHS = 2  # of which a recipe that mixes images does so in one
# The recipe under which a backbone is put, and what else the trainings of a family are told.
DETECTORS = {"yolox": "yolox-nano", "yolof": "yolof-r18-c5"}
TRAINED = (
    "cspdarknet-nano",
    "shufflenetv2-x1.0",
    "mobilenetv3-small",
    "mobilenetv2-ca",
    "rexnet-1.0",
    "repvgg-a0",
    "yolov5-n",
    "resnet18",
    "swin-t",
)
COUNTED = (
    "shufflenetv2-x0.5",
    "shufflenetv2-x1.5",
    "shufflenetv2-x2.0",
    "mobilenetv3-large",
    "rexnet-1.3",
    "rexnet-1.5",
    "rexnet-2.0",
    "rexnet-3.0",
    "repvgg-a1",
    "repvgg-a2",
    "repvgg-b0",
    "repvgg-b1",
    "yolov5-s",
    "yolov5-m",
    "resnet50",
    "swin-s",
)
COMMON = f"-d voc --no_pretrained --img_size {SIDE} --eval_epoch 1000 --seed 1 --device cpu"
HEAD = "| backbone | parameters | GMACs | ms plain | ms optimized |"
TRAINED_HEAD = f"{HEAD} epochs | seconds | AP50 |"
COLORS = {"yolox": "#2563eb", "yolof": "#f59e0b"}
# Where a name may stand, by its point: the side of it that is nearest, points to the right and up.
NAME_PLACES = (
    ("left", 7, 0),
    ("left", 5, 8),
    ("left", 5, -8),
    ("right", -7, 0),
    ("right", -5, 8),
    ("right", -5, -8),
    ("left", 7, 16),
    ("left", 7, -16),
)


class Row(NamedTuple):
    """What was measured of a detector; without a training its last three are None."""

    detector: str
    backbone: str
    parameters: int
    gmacs: float
    plain_ms: float
    optimized_ms: float
    epochs: int | None = None
    seconds: float | None = None
    ap50: float | None = None


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", required=True, metavar="DIR", help="of the VOC set")
    parser.add_argument("--save_folder", default="runs/zoo", metavar="DIR", help="of the runs")
    parser.add_argument("--save", metavar="FILE.png", help="AP50 against milliseconds")
    parser.add_argument(
        "--seconds", type=cli.whole(1), default=SECONDS, metavar="N", help=f"to train ({SECONDS})"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these backbones")
    cli.add_debug_flag(parser)
    return parser.parse_args()


# ---- training for a given time ----


def train(folder: Path, detector: str, backbone: str, root: str, epochs: int) -> Path:
    """The folder of a finished run of so many epochs, trained where it is missing."""
    flags = f"-v {DETECTORS[detector]} --backbone {backbone} {COMMON} --epochs {epochs}".split()
    run = launch("train.py", folder, [*flags, "--root", root])
    for weights in folder.glob("*/*/*/*.pth"):
        weights.unlink()
    return run


def epochs_for(trial: history.History, seconds: float) -> int:
    """How many epochs, each like those of the trial, take about so many seconds, at least one."""
    first, *rest = trial.timing  # the first updates also make memory and threads
    done, epochs = trial.timing[-1]["step"], trial.timing[-1]["epoch"]
    speed = sum(line["seconds"] for line in rest) / (done - first["step"])  # seconds of an update
    return max(1, round(seconds / (speed * done / epochs)))


def trained(folder: Path, detector: str, backbone: str, args: argparse.Namespace) -> Path:
    """The finished run that took about the time that was asked for."""
    trial = train(folder / "trial", detector, backbone, args.root, epochs=TRIAL_EPOCHS)
    epochs = epochs_for(history.read(trial), args.seconds)
    return train(folder / f"{args.seconds}s", detector, backbone, args.root, epochs)


# ---- size and speed ----


def squares(folder: Path, records) -> list[str]:
    """The first images as square files: both forms of a model see the same pixels."""
    paths = []
    for index in range(min(PICTURES, len(records))):
        path = folder / f"{index}.jpg"
        vis.save(path, cv2.resize(read_image(records.path(index)), (SIDE, SIDE)))
        paths.append(str(path))
    return paths


def measured(folder: Path, model: list[str], pictures: list[str]) -> tuple[float, float]:
    """Milliseconds of network and postprocessing, as trained and as models.optimize makes it."""
    found = []
    for name, form in (("plain", ["--no_fuse"]), ("optimized", [])):
        out = folder / f"{name}.json"
        if not out.exists():
            flags = [*model, *form, "--img_size", str(SIDE), "--source", *pictures]
            flags += ["--device", "cpu", "--out", str(out)]
            command("benchmark.py", ["inference", *flags], folder / f"{name}.txt")
        (numbers,) = json.loads(out.read_text())["results"]
        found.append(numbers["forward"]["median"] + numbers["postprocess"]["median"])
    return found[0], found[1]


def counted(folder: Path, model: list[str], classes: int) -> tuple[int, float]:
    """Parameters, and GMACs of an image."""
    out = folder / "flops.json"
    if not out.exists():
        flags = [*model, "--fuse", "--shape", str(SIDE), "--num_classes", str(classes)]
        command("benchmark.py", ["flops", *flags, "--out", str(out)], folder / "flops.txt")
    whole = json.loads(out.read_text())["results"][0]
    return whole["parameters"], whole["macs"] / 1e9


def row(
    detector: str, backbone: str, pictures: list[str], classes: int, args: argparse.Namespace
) -> Row:
    """All that is measured of a backbone under a detector."""
    folder = Path(args.save_folder) / detector / backbone
    model = ["-v", DETECTORS[detector], "--backbone", backbone]
    size, speed = counted(folder, model, classes), measured(folder, model, pictures)
    if backbone not in TRAINED:
        return Row(detector, backbone, *size, *speed)
    run = trained(folder, detector, backbone, args)
    timing = history.read(run).timing
    seconds = sum(line["seconds"] for line in timing)
    ap50 = json.loads((run / "metrics.json").read_text())["AP50"]
    return Row(detector, backbone, *size, *speed, timing[-1]["epoch"], seconds, ap50)


# ---- what is printed and drawn ----


def line(found: Row) -> str:
    """A row of the table."""
    cells = [
        found.backbone,
        f"{found.parameters / 1e6:.2f} M",
        f"{found.gmacs:.3f}",
        f"{found.plain_ms:.1f}",
        f"{found.optimized_ms:.1f}",
    ]
    if found.ap50 is not None:
        cells += [str(found.epochs), f"{found.seconds:.0f}", f"{found.ap50:.3f}"]
    return "| " + " | ".join(cells) + " |"


def tables(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: of each detector what was trained, then what was not."""
    lines = []
    for detector, recipe in DETECTORS.items():
        for head, is_trained in ((TRAINED_HEAD, True), (HEAD, False)):
            own = [r for r in rows if r.detector == detector and (r.ap50 is not None) == is_trained]
            if own:
                kind = "" if is_trained else ", not trained"
                rule = "|---" * (head.count("|") - 1) + "|"
                lines += ["", f"{recipe}{kind}", "", head, rule, *map(line, own)]
    return lines


def draw(rows: Sequence[Row], path: Path):
    """AP50 against the milliseconds of the optimized model, a panel for each detector."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(9.5, 8.4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    trained_rows = [each for each in rows if each.ap50 is not None]
    panels = {}
    for axes, (detector, recipe) in zip(figure.subplots(2), DETECTORS.items(), strict=True):
        own = [each for each in trained_rows if each.detector == detector]
        panels[detector] = axes, sorted(own, key=lambda each: -each.ap50)
        x, y = [each.optimized_ms for each in own], [each.ap50 for each in own]
        axes.scatter(x, y, s=42, color=COLORS[detector], zorder=3)
        axes.set_title(f"neck and head of {recipe}", fontsize=11)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=f"ms of an image of {SIDE} x {SIDE}, optimized, float32", ylabel="AP50")
        axes.margins(x=0.18, y=0.12)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()  # from here on it is known where the points are
    for axes, own in panels.values():
        write_names(axes, own)
    figure.savefig(path)


def write_names(axes, rows: Sequence[Row]):
    """Each backbone's name beside its point, where it covers no other; from the top down, so that
    names of points above each other stand in their order."""
    from matplotlib.transforms import Bbox

    points = [(each.optimized_ms, each.ap50) for each in rows]
    middles = axes.transData.transform(points)
    taken = [Bbox.from_extents(*(middle - 6), *(middle + 6)) for middle in middles]
    for each, at in zip(rows, points, strict=True):
        text = axes.annotate(
            each.backbone, at, xytext=(0, 0), textcoords="offset points", va="center", fontsize=9
        )
        for side, *offset in NAME_PLACES:
            text.set(ha=side, position=offset)
            box = text.get_window_extent()
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def main() -> None:
    args = parse_arguments()
    names = {"yolox": (*TRAINED, *COUNTED), "yolof": TRAINED}
    for name in args.only or ():
        if name not in names["yolox"]:
            raise UserError(cli.unknown("backbone of the tables", name, names["yolox"]))
    records = data.read("voc", args.root, "val")
    pictures = squares(Path(args.save_folder) / "squares", records)
    rows = []
    for detector in DETECTORS:
        for name in names[detector]:
            if args.only and name not in args.only:
                continue
            rows.append(row(detector, name, pictures, len(records.classes), args))
            say(f"{detector}: {line(rows[-1])}")
    for each in tables(rows):
        say(each)
    if args.save:
        draw(rows, Path(args.save))
        say(f"picture: {args.save}")


if __name__ == "__main__":
    cli.run_main(main)
