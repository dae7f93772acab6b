"""Measure the memory of a video detector along a film, as demo.py plays it.

python benchmark.py streaming
python benchmark.py streaming --weight yoloft.pth --frames 20000

Writes a film of noise that moves, and a fresh process plays it with Playback as demo.py does: read
ahead, detected in frame by frame with the state carried along, drawn on and written. The resident
memory (VmRSS) is that after a tenth, half and all of the frames. It comes from /proc, so this runs
under Linux only.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import models
from benchmarks.memory import MIB, in_fresh_process, status
from recipes import RECIPES, with_sides
from utils import cli, vis
from utils.errors import UserError
from utils.log import say
from utils.playback import Playback
from utils.results import Results
from utils.video import Video, Writer

FILM_HW = (192, 256)
SCORE = 0.3


def add_flags(parser: cli.Parser):
    parser.add_argument("--weight", metavar="FILE", help="trained model (none: an untrained one)")
    parser.add_argument(
        "-v", "--version", default="yoloft-nano", metavar="NAME", help="untrained (yoloft-nano)"
    )
    parser.add_argument(
        "--img_size", type=cli.whole(32), default=256, metavar="PX", help="side of the input (256)"
    )
    parser.add_argument(
        "--frames", type=cli.whole(10), default=2000, metavar="N", help="of the film (2000)"
    )


def write_film(path: Path, frames: int) -> Path:
    """A film through which noise moves."""
    noise = np.random.default_rng(0).integers(0, 256, (*FILM_HW, 3), np.uint8)
    with Writer(path, 25) as writer:
        for number in range(frames):
            writer.write(np.roll(noise, number, axis=1))
    return writer.path


def model_of(weight: str | None, version: str, img_size: int) -> models.Detector:
    if weight:
        return models.load(weight, conf=SCORE, img_size=img_size)
    if version not in RECIPES:
        raise UserError(cli.unknown("model", version, RECIPES))
    return models.build_model(with_sides(RECIPES[version], img_size), ("object",)).eval()


def measure(film: Path, frames: int, model_arguments: tuple, answers):
    """Puts ({number of frames: resident bytes after them}, seconds)."""
    model = models.optimize(model_of(*model_arguments))
    marks, found, seen = {max(frames // 10, 1), frames // 2, frames}, {}, 0

    def finder():
        detect = model.follower()

        def watched(image):
            nonlocal seen
            result = detect(image)
            seen += 1
            if seen in marks:
                found[seen] = status()[0]
            return result

        return watched

    def paint(image, found):
        return vis.draw(image, found, model.classes, threshold=0.0)

    start = time.perf_counter()
    video = Video(str(film))
    player = Playback(finder, paint, Results(model.classes), threshold=SCORE)
    player.play(video, "film", Writer(film.with_name("drawn"), video.fps))
    answers.put((found, time.perf_counter() - start))


def run(args: argparse.Namespace):
    if not os.path.exists("/proc/self/status"):
        raise UserError("there is no /proc/self/status; memory is measured under Linux only")
    arguments = (args.weight, args.version, args.img_size)
    model_of(*arguments)  # what is wrong with them is told here
    with tempfile.TemporaryDirectory() as folder:
        film = write_film(Path(folder) / "film", args.frames)
        found, seconds = in_fresh_process(measure, film, args.frames, arguments)
    say(
        f"{Path(args.weight).name if args.weight else args.version} at {args.img_size}, a film of "
        f"{args.frames} frames of {FILM_HW[1]} x {FILM_HW[0]}, {args.frames / seconds:.1f} frames/s"
    )
    for count, resident in found.items():
        say(f"  after {count:6d} frames: {resident / MIB:.1f} MiB resident")
