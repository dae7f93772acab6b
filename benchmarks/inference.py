"""Time detection from decoded images to boxes, alone or in turn with the reference.

python benchmark.py inference -v yolox-s --img_size 640 --half
python benchmark.py inference --weight yolox_nano.pth --source dog.jpg --out bench.json
PYTHONPATH=FOLDER_OF_YOLOX python benchmark.py inference --peer --weight yolox_nano.pth -v yolox-s

Preprocessing is from BGR arrays to the network's input, forward is the network, postprocessing
from its outputs to boxes in the images' pixels; the device is waited for after each. Without
--source the image is noise of 480 x 640; without --weight the weights are random and find nothing.
With --peer both sides have the same weights, and the sides are taken in turn.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

import models
import recipes
from benchmarks.turns import in_turn, missing_peer
from models import yolox_names
from utils import cli
from utils.classes import COCO_CLASSES
from utils.errors import UserError
from utils.image import fit_ratio, is_square, read_image
from utils.log import say
from utils.stopwatch import peak_memory_mb

STAGES = ("preprocess", "forward", "postprocess")
DEFAULT = ("yolox-nano", "yolox-s")
NOISE_HW = (480, 640)


def add_flags(parser: cli.Parser):
    parser.add_argument("--weight", metavar="FILE", help="checkpoint, ours or public (random)")
    parser.add_argument(
        "-v",
        "--version",
        nargs="+",
        metavar="NAME",
        help=f"models with random weights ({' '.join(DEFAULT)}; none with --weight)",
    )
    cli.add_size_flags(parser)
    parser.add_argument("--source", nargs="+", metavar="FILE", help="images (one of noise)")
    parser.add_argument("--conf", type=cli.real(0, 1), default=0.25, help="least score (0.25)")
    parser.add_argument("--nms", type=cli.real(0, 1), default=0.45, help="greatest IoU (0.45)")
    parser.add_argument(
        "-bs", "--batch_size", type=cli.whole(1), default=1, metavar="N", help="images (1)"
    )
    parser.add_argument("--half", action="store_true", help="bfloat16 or float16, if there is one")
    parser.add_argument("--plain", action="store_true", help="the model as it is trained")
    parser.add_argument(
        "--threads", type=cli.whole(1), metavar="N", help="threads of the CPU (one a core)"
    )
    parser.add_argument(
        "--num", type=cli.whole(1), default=50, metavar="N", help="timed batches (50)"
    )
    parser.add_argument(
        "--warmup", type=cli.whole(1), default=5, metavar="N", help="untimed batches before (5)"
    )
    parser.add_argument(
        "--peer", action="store_true", help="in turn with the package yolox, found by PYTHONPATH"
    )
    parser.add_argument("--out", metavar="FILE", help="write all numbers as JSON")
    cli.add_device_flags(parser)


class Side:
    """One way from images to boxes, as three functions; each takes what the one before returned."""

    def __init__(self, stages: tuple[Callable, Callable, Callable], dtype: str, device):
        self.stages, self.dtype, self.device = stages, dtype, device
        self.seconds: list[list[float]] = []
        self.input_hw, self.detections = (0, 0), 0

    @torch.inference_mode()
    def run(self, images: list[np.ndarray], timed: bool):
        value, laps = images, []
        for stage in self.stages:
            start = time.perf_counter()
            value = stage(value)
            synchronize(self.device)
            laps.append(time.perf_counter() - start)
            if stage is self.stages[0]:
                self.input_hw = tuple(value[0].shape[-2:])
        self.detections = sum(len(found) for found in value)
        if timed:
            self.seconds.append(laps)

    def numbers(self, batch_size: int) -> dict:
        """Milliseconds a batch of each stage and of all, and images a second."""
        stages = dict(zip(STAGES, zip(*self.seconds, strict=True), strict=True))
        stages["all"] = [sum(laps) for laps in self.seconds]
        result = {name: _statistics(seconds) for name, seconds in stages.items()}
        ends = {"forward": slice(1, 2), "forward_postprocess": slice(1, 3), "all": slice(0, 3)}
        result["images_per_second"] = {
            name: round(batch_size / statistics.median(sum(laps[part]) for laps in self.seconds), 2)
            for name, part in ends.items()
        }
        known = {"dtype": self.dtype, "input_hw": self.input_hw, "detections": self.detections}
        return {**known, **result}


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _statistics(seconds) -> dict[str, float]:
    values = np.asarray(seconds) * 1e3
    found = {"mean": values.mean(), "median": np.median(values), "p95": np.quantile(values, 0.95)}
    return {name: round(float(value), 3) for name, value in found.items()}


def own_side(model: models.Detector, square: bool = False) -> Side:
    """Ours, with the padding of the reference (`square`) or the smallest."""

    def preprocess(images):
        model.square = square  # two sides may share a model
        batch, sizes = model.prepare(images)
        return model.fill_padding(batch, sizes), images

    def forward(value):
        filled, images = value
        return model.network(filled), filled, images

    def postprocess(value):
        outputs, filled, images = value
        found = model.restore(model.detections(outputs, filled), images)
        return [image["boxes"] for image in found]

    dtype = str(model.pixel_mean.dtype).removeprefix("torch.")
    return Side((preprocess, forward, postprocess), dtype, model.pixel_mean.device)


def peer_side(model: models.Detector, version: str) -> Side:
    """The reference's eager model with the weights of ours, its preprocessing as in its demo."""
    try:
        from yolox.data.data_augment import ValTransform
        from yolox.exp.build import get_exp_by_name
        from yolox.utils import postprocess as peer_postprocess
    except ImportError as error:
        raise missing_peer("yolox 0.3.0", error) from error
    warnings.filterwarnings("ignore", message=".*(torch.cuda.amp|CUDA is not available|meshgrid).*")
    reference = get_exp_by_name(version)
    reference.num_classes = len(model.classes)
    network = _with_weights(reference.get_model().eval(), model.state_dict())
    device = model.pixel_mean.device
    network.to(device)
    transform = ValTransform(legacy=False)

    def preprocess(images):
        arrays = [transform(image, None, model.sides)[0] for image in images]
        return torch.from_numpy(np.stack(arrays)).float().to(device), images

    def forward(value):
        batch, images = value
        return network(batch), images

    def postprocess(value):
        outputs, images = value
        limits = len(model.classes), model.conf, model.nms
        found = []
        for rows, image in zip(peer_postprocess(outputs, *limits), images, strict=True):
            rows = torch.zeros(0, 7) if rows is None else rows
            found.append(rows[:, :4] / fit_ratio(image.shape[:2], model.sides))
        return found

    return Side((preprocess, forward, postprocess), "float32", device)


def _with_weights(network: nn.Module, state: dict) -> nn.Module:
    """The reference's network with weights given under our names."""
    theirs = list(network.state_dict())
    ours = yolox_names.to_ours(dict(zip(theirs, theirs, strict=True)))  # our name -> theirs
    network.load_state_dict({name: state[own] for own, name in ours.items()})
    return network


def sides_of(model: models.Detector, version: str, args: argparse.Namespace) -> dict[str, Side]:
    """What is timed of a model, by name; the first is what the others are compared with."""
    if not args.peer:
        if not args.plain:
            model = models.optimize(model, half=args.half)
        name = "plain" if args.plain else "optimized"
        return {name: own_side(model, square=model.square)}
    if not is_square(model.sides):
        raise UserError(f"--peer takes square images; {version} needs --img_size for that")
    exact, half = models.optimize(model), models.optimize(model, half=True)
    sides = {
        "reference": peer_side(model, version),
        "plain": own_side(model, square=True),
        "optimized, same padding": own_side(exact, square=True),
        "optimized, least padding": own_side(exact),
    }
    if half.pixel_mean.dtype != exact.pixel_mean.dtype:
        sides["half, same padding"] = own_side(half, square=True)
        sides["half, least padding"] = own_side(half)
    return sides


def detectors(args: argparse.Namespace) -> list[tuple[str, models.Detector]]:
    """(version, model) of the checkpoint and of each named version; a "*" marks random weights."""
    limits = {"conf": args.conf, "nms": args.nms}
    found = []
    if args.weight:
        opened = models.read(args.weight)
        model = opened.build(**cli.sides_of(args), **limits)
        found.append((opened.recipe["version"], model))
    for name in args.version or (() if args.weight else DEFAULT):
        if name not in recipes.RECIPES:
            raise UserError(cli.unknown("model", name, recipes.RECIPES))
        recipe = recipes.RECIPES[name]
        recipe = recipes.with_sides(recipe, *models.asked_size(recipe, **cli.sides_of(args)))
        torch.manual_seed(0)
        model = models.build_model(replace(recipe, **limits), COCO_CLASSES)
        found.append((f"{name}*", model.eval()))
    return found


def pictures(args: argparse.Namespace) -> list[list[np.ndarray]]:
    """Batches of the given images, repeated until each batch is full."""
    if args.source:
        images = [read_image(path) for path in args.source]
    else:
        noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
        images = [cv2.resize(noise, NOISE_HW[::-1], interpolation=cv2.INTER_CUBIC)]
    size = args.batch_size
    images = images * size  # cut into as many batches as there are images, none of them short
    return [images[start : start + size] for start in range(0, len(images), size)]


def timed(sides: dict[str, Side], batches: list, args: argparse.Namespace):
    """Every side sees every batch as often as the others."""
    for side in sides.values():
        for turn in range(args.warmup):
            side.run(batches[turn % len(batches)], timed=False)
    for taken, name in enumerate(in_turn(sides, args.num)):
        turn = taken // len(sides)
        sides[name].run(batches[turn % len(batches)], timed=True)


def run(args: argparse.Namespace):
    if args.peer and (args.half or args.plain):
        raise UserError("--peer times all forms of a model; leave out --half and --plain")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = cli.pick_device(args)
    batches, found = pictures(args), detectors(args)
    results = []
    say(
        f"{'model':14s} {'side':25s} {'dtype':9s} {'input':>9s} {'pre':>7s} {'forward':>8s} "
        f"{'post':>6s} {'all':>8s} {'p95':>8s} {'images/s':>8s} {'ratio':>6s} {'found':>5s}"
    )
    for version, model in found:
        sides = sides_of(model.to(device), version.removesuffix("*"), args)
        timed(sides, batches, args)
        base = None
        for name, side in sides.items():
            numbers = side.numbers(args.batch_size)
            base = base or numbers["all"]["median"]
            results.append({"model": version, "side": name, **numbers})
            say(_row(results[-1], base))
    say(f"medians and p95 (of all) in ms of {args.num} batches of {args.batch_size}")
    if any(result["model"].endswith("*") for result in results):
        say("* random weights: nothing is found, so postprocessing is at its least")
    if args.out:
        _write(args, device, results)


def _row(result: dict, base: float) -> str:
    pre, forward, post, whole = (result[name]["median"] for name in (*STAGES, "all"))
    size = "x".join(map(str, result["input_hw"]))
    return (
        f"{result['model']:14s} {result['side']:25s} {result['dtype']:9s} {size:>9s} {pre:7.2f} "
        f"{forward:8.2f} {post:6.2f} {whole:8.2f} {result['all']['p95']:8.2f} "
        f"{result['images_per_second']['all']:8.1f} {base / whole:6.2f} {result['detections']:5d}"
    )


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
