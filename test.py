"""Draw a detector's boxes on the images of a data set.

python test.py --weight runs/synthetic/yolox-nano/1/best.pth --show
python test.py -d voc --root PATH --weight yolox_s.pth --save pictures
"""

import argparse
from pathlib import Path

import data
import models
from utils import cli, vis
from utils.image import read_image
from utils.log import progress, say


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0], epilog="See docs/data.md.")
    cli.add_weight_flags(parser.add_argument_group("model"), conf=0.3, nms=0.45)
    basic = parser.add_argument_group("data (default: what the checkpoint was trained on)")
    cli.add_data_flags(basic, data.READERS)
    cli.add_split_flags(basic, data.SPLITS)
    output = parser.add_argument_group("pictures")
    output.add_argument(
        "--show", action="store_true", help="open a window; q ends, any key goes on"
    )
    output.add_argument("--save", metavar="DIR", help="write them here (pictures, without --show)")
    cli.add_device_flags(output)
    cli.add_debug_flag(output)
    return parser.parse_args()


def main():
    args = parse_arguments()
    cli.data_of_checkpoint(args, models.arguments_of(args.weight))
    device = cli.pick_device(args)
    model = models.load(args.weight, conf=args.conf, nms=args.nms, img_size=args.img_size)
    model.to(device)
    options = cli.reader_options(args, args.split)
    records = data.read(args.dataset, args.root, args.split, **options)
    show = args.show and vis.can_show()
    folder = args.save or (None if show else "pictures")
    if args.show and not show:
        say(f"no window can be opened here: the pictures are written to {folder}")
    if show:
        say("any key shows the next image, q ends")
    shown = 0
    for index in progress(range(len(records)), "drawing", len(records), shown=not show):
        image = read_image(records.path(index))
        picture = vis.draw(image, model.detect(image), model.classes)
        shown += 1
        if folder:
            vis.save(Path(folder) / Path(records.files[index]).with_suffix(".jpg"), picture)
        if show and vis.show(records.files[index], picture) in (ord("q"), 27):
            break
    say(f"{shown} images of {records.summary()}")
    if folder:
        say(f"pictures: {folder}")


if __name__ == "__main__":
    cli.run_main(main)
