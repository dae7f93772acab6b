"""Time what YOLOF's matching and losses add to a step, and match many objects at once.

python benchmark.py matching -v yolof-r50-c5 --batch_size 2 --size 512 640 --boxes 8

A step here is forward and backward without an optimizer, in turn with the sum of the network's
outputs in place of matching and losses. The second part matches `--many` objects against 100,000
anchors of one image, by each matcher.
"""

import argparse
import mmap
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import engine
import models
import recipes
from benchmarks.turns import alternate
from models.anchors import square_anchors
from models.matchers import Rules
from models.yolof import MATCHERS
from utils import cli
from utils.errors import UserError
from utils.log import say

GRID, SIZES = (100, 200, 16), (16, 32, 64, 128, 256)  # 100,000 anchors
LOOKS = 0.001  # seconds between two looks at the memory
RULES = Rules(topk=4, pos_thresh=0.15, ignore_thresh=0.7, ignore_on="predictions")


def add_flags(parser: cli.Parser):
    parser.add_argument("-v", "--version", default="yolof-r50-c5", help="model (yolof-r50-c5)")
    parser.add_argument(
        "--size", type=cli.side, nargs=2, default=[512, 640], metavar="PX", help="height and width"
    )
    parser.add_argument(
        "-bs", "--batch_size", type=cli.whole(1), default=2, metavar="N", help="images (2)"
    )
    parser.add_argument(
        "--boxes", type=cli.whole(0), default=8, metavar="N", help="boxes an image (8)"
    )
    parser.add_argument(
        "--rounds", type=cli.whole(1), default=9, metavar="N", help="timed steps (9)"
    )
    parser.add_argument(
        "--many", type=cli.whole(0), default=1000, metavar="N", help="objects at once (1000)"
    )
    cli.add_device_flags(parser)


def random_targets(count: int, size_hw: list[int], boxes: int) -> dict[str, torch.Tensor]:
    """Boxes with sides of 10 to 60 % of the image's."""
    rng = torch.Generator().manual_seed(1)
    sides = torch.tensor([size_hw[1], size_hw[0]], dtype=torch.float32)
    extents = (0.1 + 0.5 * torch.rand(count, boxes, 2, generator=rng)) * sides
    low = torch.rand(count, boxes, 2, generator=rng) * (sides - extents)
    return {
        "boxes": torch.cat((low, low + extents), dim=2),
        "labels": torch.randint(0, 80, (count, boxes), generator=rng),
        "valid": torch.ones(count, boxes, dtype=torch.bool),
        "size": torch.tensor(size_hw).expand(count, 2),
    }


def steps_of(recipe, device: torch.device, dtype: torch.dtype | None) -> dict[str, Callable]:
    """Forward and backward of one network: with a sum for a loss, and with the detector's own."""
    torch.manual_seed(0)
    model = models.build_model(recipe, [str(index) for index in range(80)])
    model = model.to(device, memory_format=torch.channels_last).train()

    def plain(images, targets):
        filled = model.fill_padding(images, targets["size"])
        return sum(output.sum() for output in model.outputs(filled))

    def own(images, targets):
        return model(images, targets)[0]["loss"]

    def step(loss) -> Callable:
        def run(images, targets):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                total = loss(images, targets)
            total.backward()
            model.zero_grad(set_to_none=True)
            return total.item()

        return run

    return {"network": step(plain), "network, matching, losses": step(own)}


def compare(args: argparse.Namespace, recipe, device: torch.device):
    """Prints what matching and losses add, in each number format."""
    rng = torch.Generator().manual_seed(0)
    shape = (args.batch_size, 3, *args.size)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last).to(device)
    targets = random_targets(args.batch_size, args.size, args.boxes)
    targets = {name: value.to(device) for name, value in targets.items()}
    height, width = args.size
    for dtype in dict.fromkeys((None, engine.amp_dtype(device, None))):
        seconds = alternate(steps_of(recipe, device, dtype), (images, targets), args.rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        base, name = medians["network"], str(dtype or torch.float32).removeprefix("torch.")
        say(
            f"{args.version} at {height} x {width}, batch {args.batch_size}, {args.boxes} boxes an "
            f"image, {name}, forward and backward, median of {args.rounds}:"
        )
        for part, median in medians.items():
            say(f"  {part:26s} {median * 1e3:8.1f} ms  {median / base - 1:+.1%}")


def many_inputs(count: int, device: torch.device) -> list[torch.Tensor]:
    """(pred, anchors, gt, valid) of one image with very many objects."""
    rows, columns, stride = GRID
    targets = random_targets(1, [rows * stride // 4, columns * stride // 4], count)
    anchors = square_anchors(GRID, torch.tensor(SIZES), 0.0)
    pred = (anchors + torch.randn(anchors.shape, generator=torch.Generator().manual_seed(2)))[None]
    return [value.to(device) for value in (pred, anchors, targets["boxes"], targets["valid"])]


def match_many(name: str, count: int, device: torch.device) -> tuple[float, int]:
    """(seconds, most bytes above its inputs) of a matcher's first call in this process."""
    inputs, cuda = many_inputs(count, device), device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else resident()
    highest, done = [held], threading.Event()

    def watch():
        while not done.wait(LOOKS):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    MATCHERS[name](*inputs, RULES)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return seconds, (torch.cuda.max_memory_allocated() if cuda else highest[0]) - held


def resident() -> int:
    """Bytes of this process that are in memory (Linux); its highest value so far would be that of
    the process which started it."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * mmap.PAGESIZE


def compare_many(count: int, device: torch.device):
    """Prints time and memory of each matcher, each in a process of its own."""
    say(f"{count} objects against 100000 anchors in one image, float32:")
    for name in MATCHERS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            seconds, memory = process.submit(match_many, name, count, device).result()
        say(f"  {name:10s} {seconds:6.2f} s, at most {memory / 1e6:4.0f} MB above its inputs")


def run(args: argparse.Namespace):
    device = cli.pick_device(args)
    if args.version not in recipes.RECIPES:
        raise UserError(cli.unknown("model", args.version, recipes.RECIPES))
    compare(args, recipes.RECIPES[args.version], device)
    if args.many and (device.type == "cuda" or sys.platform == "linux"):
        compare_many(args.many, device)
