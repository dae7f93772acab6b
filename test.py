"""Draw a detector's boxes on the images of a data set.

python test.py --weight runs/synthetic/yolox-nano/1/best.pth --show
python test.py -d voc --root PATH --weight yolox_s.pth --with_gt --save drawn
"""

import argparse
from collections import Counter

import numpy as np

import data
import models
from data.films import Images
from data.streams import in_order
from models import tiles
from models.detector import follow
from utils import ahead, cli, gallery, output, vis
from utils.errors import UserError
from utils.log import say
from utils.results import Results
from utils.verdicts import judge
from utils.window import Window


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        description=__doc__.split("\n\n")[0], epilog="See docs/demo.md and docs/data.md."
    )
    model = parser.add_argument_group("model")
    cli.add_weight_flags(model, conf=0.3, nms=0.45)
    basic = parser.add_argument_group("data (default: what the checkpoint was trained on)")
    cli.add_data_flags(basic, data.READERS)
    cli.add_split_flags(basic, data.SPLITS)
    pictures = parser.add_argument_group("pictures")
    output.add_flags(pictures)
    pictures.add_argument(
        "--with_gt",
        action="store_true",
        help="draw the annotated objects too, and colour the boxes by right and wrong",
    )
    cli.add_device_flags(pictures)
    cli.add_debug_flag(pictures)
    return parser.parse_args()


def joined(known: tuple[str, ...], annotated: tuple[str, ...]) -> tuple[tuple, np.ndarray]:
    """The model's class names with the data set's others after them; the number in it of each of
    the data set's classes."""
    names = (*known, *(name for name in annotated if name not in known))
    return names, np.array([names.index(name) for name in annotated])


def main():
    args = parse_arguments()
    sides = cli.sides_of(args)
    opened = models.read(args.weight)
    cli.data_of_checkpoint(args, opened.arguments)
    device = cli.pick_device(args)
    out = output.Output(args)
    conf = out.least_score(args.conf)
    model = opened.build(conf=conf, nms=args.nms, **sides)
    options = cli.reader_options(args, args.split)
    records = data.read(args.dataset, args.root, args.split, **options)
    if model.remembers:
        order, videos = in_order(records)
        records = records.subset(order)
    say(records.summary())
    names, numbers = joined(model.classes, records.classes)
    if args.with_gt and len(names) > len(model.classes):
        unknown = ", ".join(names[len(model.classes) :])
        say(f"warning: classes that the model does not know, and can only miss: {unknown}")
    model = models.optimize(model.to(device), half=args.half)
    counts = {}  # of verdicts, by picture, when it was first drawn

    def paint(index, image, found):
        if not args.with_gt:
            return vis.draw(image, found, model.classes, threshold=0.0)
        truth = records.boxes_of(index)
        truth["labels"] = numbers[truth["labels"]]
        judged = judge(found, truth)
        counts.setdefault(index, judged.counts())
        return vis.draw_verdicts(image, found, truth, judged, names)

    with Results(model.classes, out.folder, args.save_txt, args.save_json) as results:
        detect = tiles.finder(model, args.slice, args.overlap, args.conf)
        at_a_time, watch = ahead.pictures_at_a_time(device), {}
        if model.remembers:
            at_a_time = 1
            watch["begin"], detect = follow(model, videos)
        pictures = gallery.Gallery(
            records.files,
            records.path,
            detect,
            paint,
            results,
            threshold=args.conf,
            at_a_time=at_a_time,
            read=Images().read,
            **watch,
        )
        if out.shown:
            say(gallery.KEYS)
            with Window() as window:
                pictures.show(window, out.folder, out.written)
        else:
            pictures.write(out.folder)
    if not results.pictures:
        raise UserError(f"no image of the set can be read\n{results.summary()}")
    say(results.summary(rates=not out.shown))
    if args.with_gt:
        total = sum(counts.values(), Counter())
        say("detections: " + ", ".join(f"{total[name]} {name}" for name in vis.VERDICTS))
    out.report()


if __name__ == "__main__":
    cli.run_main(main)
