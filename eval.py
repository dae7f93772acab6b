"""Score a detector on a data set, or a file of detections, with COCO's and VOC's numbers.

python eval.py --weight runs/synthetic/yolox-nano/1/best.pth
python eval.py -d coco --root PATH --weight yolox_s.pth --out detections.json
python eval.py -d voc --root PATH --results detections.json
python eval.py --weight runs/voc/yolox-s/1/best.pth --analyze report.html
torchrun --nproc_per_node 4 eval.py -d coco --root PATH --weight yolox_s.pth
"""

import argparse
import math
import shlex
import sys
from pathlib import Path

import numpy as np

import data
import engine
import models
from data.faults import name_some
from data.films import Images
from report import PAGE, write_report
from utils import cli, coco_results, dist
from utils.errors import UserError
from utils.evaluator import Evaluator
from utils.log import say
from utils.truth import truth_of

FEW_CLASSES = 20  # so many are listed one by one without being asked
FIRST = 8  # images that are looked at again when nothing was found
OF_A_MODEL = (
    *("img_size", "min_size", "max_size", "conf", "nms", "half"),
    *("batch_size", "num_workers", "out"),
)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0], epilog="See docs/evaluation.md.")
    model = parser.add_argument_group("what is scored")
    cli.add_weight_flags(model, conf=0.001, required=False)
    model.add_argument(
        "--results", metavar="FILE", help="detections as COCO results json, in place of --weight"
    )
    basic = parser.add_argument_group("data (default: what the checkpoint was trained on)")
    cli.add_data_flags(basic, data.READERS)
    cli.add_split_flags(basic, data.SPLITS)
    numbers = parser.add_argument_group("numbers and files")
    numbers.add_argument(
        "--per_class",
        action="store_true",
        help=f"a line for each class (done for up to {FEW_CLASSES} classes anyway)",
    )
    numbers.add_argument(
        "--voc", action="store_true", help="VOC's two numbers as well (done for -d voc anyway)"
    )
    numbers.add_argument(
        "--max_dets",
        type=cli.whole(1),
        nargs="+",
        default=[],
        metavar="N",
        help="more limits of detections of a class in an image, as in 100 300 1000",
    )
    numbers.add_argument(
        "--areas",
        type=area,
        nargs="+",
        default=[],
        metavar="NAME:LOW:HIGH",
        help="more ranges of size, by side in pixels, as in tiny:0:16 large:96:inf",
    )
    numbers.add_argument(
        "--out", metavar="FILE.json", help="write the detections there, as COCO results"
    )
    numbers.add_argument(
        "--analyze",
        nargs="?",
        const=PAGE,
        metavar="FILE.html",
        help=f"write a page of curves, errors and the worst images ({PAGE})",
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "-bs",
        "--batch_size",
        type=cli.whole(1),
        default=8,
        metavar="N",
        help="images, or videos (8)",
    )
    running.add_argument(
        "--num_workers", type=cli.whole(0), metavar="N", help="processes that read images"
    )
    cli.add_device_flags(running)
    cli.add_debug_flag(running)
    return parser.parse_args()


def area(text: str) -> tuple[str, tuple[float, float]]:
    """The type of --areas: (name, (least, greatest side))."""
    name, *sides = text.split(":")
    try:
        low, high = map(float, sides)
    except ValueError:
        low = high = math.nan
    if not name or not 0 <= low < high:
        raise argparse.ArgumentTypeError(
            f"{text} is not NAME:LOW:HIGH with sides in pixels, as in tiny:0:16 or large:96:inf"
        )
    return name, (low, high)


def check(args: argparse.Namespace):
    """Raises UserError for flags that do not go together, before anything is read."""
    if args.results and args.weight:
        raise UserError("--results is scored without a model; leave out --weight or --results")
    if not args.results and not args.weight:
        raise UserError("name a checkpoint with --weight FILE, or detections with --results FILE")
    if args.results and not args.dataset:
        raise UserError("--results needs the set it belongs to, as in -d voc --root DIR")
    for name in OF_A_MODEL if args.results else ():
        if cli.was_given(args, name):
            raise UserError(f"--{name} is for a model; --results are scored as they are")
    names = [name for name, _ in args.areas]
    if len(set(names)) < len(names):
        raise UserError(f"--areas: {', '.join(names)} are not different names")
    cli.sides_of(args)
    check_out(args)
    check_page(args)


def check_page(args: argparse.Namespace):
    """Raises UserError if --analyze names no file that can be written."""
    if args.analyze is None:
        return
    path = Path(args.analyze)
    if path.suffix not in (".html", ".htm"):
        raise UserError(
            f"--analyze {path}: a page is written; name it {path.stem or 'report'}.html"
        )
    if path.is_dir():
        raise UserError(f"--analyze {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"--analyze {path}: there is no folder {path.parent}; make it first")


def check_out(args: argparse.Namespace):
    """Raises UserError if --out cannot be written, or is a file that is read."""
    if args.out:
        coco_results.check_target(args.out, (args.weight, args.classes, *(args.ann or ())))


def evaluator_of(records, args: argparse.Namespace) -> Evaluator:
    return Evaluator(
        records,
        records.classes,
        records.category_ids,
        max_dets=tuple(args.max_dets),
        areas=dict(args.areas),
    )


def detect(args: argparse.Namespace):
    """(evaluator, records, what was scored, more notes): the model's detections, over all ranks."""
    opened = models.read(args.weight)
    cli.data_of_checkpoint(args, opened.arguments)
    check_out(args)  # again: the checkpoint may have named the files of its set
    device = cli.pick_device(args)
    dist.init(device)
    model = opened.build(conf=args.conf, nms=args.nms, **cli.sides_of(args))
    model.max_dets = max(model.max_dets, *args.max_dets, 0)
    model = models.optimize(model.to(device), half=args.half)
    options = cli.reader_options(args, args.split)
    options["classes"] = options["classes"] or model.classes
    records = data.read(args.dataset, args.root, args.split, **options)
    if len(records.classes) != len(model.classes):
        raise UserError(
            f"the set has {len(records.classes)} classes ({name_some(records.classes)}), the model "
            f"{len(model.classes)} ({name_some(model.classes)}); name the model's, in its order, "
            "with --classes FILE"
        )
    data.check_files(records)
    loader = data.build_loader(
        records,
        train=False,
        sides=model.sides,
        batch_size=args.batch_size,
        num_workers=cli.worker_count(args.num_workers, device),
        seed=0,
        rank=dist.rank(),
        world=dist.world_size(),
        streams=model.remembers,
        pin=device.type == "cuda",
    )
    try:
        evaluator = engine.evaluate(model, loader, evaluator_of(records, args), device=device)
    finally:
        loader.close()  # else the end of the process waits for the workers
    notes = []
    if dist.is_main() and not len(evaluator):
        count = min(FIRST, len(records))
        score = highest_score(model, records, count)
        notes = [f"--conf is {args.conf:g}; the highest score in {count} images is {score:.3g}"]
    return evaluator, records, args.weight, notes


def highest_score(model, records, count: int) -> float:
    """Of any detection in the first images, however weak."""
    model.conf = 0.0
    images = Images()
    scores = [model.detect(images.read(records.path(index)))["scores"] for index in range(count)]
    return max((float(found.max()) for found in scores if len(found)), default=math.nan)


def load(args: argparse.Namespace):
    """(evaluator, records, what was scored, more notes): the detections of a file."""
    options = cli.reader_options(args, args.split)
    whole = data.read(args.dataset, args.root, args.split, **{**options, "limit": None})
    columns = coco_results.read(args.results, truth_of(whole, whole.category_ids))
    records = whole if args.limit is None else whole.limit(args.limit)
    evaluator = evaluator_of(records, args)
    inside = np.isin(columns[0], records.image_ids)
    evaluator.add_columns(*(column[inside] for column in columns))
    return evaluator, records, args.results, []


def report(evaluator: Evaluator, records, args: argparse.Namespace, notes: list[str]):
    """Prints the numbers."""
    voc = args.voc or args.dataset == "voc"
    say(evaluator.table())
    numbers = evaluator.compute()
    if evaluator.of_videos:
        say("small objects, by the side of a square of their area:")
        say(evaluator.tiny_table())
    else:
        say(", ".join(f"{name} {numbers[name]:.4f}" for name in ("AP", "AP50", "AP75")))
    if voc:
        say(evaluator.voc_table())
    if args.max_dets or args.areas:
        say(evaluator.extra_table())
    if args.per_class or len(records.classes) <= FEW_CLASSES:
        say(evaluator.per_class_table(voc=voc))
    for note in (*numbers["notes"], *notes):
        say(f"note: {note}")


def write_page(evaluator: Evaluator, records, args: argparse.Namespace, scored: str):
    """The page; of weights in a run's folder with the training's curves."""
    packages = ", ".join(f"{name} {version}" for name, version in cli.package_versions().items())
    facts = {"scored": scored, "command": shlex.join(sys.argv), "packages": packages}
    write_report(
        args.analyze,
        evaluator,
        records,
        title=f"{scored} on {args.dataset}, {args.split}",
        read=Images().read,
        folder=Path(args.weight).parent if args.weight else None,
        facts=facts,
    )


def main():
    args = parse_arguments()
    check(args)
    evaluator, records, scored, notes = load(args) if args.results else detect(args)
    if dist.is_main():
        say(f"{scored} on {records.summary()}")
        report(evaluator, records, args, notes)
        if args.out:
            coco_results.write(args.out, evaluator.results())
            say(f"detections: {args.out}")
        if args.analyze:
            write_page(evaluator, records, args, scored)
            say(f"page: {args.analyze}")


if __name__ == "__main__":
    cli.run_main(main)
