"""Turn a set of images or videos of one format into another, all its parts (train, val, test).

python -m data.convert --from voc --to coco --root datasets --out datasets/voc_as_coco
python -m data.convert --from coco --to yolo --root PATH --ann mine.json --images photos --out OUT
python -m data.convert --from custom --to coco --root PATH --out OUT --val_part 0.2
python -m data.convert --from mot --to cocovid --root PATH --out OUT
"""

import argparse
import os
import shutil
from pathlib import Path

import cv2

import data
from data.films import Images, frame_of
from data.parts import Source, add_part_flags, read_parts, source_of, split_off
from data.records import Records
from data.splits import NoPart
from data.video_writers import write_cocovid, write_yolo_video
from data.writers import write_coco, write_voc, write_yolo
from utils import cli
from utils.errors import UserError
from utils.log import Progress, say

WRITERS = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "cocovid": write_cocovid,
    "yolovideo": write_yolo_video,
}
OF_VIDEOS = ("cocovid", "yolovideo")  # the others make stills of frames
QUALITY = 95  # of the JPEG that a film's frame becomes


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m data.convert",
        description=__doc__.split("\n\n")[0],
        epilog="Examples and what each format keeps: docs/data.md, section Converting.",
    )
    group = parser.add_argument_group("from")
    group.add_argument(
        "--from",
        dest="dataset",
        metavar="NAME",
        type=lambda name: cli.DATASETS.get(name, name),
        help="another name of -d",
    )
    add_part_flags(group)
    group = parser.add_argument_group("to")
    group.add_argument("--to", dest="target", required=True, choices=WRITERS, help="new format")
    group.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write, which must be new or empty"
    )
    group.add_argument(
        "--link",
        action="store_true",
        help="hard links to the images instead of copies (frames of films are written)",
    )
    group.add_argument(
        "--val_part",
        type=cli.real(0.001, 0.999),
        metavar="X",
        help="share of the images to train on that becomes val, in a set that has none",
    )
    group.add_argument(
        "--seed", type=cli.whole(0), default=0, metavar="N", help="of the draw of --val_part (0)"
    )
    cli.add_debug_flag(group)
    args = parser.parse_args()
    if args.dataset is None:
        parser.error("--from is missing, the format of the set")
    return args


def main():
    args = parse_arguments()
    if Path(args.out).exists() and (not Path(args.out).is_dir() or any(os.scandir(args.out))):
        raise UserError(f"--out {args.out} is there already; remove it or choose another folder")
    parts = _read(args)
    for records in parts.values():
        data.check_files(records)
    written = convert(parts, args.target, args.out, link=args.link)
    for split, records in parts.items():
        boxes, notes = written[split]
        say(
            f"{split}: {len(records)} images, {len(records.boxes)} boxes read; "
            f"{len(records)} images, {boxes} boxes written"
        )
        if records.videos and args.target not in OF_VIDEOS:
            notes = [*notes, f"{len(records.videos)} videos became stills"]
        for note in (*records.notes, *notes):
            say(f"  note: {note}")
    say(f"written: -d {args.target} --root {args.out}")


def convert(parts: dict[str, Records], target: str, out, link: bool = False) -> dict:
    """Writes {split: Records} to a new folder, whole or not at all; {split: (boxes, notes)}."""
    out = Path(out).absolute()
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        with Progress(sum(map(len, parts.values())), "images") as bar:
            written = WRITERS[target](parts, partial, _placer(link, bar))
        if out.is_dir():
            out.rmdir()  # an empty one; Windows does not rename onto it
        partial.rename(out)
    except OSError as error:
        name = error.filename2 or error.filename or out
        advice = "leave out --link to copy the images" if link else "see --out"
        raise UserError(f"cannot write {name}: {error.strerror or error}; {advice}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _read(args) -> dict[str, Records]:
    """{split: Records} of the parts to convert, which must agree on the classes."""
    source = source_of(args)
    if args.val_part is None:
        parts = {split: records for split, (records, _) in read_parts(source, args.split).items()}
    else:
        parts = _divided(source, args.split, args.val_part, args.seed)
    first, *others = parts
    for split in others:
        if parts[split].classes != parts[first].classes:
            raise UserError(
                f"{first} and {split} differ in their classes ({', '.join(parts[first].classes)} "
                f"and {', '.join(parts[split].classes)}); name them with --classes FILE"
            )
    return parts


def _divided(source: Source, wanted, share: float, seed: int) -> dict[str, Records]:
    """The part to train on, divided in train and val: `share` of the images become val."""
    if wanted not in (None, ["train"]):
        raise UserError("--val_part divides the part to train on: --split train, or no --split")
    records = source.read("train")
    if wanted is None:
        _refuse_val(source)
    rest, held_out = split_off(records, share, seed)
    return {"train": rest, "val": held_out}


def _refuse_val(source: Source):
    """Raises UserError if the set has a part to evaluate on, be it sound or not."""
    advice = "to divide the part to train on nevertheless: --split train"
    for split in source.splits:
        if split == "train":
            continue
        try:
            source.read(split)
        except NoPart:
            continue
        except UserError as error:
            raise UserError(
                f"--val_part is for a set without {split}, and that of this one cannot be read: "
                f"{error}; {advice}"
            ) from None
        raise UserError(f"the set has a part {split} already; leave out --val_part; {advice}")


def _placer(link: bool, bar: Progress):
    """The function that puts an image's file where it belongs; of a film's frame it makes one."""
    images = Images()

    def place(source: Path, target: Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if frame_of(source):
            quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
            target.write_bytes(cv2.imencode(".jpg", images.read(source), quality)[1].tobytes())
        elif link:
            os.link(os.path.realpath(source), target)
        else:
            shutil.copyfile(source, target)
        bar.advance()

    return place


if __name__ == "__main__":
    cli.run_main(main)
