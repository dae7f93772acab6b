"""Write a detector as a file that runs without this project, and check that file.

python export.py --weight runs/coco/yolox-s/1/best.pth --out yolox_s.onnx --source photo.jpg
python export.py --weight yoloft.pth --out yoloft.onnx --img_size 640 --source clip.mp4
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

import models
from models import export, export_check
from utils import cli
from utils.errors import UserError
from utils.files import replace_file
from utils.image import is_image, padded_hw, read_image
from utils.log import say
from utils.video import Video

FRAMES = 5  # that are compared, with the state carried from each to the next
ASIDE = 4  # pixels by which a single picture moves from frame to frame
UNITS = {"boxes": " px"}


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0], epilog="See docs/export.md.")
    parser.add_argument(
        "--weight", required=True, metavar="FILE", help="checkpoint, ours or public"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help=f"file to write; its ending says what: {', '.join(export.FORMATS)}",
    )
    parser.add_argument(
        "--img_size",
        type=cli.side,
        nargs="+",
        metavar="PX",
        help="side of the input, or its height and width (the model's)",
    )
    parser.add_argument(
        "--batch", type=cli.whole(1), default=1, metavar="N", help="images at a time (1)"
    )
    parser.add_argument(
        "--dynamic_batch", action="store_true", help="any number of images; not in .torchscript"
    )
    parser.add_argument(
        "--opset",
        type=cli.whole(export.OPSET),
        default=export.OPSET,
        metavar="N",
        help=f"version of ONNX's operators ({export.OPSET}, the least)",
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FILE",
        help="picture or video that the file is checked on (drawn noise)",
    )
    cli.add_debug_flag(parser)
    return parser.parse_args()


def size_of(asked: list[int] | None, model: models.Detector) -> tuple[int, int]:
    """(h, w) of the input; lying where the model keeps an image's shape."""
    if asked is None:
        return tuple(padded_hw([model.sides]))
    if len(asked) > 2:
        raise UserError(f"--img_size takes one side or height and width, not {len(asked)} numbers")
    return asked[0], asked[-1]


def pictures(path: Path | None) -> list[np.ndarray]:
    """Successive frames: of a video, or of a picture that moves."""
    if path is not None and not path.is_file():
        raise UserError(f"--source {path}: there is no such file")
    if path is not None and not is_image(path):
        frames = [image for _, image in Video(str(path)).frames(most=FRAMES)]
        if not frames:
            raise UserError(f"--source {path}: no frame of it can be read")
        return frames
    image = noise() if path is None else read_image(path)
    return [np.roll(image, ASIDE * frame, axis=1) for frame in range(FRAMES)]


def noise() -> np.ndarray:
    """Spots of all colours."""
    spots = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    return cv2.resize(spots, (640, 480), interpolation=cv2.INTER_CUBIC)


def check(model: models.Detector, run: export.Run, frames: list, batch: int, size_hw) -> list[str]:
    """A line a frame; a UserError where the file gives something else than the model. Row r of the
    batch is r frames ahead."""
    inputs = [export_check.placed(image, size_hw) for image in frames]
    batches = []
    for start in range(FRAMES):
        rows = [inputs[(start + row) % len(inputs)] for row in range(batch)]
        batches.append(tuple(torch.cat(parts) for parts in zip(*rows, strict=True)))
    lines = []
    for number, found in enumerate(export_check.differences(model, run, batches), 1):
        for name, value in found.items():
            if not value <= export_check.LIMITS[name]:
                unit, limit = UNITS.get(name, ""), export_check.LIMITS[name]
                raise UserError(
                    f"frame {number}: {name} of the file differ by {value:.2g}{unit} from the "
                    f"model's, and rounding explains {limit:g}; nothing was written. Try another "
                    "--opset or another kind of file"
                )
        told = [f"{name} {value:.1e}{UNITS.get(name, '')}" for name, value in found.items()]
        lines.append(f"  frame {number}: {', '.join(told)}")
    return lines


def main():
    args = parse_arguments()
    kind = args.out.suffix.lower()
    if kind not in export.FORMATS:
        raise UserError(f"--out {args.out}: its ending is none of {', '.join(export.FORMATS)}")
    if kind == ".torchscript" and args.dynamic_batch:
        raise UserError(
            "a .torchscript file has a fixed number of images: give --batch in place of "
            "--dynamic_batch, or write .onnx or .pt2"
        )
    if kind != ".onnx" and cli.was_given(args, "opset"):
        raise UserError(f"--opset is for .onnx files; leave it out for {args.out}")
    frames = pictures(args.source)
    opened = models.read(args.weight)
    model = opened.build(conf=None, nms=None)
    size_hw = size_of(args.img_size, model)
    graph = export.program(model, args.batch, size_hw, args.dynamic_batch)
    metadata = export.described(model, opened.recipe["version"], size_hw)
    content = export.FORMATS[kind].make(graph, metadata, args.opset)
    run = export.FORMATS[kind].open(content)
    if run is None:
        say("not checked, for onnxruntime is not here: pip install onnxruntime")
    else:
        for batch in (1, 3) if args.dynamic_batch else (args.batch,):
            on = args.source or "noise"
            say(f"the file's differences from the model on {on}, {batch} at a time:")
            say("\n".join(check(model, run, frames, batch, size_hw)))
    replace_file(args.out, lambda file: file.write(content))
    held = "any number of" if args.dynamic_batch else args.batch
    remembered = f", {len(metadata['state'])} state maps" if metadata["state"] else ""
    say(
        f"{args.out}: {metadata['version']}, {len(model.classes)} classes, {held} x 3 x "
        f"{size_hw[0]} x {size_hw[1]}{remembered}, {len(content) / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    cli.run_main(main)
