"""Draw the pictures of these pages: from a trained checkpoint, the synthetic set and the code.

    python -m docs.draw --weight runs/synthetic/yolox-nano/1/best.pth

The checkpoint's run must be one on the synthetic set; its curves.png is copied.
"""

import ast
import shutil
import tempfile
import textwrap
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import data
import models
import recipes
from docs.runs import command
from utils import cli, vis, vis_targets
from utils.errors import UserError
from utils.image import read_image
from utils.log import say

ROOT = Path(__file__).parent.parent
SIDE = 336  # pixels of one picture in a sheet
AUGMENTED = ("yolox-nano", "yolox-s")  # recipes of the two rows of mosaic.jpg
SEED = 3
PATCH_ROWS = 5  # images of which patches are shown

# Rooms of the house: what stands on the sign, and left, bottom, width, height in the picture.
FLOORS = {
    "entries": ("the commands: flags, windows, exit codes", (0.0, 11.7, 16.0, 1.1)),
    "engine": ("the loops", (5.3, 9.6, 2.3, 1.1)),
    "recipes": ("what one tunes", (8.3, 8.1, 1.75, 2.6)),
    "report": ("what was found", (10.2, 7.0, 1.75, 3.7)),
    "models": ("networks, matching, losses", (0.0, 4.9, 5.0, 5.8)),
    "cuda_ops": ("native operators", (2.75, 2.6, 2.5, 1.9)),
    "data": ("readers, augmentation, batches", (12.1, 2.6, 3.9, 8.1)),
    "utils": ("one noun a file", (0.0, 0.0, 16.0, 2.25)),
}
LINE_LENGTH = {
    "models": 36,
    "recipes": 15,
    "report": 15,
    "data": 30,
    "cuda_ops": 22,
    "utils": 137,
}  # characters of a line of file names
FILL, EDGE, MUTED, ARROW = "#eef2ff", "#4f46e5", "0.35", "#334155"


def parse_arguments():
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--weight", required=True, metavar="FILE", help="a run's best.pth")
    parser.add_argument(
        "--root", default="datasets", metavar="DIR", help="where the synthetic set lies (datasets)"
    )
    parser.add_argument("--save", default="docs", metavar="DIR", help="write them here (docs)")
    cli.add_debug_flag(parser)
    return parser.parse_args()


# ---- detections, augmentation, assignment ----


def enlarged(image: np.ndarray, boxes) -> tuple[np.ndarray, np.ndarray]:
    """The image at SIDE pixels, so that labels have room, and its boxes there."""
    ratio = SIDE / max(image.shape[:2])
    image = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_CUBIC)
    return image, np.asarray(boxes) * ratio


def detections(model, records, rows: int = 2, columns: int = 4) -> np.ndarray:
    """The first validation images, with what the model finds in them."""
    pictures = []
    for index in range(rows * columns):
        image = read_image(records.path(index))
        found = model.detect(image)
        image, boxes = enlarged(image, found["boxes"])
        pictures.append(vis.draw(image, {**found, "boxes": boxes}, model.classes))
    return vis.mosaic_sheet(pictures, columns, cell=SIDE)


def mosaics(records, columns: int = 4) -> np.ndarray:
    """Training samples with their boxes, one row for each recipe of AUGMENTED."""
    pictures = []
    for name in AUGMENTED:
        recipe = recipes.for_dataset(recipes.RECIPES[name], "synthetic")
        loader = data.build_loader(
            records,
            train=True,
            sides=recipe.sides,
            batch_size=columns,
            num_workers=0,
            seed=SEED,
            augment=recipe.stages[0].augment,
        )
        images, targets = next(loader.batches(0))
        for image, boxes, labels, valid in zip(
            images, *(targets[key] for key in ("boxes", "labels", "valid")), strict=True
        ):
            image, boxes = enlarged(image.permute(1, 2, 0).numpy(), boxes[valid])
            pictures.append(vis.draw_truth(image, boxes, labels[valid], records.classes))
    return vis.mosaic_sheet(pictures, columns, cell=SIDE)


def assignments(names, records, columns: int = 4, trained=()) -> np.ndarray:
    """What matchers choose on the fullest images: a row for each untrained recipe of `names`, then
    one for each of the models `trained`."""
    torch.manual_seed(SEED)
    untrained = [
        models.build_model(recipes.without_weights(recipes.RECIPES[name]), records.classes).eval()
        for name in names
    ]
    counts = np.diff(records.starts)
    chosen = np.argsort(-counts, kind="stable")[:columns].tolist()
    pictures = [assignment(net, records, i) for net in (*untrained, *trained) for i in chosen]
    return vis.mosaic_sheet(pictures, columns, cell=SIDE)


def assignment(model, records, index: int) -> np.ndarray:
    """One image with its boxes and their positives."""
    image, truth = read_image(records.path(index)), records.boxes_of(index)
    images = torch.from_numpy(image).permute(2, 0, 1)[None]  # [1, 3, H, W]
    targets = {
        "boxes": torch.from_numpy(truth["boxes"])[None],
        "labels": torch.from_numpy(truth["labels"])[None],
        "valid": torch.ones(1, len(truth["labels"]), dtype=torch.bool),
        "size": torch.tensor([image.shape[:2]]),
    }
    (found,) = model.positives(images, targets)
    target = {**truth, "ignore_boxes": truth["boxes"][:0], "size": image.shape[:2]}
    found = vis_targets.once({name: value.numpy() for name, value in found.items()})
    return vis_targets.draw(image, target, found, records.classes, view=SIDE)


def patches(root: str) -> np.ndarray:
    """What both methods of pretraining cut out of the first images, side by side."""
    sheets = []
    with tempfile.TemporaryDirectory() as folder:
        for method in ("center", "patches"):
            flags = f"{method} -d synthetic -v yolox-nano --img_size 320 --limit {PATCH_ROWS}"
            flags = [*flags.split(), "--root", root, "--save_patches", folder]
            command("pretrain.py", flags, Path(folder) / "output.txt")
            sheets.append(read_image(Path(folder) / f"{method}.png"))
    return np.hstack(sheets)


# ---- the import arrows ----


def room_of(name: str) -> str:
    """The room of a module of the root: what is no room of its own is a command."""
    return name if name in FLOORS else "entries"


def rooms() -> tuple[dict[str, list[str]], set[tuple[str, str]]]:
    """(file names of each room, arrows (from, to) between rooms), read from the code."""
    files = {room: [] for room in FLOORS}
    own = {path.stem for path in ROOT.glob("*.py")} | set(FLOORS) - {"entries"}
    arrows = set()
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]):
        parts = path.relative_to(ROOT).parts
        room = room_of(parts[0].removesuffix(".py"))
        if len(parts) == 2 and parts[0] not in FLOORS:
            continue  # tests, these pages
        if path.stem != "__init__":
            files[room].append(path.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named = {name.split(".")[0] for name in names} & own
            arrows |= {(room, room_of(name)) for name in named}
    return files, {(start, end) for start, end in arrows if start != end}


def draw_arrows(path: Path):
    """The house: one box a room with its files, one arrow for each pair that imports."""
    files, arrows = rooms()
    figure = Figure(figsize=(12, 9.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(-0.2, 16.2), ylim=(-0.2, 13.0))
    axes.set_axis_off()
    for room, (text, (left, bottom, width, height)) in FLOORS.items():
        style = "round,pad=0,rounding_size=0.15"
        box = FancyBboxPatch(
            (left, bottom), width, height, boxstyle=style, facecolor=FILL, edgecolor=EDGE
        )
        axes.add_patch(box)
        if (ROOT / room).is_dir():
            title, listed = f"{room}/", wrapped(files[room], LINE_LENGTH[room])
        else:
            title, listed = "  ".join(files[room]), ""
        middle, top, centred = left + width / 2, bottom + height, {"ha": "center", "va": "top"}
        axes.text(middle, top - 0.18, title, fontsize=13, fontweight="bold", **centred)
        axes.text(middle, top - 0.66, text, fontsize=10, color=MUTED, **centred)
        axes.text(middle, top - 1.12, listed, fontsize=9, family="monospace", **centred)
    for start, end in sorted(arrows):
        arrow_from, arrow_to = ends(FLOORS[start][1], FLOORS[end][1])
        axes.annotate(
            "",
            arrow_to,
            arrow_from,
            arrowprops={"arrowstyle": "-|>", "color": ARROW, "linewidth": 1.6, "shrinkB": 1},
        )
    figure.savefig(path)


def wrapped(names: list[str], length: int) -> str:
    """The names in lines of about `length` characters."""
    return textwrap.fill("  ".join(names), length)


def ends(upper, lower) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both ends of an arrow from the bottom of one box to the top of another, straight down
    through the middle of the narrower one."""
    narrow = min(upper, lower, key=lambda box: box[2])
    x = narrow[0] + narrow[2] / 2
    return (x, upper[1]), (x, lower[1] + lower[3])


def main():
    args = parse_arguments()
    folder, curves = Path(args.save), Path(args.weight).parent / "curves.png"
    train, val = (data.read("synthetic", args.root, split) for split in ("train", "val"))
    model = models.load(args.weight)
    pictures = {
        "detections.jpg": detections(model, val),
        "mosaic.jpg": mosaics(train),
        "assignment.jpg": assignments(("yolox-nano",), val, trained=(model,)),
        "patches.jpg": patches(args.root),
        "yolof_assignment.jpg": assignments(("yolof-r18-c5", "yolof-r18-dc5"), val),
    }
    for name, picture in pictures.items():
        vis.save(folder / name, picture)
    draw_arrows(folder / "arrows.png")
    if not curves.is_file():
        raise UserError(f"no {curves}; name a checkpoint that lies in its run's folder")
    shutil.copyfile(curves, folder / "curves.png")
    say(f"pictures: {folder}")


if __name__ == "__main__":
    cli.run_main(main)
