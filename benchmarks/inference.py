"""Time detection by part, from image files to boxes; fps; in turn with the reference.

python benchmark.py inference -v yolox-s --img_size 640 --half
python benchmark.py inference -v yolox-nano --backbone resnet18 --no_fuse
python benchmark.py inference --weight yolox_nano.pth --source dog.jpg --out bench.json
PYTHONPATH=FOLDER_OF_YOLOX python benchmark.py inference --peer --weight yolox_nano.pth -v yolox-s

Decoding is from a file's bytes to a BGR array, preprocessing from there to the network's input,
forward is the network, postprocessing from its outputs to boxes in the image's pixels; the device
is waited for after each. fps is images by the seconds of forward and postprocessing, as TinyDet
counts it; images/s is of all parts. Models are timed as models.optimize makes them, unless --fuse,
--no_fuse or --compile asks for another form. Without --source the image is noise of 480 x 640;
without --weight the weights are random and find nothing. A model that remembers sees each image
as the first of its film. With --peer both sides have the same weights, get decoded images and are
taken in turn.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

import models
import recipes
from benchmarks import inference_peer
from benchmarks.named import recipe_of
from benchmarks.turns import in_turn
from models.optimize import half_dtype
from utils import cli
from utils.classes import COCO_CLASSES
from utils.columns import aligned
from utils.errors import UserError
from utils.image import decoded, is_square
from utils.log import say
from utils.stopwatch import peak_memory_mb

PARTS = ("decode", "preprocess", "forward", "postprocess")
DEFAULT = ("yolox-nano", "yolox-s")
NOISE_HW = (480, 640)

File = tuple[str, bytes]  # an image file's name and what is in it


def add_flags(parser: cli.Parser):
    parser.add_argument("--weight", metavar="FILE", help="checkpoint, ours or public (random)")
    parser.add_argument(
        "-v",
        "--version",
        nargs="+",
        metavar="NAME",
        help=f"models with random weights ({' '.join(DEFAULT)}; none with --weight)",
    )
    parser.add_argument("--backbone", metavar="NAME", help="another backbone under those of -v")
    cli.add_size_flags(parser)
    parser.add_argument("--source", nargs="+", metavar="FILE", help="images (one of noise)")
    parser.add_argument("--conf", type=cli.real(0, 1), default=0.25, help="least score (0.25)")
    parser.add_argument("--nms", type=cli.real(0, 1), default=0.45, help="greatest IoU (0.45)")
    parser.add_argument(
        "-bs", "--batch_size", type=cli.whole(1), default=1, metavar="N", help="images (1)"
    )
    parser.add_argument("--half", action="store_true", help="bfloat16 or float16, if there is one")
    cli.add_switch(
        parser, "fuse", "batch norms folded alone; as trained (as models.optimize makes it)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="the network by torch.compile (folded, too)"
    )
    parser.add_argument(
        "--threads", type=cli.whole(1), metavar="N", help="threads of the CPU (one a core)"
    )
    parser.add_argument(
        "--num", type=cli.whole(1), default=50, metavar="N", help="timed batches (50)"
    )
    parser.add_argument(
        "--warmup",
        type=cli.whole(1),
        default=5,
        metavar="N",
        help="untimed batches before; each batch is at least one of them (5)",
    )
    parser.add_argument(
        "--peer", action="store_true", help="in turn with the package yolox, found by PYTHONPATH"
    )
    parser.add_argument("--out", metavar="FILE", help="write all numbers as JSON")
    cli.add_device_flags(parser)


class Side:
    """One way from images to boxes, as functions of `PARTS` in their order, or without decoding;
    each takes what the one before returned."""

    def __init__(self, parts: dict[str, Callable], dtype: torch.dtype, device: torch.device):
        self.parts, self.device = parts, device
        self.dtype = str(dtype).removeprefix("torch.")
        self.seconds: list[dict[str, float]] = []
        self.input_hw, self.detections = (0, 0), 0

    @torch.inference_mode()
    def run(self, images: list, timed: bool):
        value, laps = images, {}
        for name, part in self.parts.items():
            start = time.perf_counter()
            value = part(value)
            synchronize(self.device)
            laps[name] = time.perf_counter() - start
            if name == "preprocess":
                self.input_hw = tuple(value[0].shape[-2:])
        self.detections = sum(len(found) for found in value)
        if timed:
            self.seconds.append(laps)

    def numbers(self, batch_size: int) -> dict:
        """Milliseconds a batch of each part and of all, and images a second."""
        parts = {name: [laps[name] for laps in self.seconds] for name in self.parts}
        parts["all"] = [sum(laps.values()) for laps in self.seconds]
        images = batch_size * len(self.seconds)
        network = sum(parts["forward"]) + sum(parts["postprocess"])
        return {
            "dtype": self.dtype,
            "input_hw": self.input_hw,
            "detections": self.detections,
            **{name: _statistics(seconds) for name, seconds in parts.items()},
            "fps": round(images / network, 2),
            "images_per_second": round(images / sum(parts["all"]), 2),
        }


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _statistics(seconds) -> dict[str, float]:
    values = np.asarray(seconds) * 1e3
    found = {"mean": values.mean(), "median": np.median(values), "p95": np.quantile(values, 0.95)}
    return {name: round(float(value), 3) for name, value in found.items()}


def decode(files: list[File]) -> list[np.ndarray]:
    return [decoded(data, name) for name, data in files]


def own_side(
    model: models.Detector, *, square: bool, decodes: bool = False, compiled: bool = False
) -> Side:
    """Ours, with the padding of the reference (`square`) or the smallest."""
    network = torch.compile(model.network, dynamic=False) if compiled else model.network

    def preprocess(images):
        model.square = square  # two sides may share a model
        batch, sizes = model.prepare(images)
        return model.fill_padding(batch, sizes), images

    def forward(value):
        filled, images = value
        return network(filled), filled, images

    def postprocess(value):
        outputs, filled, images = value
        found = model.restore(model.detections(outputs, filled), images)
        return [image["boxes"] for image in found]

    parts = {"decode": decode} if decodes else {}
    parts |= {"preprocess": preprocess, "forward": forward, "postprocess": postprocess}
    return Side(parts, model.pixel_mean.dtype, model.pixel_mean.device)


def asked_form(model: models.Detector, args: argparse.Namespace) -> tuple[str, models.Detector]:
    """(its name, the model) in the form that the flags ask for."""
    if args.fuse is None and not args.compile:
        return "optimized", models.optimize(model, half=args.half)
    name = "as trained" if args.fuse is False else "folded"
    model = copy.deepcopy(model) if args.fuse is False else models.fuse(model)
    if args.half:
        model = model.to(half_dtype(model.pixel_mean.device))
    model = model.to(memory_format=torch.channels_last)  # as images are, and as it is trained
    return f"{name}, compiled" if args.compile else name, model


def peer_sides(model: models.Detector, version: str) -> dict[str, Side]:
    """The reference and all forms of ours, which get decoded images."""
    if not is_square(model.sides):
        raise UserError(f"--peer takes square images; {version} needs --img_size for that")
    exact, half = models.optimize(model), models.optimize(model, half=True)
    parts = inference_peer.parts(model, version)
    sides = {
        "reference": Side(parts, torch.float32, model.pixel_mean.device),
        "plain": own_side(model, square=True),
        "optimized, same padding": own_side(exact, square=True),
        "optimized, least padding": own_side(exact, square=False),
    }
    if half.pixel_mean.dtype != exact.pixel_mean.dtype:
        sides["half, same padding"] = own_side(half, square=True)
        sides["half, least padding"] = own_side(half, square=False)
    return sides


def sides_of(model: models.Detector, version: str, args: argparse.Namespace) -> dict[str, Side]:
    """What is timed of a model, by name; the first is what the others are compared with."""
    if args.peer:
        return peer_sides(model, version)
    name, model = asked_form(model, args)
    return {name: own_side(model, square=model.square, decodes=True, compiled=args.compile)}


def detectors(args: argparse.Namespace) -> list[tuple[str, models.Detector]]:
    """(version, model) of the checkpoint and of each named version; a "*" marks random weights."""
    limits = {"conf": args.conf, "nms": args.nms}
    found = []
    if args.weight:
        opened = models.read(args.weight)
        model = opened.build(**cli.sides_of(args), **limits)
        found.append((opened.recipe["version"], model))
    for name in args.version or (() if args.weight else DEFAULT):
        recipe = recipe_of(name, args.backbone)
        recipe = recipes.with_sides(recipe, *models.asked_size(recipe, **cli.sides_of(args)))
        torch.manual_seed(0)
        model = models.build_model(replace(recipe, **limits), COCO_CLASSES)
        found.append((f"{recipe.version}*", model.eval()))
    return found


def pictures(args: argparse.Namespace) -> list[list[File]]:
    """Batches of the given images' files, repeated until each batch is full."""
    if args.source:
        files = [(path, _bytes_of(path)) for path in args.source]
    else:
        noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
        noise = cv2.resize(noise, NOISE_HW[::-1], interpolation=cv2.INTER_CUBIC)
        files = [("noise.jpg", cv2.imencode(".jpg", noise)[1].tobytes())]
    size = args.batch_size
    files = files * size  # cut into as many batches as there are images, none of them short
    return [files[start : start + size] for start in range(0, len(files), size)]


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--source {path}: cannot be read ({error.strerror})") from None


def timed(sides: dict[str, Side], batches: list, args: argparse.Namespace):
    """Every side sees every batch as often as the others."""
    for side in sides.values():
        # What is laid out, or compiled, for a size of image is so before the clock runs.
        for turn in range(max(args.warmup, min(len(batches), args.num))):
            side.run(batches[turn % len(batches)], timed=False)
    for taken, name in enumerate(in_turn(sides, args.num)):
        turn = taken // len(sides)
        sides[name].run(batches[turn % len(batches)], timed=True)


def run(args: argparse.Namespace):
    if args.peer and (args.half or args.compile or args.fuse is not None):
        raise UserError(
            "--peer times several forms of a model; leave out --half, --compile, --fuse, --no_fuse"
        )
    if args.backbone and not args.version:
        raise UserError("--backbone goes under the models of -v; name one, as in -v yolox-nano")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = cli.pick_device(args)
    batches, found = pictures(args), detectors(args)
    if args.peer:
        batches = [decode(files) for files in batches]
    results = []
    for version, model in found:
        name = version.removesuffix("*")
        sides = sides_of(model.to(device), name, args)
        if args.compile:
            say(f"{name}: compiled in {_compile_seconds(sides, batches):.0f} s")
        timed(sides, batches, args)
        results += [
            {"model": version, "form": form, **side.numbers(args.batch_size)}
            for form, side in sides.items()
        ]
    for line in table(results):
        say(line)
    say(f"ms: medians of {args.num} batches of {args.batch_size}, and mean and p95 of all parts")
    if any(result["model"].endswith("*") for result in results):
        say("* random weights: nothing is found, so postprocessing is at its least")
    if args.out:
        _write(args, device, results)


def _compile_seconds(sides: dict[str, Side], batches: list) -> float:
    """Seconds of the first batch through a network that is compiled then."""
    start = time.perf_counter()
    try:
        for side in sides.values():
            side.run(batches[0], timed=False)
    except RuntimeError as error:  # of the compiler, in any of its stages
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--compile: torch.compile fails here ({reason}); leave it out") from error
    return time.perf_counter() - start


def table(results: list[dict]) -> list[str]:
    """A line for each result, in columns; ratios are to the first form of the same model."""
    rows = [[*"model form dtype input".split(), *PARTS, *"all mean p95 fps images/s".split()]]
    several = len({result["form"] for result in results}) > 1
    rows[0] += [*(("ratio",) if several else ()), "found"]
    base = {}
    for result in results:
        whole = result["all"]["median"]
        ratio = base.setdefault(result["model"], whole) / whole
        size = "x".join(map(str, result["input_hw"]))
        rows.append([result["model"], result["form"], result["dtype"], size])
        rows[-1] += [f"{result[part]['median']:.2f}" if part in result else "-" for part in PARTS]
        rows[-1] += [f"{result['all'][name]:.2f}" for name in ("median", "mean", "p95")]
        rows[-1] += [f"{result['fps']:.1f}", f"{result['images_per_second']:.1f}"]
        rows[-1] += [*((f"{ratio:.2f}",) if several else ()), str(result["detections"])]
    return aligned(rows, texts=3)


def _write(args: argparse.Namespace, device: torch.device, results: list[dict]):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    content = {
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": cli.package_versions(),
        "batch_size": args.batch_size,
        "batches": args.num,
        "conf": args.conf,
        "nms": args.nms,
        "random_weights": [result["model"] for result in results if result["model"].endswith("*")],
        "peak_memory_mb": peak_memory_mb(device),
        "results": results,
    }
    try:
        Path(args.out).write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be written ({error.strerror})") from None
    say(f"numbers: {args.out}")
