"""Time one training step, alone or in turn with the reference's in the same process.

python benchmark.py step -v yolox-nano --img_size 416 --batch_size 8 --boxes 12 80
PYTHONPATH=FOLDER_OF_YOLOX python benchmark.py step --peer --boxes 12 80

A step is forward, assignment, losses, backward, optimizer and moving average, on given images.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

import engine
import models
import recipes
from benchmarks.turns import alternate, missing_peer
from utils import cli
from utils.boxes import cxcywh_to_xyxy
from utils.classes import COCO_CLASSES
from utils.errors import UserError
from utils.log import say

LR = 1e-5  # small, so that no side leaves the range of ordinary numbers


def add_flags(parser: cli.Parser):
    parser.add_argument("-v", "--version", default="yolox-nano", help="model (yolox-nano)")
    parser.add_argument("--img_size", type=cli.side, default=416, metavar="PX", help="side (416)")
    parser.add_argument(
        "-bs", "--batch_size", type=cli.whole(1), default=8, metavar="N", help="images (8)"
    )
    parser.add_argument(
        "--boxes",
        type=cli.whole(0),
        nargs="+",
        default=[12],
        metavar="N",
        help="boxes an image (12)",
    )
    parser.add_argument(
        "--rounds", type=cli.whole(1), default=15, metavar="N", help="timed steps (15)"
    )
    parser.add_argument(
        "--peer", action="store_true", help="in turn with the package yolox, found by PYTHONPATH"
    )
    cli.add_device_flags(parser)


def random_batch(count: int, side: int, boxes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images [B, 3, H, W] and rows [B, G, 5] (class, cx, cy, w, h), sides of 7 to 180 px."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, side, side), generator=rng, dtype=torch.uint8)
    sizes = torch.exp(torch.rand(count, boxes, 2, generator=rng) * 3.2 + 2).clamp(max=side * 0.6)
    centres = sizes / 2 + torch.rand(count, boxes, 2, generator=rng) * (side - sizes)
    labels = torch.randint(0, len(COCO_CLASSES), (count, boxes, 1), generator=rng).float()
    return images, torch.cat((labels, centres, sizes), dim=2)


def own_step(recipe: recipes.Recipe, device: torch.device, amp: bool) -> Callable:
    """Our training step as the engine takes it."""
    torch.manual_seed(0)
    model = models.build_model(recipe, COCO_CLASSES)
    trainer = engine.Trainer(model, recipe, device=device, amp=amp, per_epoch=[1000])
    trainer.wrapped.train()

    def step(images, rows):
        targets = {
            "boxes": cxcywh_to_xyxy(rows[..., 1:]),
            "labels": rows[..., 0].long(),
            "valid": torch.ones(rows.shape[:2], dtype=torch.bool),
            "size": torch.tensor(images.shape[-2:]).expand(len(images), 2),
        }
        losses = trainer.backward(images, targets, {}, sync=True)
        trainer.update(losses["divisor"], torch.zeros((), device=device))
        return float(losses["loss"])

    return step


def peer_step(version: str, batch_size: int) -> Callable:
    """The reference's step on float32, as its trainer takes it on a machine without a GPU."""
    try:
        from yolox.exp.build import get_exp_by_name
        from yolox.utils import ModelEMA
    except ImportError as error:
        raise missing_peer("yolox 0.3.0", error) from error
    warnings.filterwarnings("ignore", message=".*(torch.cuda.amp|CUDA is not available).*")
    torch.manual_seed(0)
    reference = get_exp_by_name(version)
    model = reference.get_model().train()
    optimizer = reference.get_optimizer(batch_size)
    for group in optimizer.param_groups:
        group["lr"] = LR
    average = ModelEMA(model, 0.9998)

    def step(images, rows):
        loss = model(images.to(torch.float32), rows)["total_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)
        return float(loss.detach())

    return step


def run(args: argparse.Namespace):
    device = cli.pick_device(args)
    if args.version not in recipes.RECIPES:
        raise UserError(cli.unknown("model", args.version, recipes.RECIPES))
    recipe = recipes.with_sides(recipes.RECIPES[args.version], args.img_size)
    recipe = replace(recipe, batch_size=args.batch_size, lr=LR, base_batch=args.batch_size)
    for boxes in args.boxes:
        steps = {"peer, float32": peer_step(args.version, args.batch_size)} if args.peer else {}
        steps["ours, float32"] = own_step(recipe, device, amp=False)
        dtype = engine.amp_dtype(device, None)
        if dtype:
            steps[f"ours, {str(dtype).removeprefix('torch.')}"] = own_step(recipe, device, amp=True)
        batch = random_batch(args.batch_size, args.img_size, boxes)
        seconds = alternate(steps, batch, args.rounds)
        say(
            f"{args.version} at {args.img_size}, batch {args.batch_size}, {boxes} boxes an image, "
            f"median of {args.rounds}:"
        )
        base = statistics.median(next(iter(seconds.values())))
        for name, values in seconds.items():
            median = statistics.median(values)
            speed = args.batch_size / median
            say(f"  {name:16s} {median * 1e3:8.1f} ms {speed:7.1f} images/s {base / median:6.2f}x")
