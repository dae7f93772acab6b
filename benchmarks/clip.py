"""Time a training step on clips, in turn with the reference's loop: two passes a frame.

python benchmark.py clip -v yoloft-s --img_size 256 -bs 2 --frames 4

A step is forward, assignment, losses, backward, optimizer and moving average, on given clips. The
reference runs the network twice on each frame and drops the first result; its loop is written here
as published, around the same network, once in its memory format (channels first) and once in ours.
Its loss of the first step must be ours, or the command fails.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import engine
import models
import recipes
from benchmarks import clip_loss
from benchmarks.step import LR
from benchmarks.turns import alternate
from utils import cli
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError
from utils.log import say

CLASSES = tuple(str(index) for index in range(8))  # XS-VID has eight
SIDES = (4, 32)  # of the objects, pixels
CLOSE = 1e-4  # of each other: what two orders of summing may make of a loss


def add_flags(parser: cli.Parser):
    parser.add_argument("-v", "--version", default="yoloft-s", help="model (yoloft-s)")
    parser.add_argument("--img_size", type=cli.side, default=256, metavar="PX", help="side (256)")
    parser.add_argument(
        "-bs", "--batch_size", type=cli.whole(1), default=2, metavar="N", help="clips (2)"
    )
    parser.add_argument(
        "--frames", type=cli.whole(1), default=4, metavar="N", help="frames of a clip (4)"
    )
    parser.add_argument(
        "--boxes", type=cli.whole(0), default=12, metavar="N", help="boxes a frame (12)"
    )
    parser.add_argument(
        "--rounds", type=cli.whole(1), default=9, metavar="N", help="timed steps (9)"
    )
    cli.add_device_flags(parser)


def random_clips(count: int, frames: int, side: int, boxes: int) -> tuple[Tensor, dict]:
    """uint8 clips [B, T, 3, H, W] and targets: small boxes that move by a few pixels a frame."""
    rng = torch.Generator().manual_seed(1)
    shape = (count, frames, 3, side, side)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    least, most = SIDES
    wh = least + torch.rand(count, 1, boxes, 2, generator=rng) * (min(most, side / 2) - least)
    start = wh / 2 + torch.rand(count, 1, boxes, 2, generator=rng) * (side - wh)
    speed = torch.randn(count, 1, boxes, 2, generator=rng) * 2
    center = start + speed * torch.arange(frames).view(1, -1, 1, 1)  # [B, T, G, 2]
    gt = cxcywh_to_xyxy(torch.cat((center, wh.expand_as(center)), dim=3)).clamp(0, side)
    labels = torch.randint(0, len(CLASSES), (count, 1, boxes), generator=rng)
    begins = torch.arange(frames) == 0
    return images, {
        "boxes": gt,
        "labels": labels.expand(-1, frames, -1),
        "valid": (gt[..., 2:] - gt[..., :2]).amin(3) > 1,
        "size": torch.tensor([side, side]).expand(count, frames, 2),
        "new_video": begins.expand(count, -1),
    }


def build_trainer(recipe: recipes.Recipe, device: torch.device, amp: bool) -> engine.Trainer:
    torch.manual_seed(0)
    model = models.build_model(recipe, CLASSES)
    trainer = engine.Trainer(model, recipe, device=device, amp=amp, per_epoch=[1000])
    trainer.train()
    return trainer


def own_step(trainer: engine.Trainer) -> Callable:
    """Our training step as the engine takes it."""

    def step(images, targets):
        losses = trainer.backward(images, targets, {}, sync=True)
        trainer.update(losses["divisor"], torch.zeros((), device=trainer.device))
        return float(losses["loss"])

    return step


def reference_step(trainer: engine.Trainer, memory_format: torch.memory_format) -> Callable:
    """The reference's loop on the network, optimizer and moving average of `trainer`."""
    trainer.model.to(memory_format=memory_format)
    device = trainer.device

    def step(images, targets):
        images = images.to(device)
        targets = {name: value.to(device) for name, value in targets.items()}
        with torch.autocast(device.type, trainer.dtype, enabled=trainer.dtype is not None):
            loss = clip_loss.reference(trainer.model, images, targets, memory_format)
        loss.backward()
        one = torch.ones((), device=device)
        trainer.update(one, 0 * one)
        return float(loss.detach())

    return step


def counted(trainer: engine.Trainer) -> int:
    """How often batch norm has seen a batch."""
    return trainer.model.backbone.stem.bn.num_batches_tracked.item()


def compare(recipe: recipes.Recipe, device: torch.device, amp: bool, clips, rounds: int):
    """Prints the times of a number format's loops, and how often a frame goes through."""
    first, last = torch.contiguous_format, torch.channels_last
    sides = {"reference's loop": first, "the same, channels last": last, "ours": None}
    steps, losses, rises = {}, {}, {}
    for name, memory_format in sides.items():
        trainer = build_trainer(recipe, device, amp)
        step = reference_step(trainer, memory_format) if memory_format else own_step(trainer)
        losses[name], steps[name] = step(*clips), step
        rises[name] = counted(trainer) / clips[0].shape[1]
    worst = max(abs(loss / losses["ours"] - 1) for loss in losses.values())
    if not amp and worst > CLOSE:
        raise UserError(f"the loops do not compute the same loss: {losses}")
    seconds = alternate(steps, clips, rounds)
    base = statistics.median(seconds["reference's loop"])
    for name, values in seconds.items():
        median = statistics.median(values)
        say(
            f"  {name:24s} {median * 1e3:8.1f} ms {base / median:6.2f}x, first loss "
            f"{losses[name]:.6g}, num_batches_tracked +{rises[name]:g} a frame"
        )


def run(args: argparse.Namespace):
    device = cli.pick_device(args)
    known = [name for name, recipe in recipes.RECIPES.items() if recipe.detector == "yoloft"]
    if args.version not in known:
        raise UserError(cli.unknown("model that learns from clips", args.version, known))
    recipe = recipes.with_sides(recipes.RECIPES[args.version], args.img_size)
    recipe = replace(recipe, batch_size=args.batch_size, lr=LR, base_batch=args.batch_size)
    clips = random_clips(args.batch_size, args.frames, args.img_size, args.boxes)
    for dtype in dict.fromkeys((None, engine.amp_dtype(device, None))):
        say(
            f"{args.version} at {args.img_size}, {args.batch_size} clips of {args.frames} frames, "
            f"{args.boxes} boxes a frame, {str(dtype or torch.float32).removeprefix('torch.')}, "
            f"median of {args.rounds}:"
        )
        compare(recipe, device, dtype is not None, clips, args.rounds)
