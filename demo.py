"""Draw a detector's boxes on images, folders, videos, cameras and streams.

python demo.py --source photos --weight yolox_s.pth
python demo.py --source street.mp4 --weight runs/coco/yolox-s/1/best.pth --show --save drawn
"""

import argparse
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import models
from data.frames import videos_of
from models import tiles
from models.detector import follow
from utils import ahead, cli, gallery, output, playback, source, vis
from utils.errors import DataError, UserError
from utils.log import say
from utils.results import Results, keep_source
from utils.video import CODECS, Video, Writer
from utils.window import Window


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0], epilog="See docs/demo.md.")
    parser.add_argument(
        "--source",
        required=True,
        metavar="WHAT",
        help="image, folder, pattern in quotes, list of files (.txt), video, camera's number, or "
        "address (rtsp://...)",
    )
    cli.add_weight_flags(parser.add_argument_group("model"), conf=0.3, nms=0.45)
    pictures = parser.add_argument_group("pictures")
    output.add_flags(pictures)
    pictures.add_argument(
        "--classes", nargs="+", metavar="NAME", help="only objects of these classes (all)"
    )
    cli.add_device_flags(pictures)
    cli.add_debug_flag(pictures)
    videos = parser.add_argument_group("videos")
    videos.add_argument(
        "--every", type=cli.whole(1), default=1, metavar="N", help="only each N-th frame (1)"
    )
    videos.add_argument(
        "--max_frames", type=cli.whole(1), metavar="N", help="at most N frames of each (all)"
    )
    videos.add_argument(
        "--stills",
        action="store_true",
        help="takes each picture for itself; for a model that remembers those of a folder are the "
        "frames of a video",
    )
    return parser.parse_args()


def labels_of(names: list[str] | None, classes: tuple[str, ...]) -> list[int] | None:
    """The numbers of the named classes."""
    for name in names or ():
        if name not in classes:
            raise UserError("--classes: " + cli.unknown("class", name, classes))
    return [classes.index(name) for name in names] if names else None


def in_order(images: list, args: argparse.Namespace) -> tuple[list, list[int]]:
    """(the images as frames of videos, each folder being one, in order; the video of each)."""
    videos = videos_of([path for _, path in images])
    if len(images) > 1:
        say(
            f"{len(images)} pictures are taken for the frames of {len(videos)} videos, a folder "
            "being one (or more, where the numbers of its frames jump); --stills takes each "
            "picture for itself"
        )
    chosen = [video[:: args.every][: args.max_frames] for video in videos]
    numbers = [number for number, video in enumerate(chosen) for _ in video]
    return [images[index] for video in chosen for index in video], numbers


def play_all(found: source.Found, player: playback.Playback, results: Results, out, window):
    """Plays the videos one after the other; of several, those that cannot be read are skipped."""
    stems = Counter(Path(name).with_suffix("").as_posix() for name, _ in found.videos)
    for name, place in found.videos:
        stem = Path(name).with_suffix("").as_posix()
        base = stem if stems[stem] == 1 else name  # no two of them may meet
        try:
            video = Video(place)
            writer = None
            if out.written:
                writer = Writer(out.folder() / base, video.fps / player.every)
                for _, suffix in CODECS:
                    keep_source(Path(f"{writer.path}{suffix}"), Path(str(place)))
            go_on = player.play(video, name, writer, window, out.folder)
        except DataError as error:
            if len(found.videos) + len(found.images) == 1:
                raise
            results.skip(str(error))
            continue
        if video.remark:
            say(video.remark)
        if not go_on:
            return


def main():
    args = parse_arguments()
    sides = cli.sides_of(args)
    found = source.find(args.source)
    device = cli.pick_device(args)
    out = output.Output(args)
    conf = out.least_score(args.conf)
    model = models.load(args.weight, conf=conf, nms=args.nms, **sides)
    labels = labels_of(args.classes, model.classes)
    model = models.optimize(model.to(device), half=args.half)
    detect = tiles.finder(model, args.slice, args.overlap, args.conf)

    def finder():
        return model.follower() if model.remembers else detect

    def paint(image, found):
        return vis.draw(image, found, model.classes, threshold=0.0)

    many = ahead.pictures_at_a_time(device)
    images, how = found.images, {"detect": detect, "at_a_time": many}
    if model.remembers and not args.stills:
        images, videos = in_order(images, args)
        begin, following = follow(model, videos)
        how = {"detect": following, "begin": begin}
    chosen = {"threshold": args.conf, "labels": labels}
    with ExitStack() as stack:
        files = Results(model.classes, out.folder, args.save_txt, args.save_json)
        results = stack.enter_context(files)
        window = stack.enter_context(Window()) if out.shown else None
        go_on = True
        if images:
            names, paths = zip(*images, strict=True)
            pictures = gallery.Gallery(
                names,
                paths.__getitem__,
                paint=lambda _, *image: paint(*image),
                results=results,
                **how,
                **chosen,
            )
            if window:
                say(gallery.KEYS)
                go_on = pictures.show(window, out.folder, out.written)
            else:
                pictures.write(out.folder)
        if found.videos and go_on:
            player = playback.Playback(
                finder,
                paint,
                results,
                every=args.every,
                most=args.max_frames,
                at_a_time=1 if model.remembers else many,
                **chosen,
            )
            if window:
                say(playback.KEYS)
            play_all(found, player, results, out, window)
    if not results.pictures:
        raise UserError(f"--source {args.source}: nothing to read\n{results.summary()}")
    say(results.summary(rates=not out.shown))
    out.report()


if __name__ == "__main__":
    cli.run_main(main)
