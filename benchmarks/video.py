"""Time demo.py on a video, written and not written, against the model alone.

python benchmark.py video --video bottles.mp4 --weight yolox_nano.pth

Each round takes the same frames in all ways, in turn, every other round in reverse order: the model
on frames in memory, one at a time with all threads, and as demo.py calls it, a frame for each core
(not a model that remembers: it needs its frames in turn); what demo.py does, from opening the video
to its last frame, keeping only numbers; the same with the drawn video written; and, for their
processor time, reading, drawing and writing alone. Figures are medians of the rounds; the ratio is
to the faster way of the model alone.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import models
from utils import ahead, cli, vis
from utils.errors import UserError
from utils.log import say
from utils.playback import Playback
from utils.results import Results, strong
from utils.video import Video, Writer

SCORE = 0.3


def add_flags(parser: cli.Parser):
    parser.add_argument("--video", required=True, metavar="FILE", help="video to play")
    cli.add_weight_flags(parser, conf=SCORE, nms=0.45)
    parser.add_argument(
        "--frames", type=cli.whole(10), default=300, metavar="N", help="frames of a round (300)"
    )
    parser.add_argument(
        "--rounds", type=cli.whole(1), default=7, metavar="N", help="timed rounds (7)"
    )
    cli.add_device_flags(parser)


def read(path: str, most: int) -> list:
    return [image for _, image in Video(path).frames(most=most)]


def ways(args: argparse.Namespace, model, frames: list, folder: Path) -> dict:
    """What is timed: name -> function of no arguments that goes through all frames once."""
    at_a_time = 1 if model.remembers else ahead.pictures_at_a_time(model.pixel_mean.device)
    measured = Results(model.classes)

    def finder():
        return model.follower() if model.remembers else model.detect

    def detected(count: int):
        """(frame, what is found), so many at a time."""
        detect = finder()
        return ahead.spread(lambda image: measured.timed(detect, image), frames, count)

    found = [strong(found, args.conf) for _, found in detected(1)]

    def paint(image, found):
        return vis.draw(image, found, model.classes, threshold=0.0)

    def play(writes: bool):
        results = Results(model.classes)
        options = {"threshold": args.conf, "most": args.frames, "at_a_time": at_a_time}
        player = Playback(finder, paint, results, **options)
        video = Video(args.video)
        writer = Writer(folder / "drawn", video.fps) if writes else None
        player.play(video, "video", writer)

    def write():
        with Writer(folder / "plain", 30) as writer:
            for image in frames:
                writer.write(image)

    several = {f"model, {at_a_time} at a time": lambda: list(detected(at_a_time))}
    return {
        "model, one": lambda: list(detected(1)),
        **(several if at_a_time > 1 else {}),
        "demo, not written": lambda: play(False),
        "demo, written": lambda: play(True),
        "reading": lambda: read(args.video, args.frames),
        "drawing": lambda: [paint(*pair) for pair in zip(frames, found, strict=True)],
        "writing": write,
    }


def run(args: argparse.Namespace):
    device = cli.pick_device(args)
    model = models.load(args.weight, conf=args.conf, nms=args.nms, **cli.sides_of(args))
    model = models.optimize(model.to(device), half=args.half)
    frames = read(args.video, args.frames)
    if len(frames) < args.frames:
        raise UserError(f"{args.video} has {len(frames)} frames; give as many with --frames")
    with tempfile.TemporaryDirectory() as folder:
        todo = ways(args, model, frames, Path(folder))
        seconds = {name: [] for name in todo}
        processor = {name: [] for name in todo}
        for turn in range(args.rounds + 1):
            for name in list(todo)[:: 1 if turn % 2 == 0 else -1]:
                start, used = time.perf_counter(), time.process_time()
                todo[name]()
                if turn:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
                    processor[name].append(time.process_time() - used)
    height, width = frames[0].shape[:2]
    say(f"{args.frames} frames of {width} x {height}, median of {args.rounds}:")
    base = min(statistics.median(seconds[name]) for name in seconds if name.startswith("model"))
    for name, values in seconds.items():
        median, used = statistics.median(values), statistics.median(processor[name])
        ratio = f"{base / median:7.3f}x" if name.startswith(("model", "demo")) else ""
        say(
            f"  {name:18s} {args.frames / median:7.1f} frames/s, processor "
            f"{used / args.frames * 1e3:6.2f} ms a frame {ratio}"
        )
