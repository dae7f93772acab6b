"""Count a model's parameters and operations by part, without computing anything.

python benchmark.py flops -v yolox-nano yolox-s
python benchmark.py flops -v yolox-s --img_size 416 640

Convolutions and matrix products are counted, as torch.utils.flop_counter does, of the network
without decoding and NMS. 1 GMAC is 2 GFLOPs: many tables print MACs and call them FLOPs.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

import models
import recipes
from utils import cli
from utils.classes import COCO_CLASSES
from utils.errors import UserError
from utils.image import padded_hw
from utils.log import say


def add_flags(parser: cli.Parser):
    parser.add_argument(
        "-v",
        "--version",
        nargs="+",
        default=list(recipes.RECIPES),
        metavar="NAME",
        help="models (all)",
    )
    parser.add_argument(
        "--img_size",
        type=cli.side,
        nargs="+",
        metavar="PX",
        help="side of the input, or height and width (the model's)",
    )
    parser.add_argument(
        "--num_classes", type=cli.whole(1), default=80, metavar="N", help="classes (80)"
    )


def count(recipe, input_hw: tuple[int, int], num_classes: int) -> dict[str, tuple[int, int]]:
    """{part: (parameters, FLOPs)} of one image; "" is the whole."""
    names = (COCO_CLASSES * (num_classes // len(COCO_CLASSES) + 1))[:num_classes]
    with torch.device("meta"):
        model = models.build_model(recipe, names).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model.network(torch.empty(1, 3, *input_hw))
    flops = counter.get_flop_counts()
    # Parts are called one by one, never the model itself, so the counter names them without it.
    result = {"": (_parameters(model), counter.get_total_flops())}
    for name, part in model.named_children():
        result[name] = _parameters(part), sum(flops.get(type(part).__name__, {}).values())
    return result


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def run(args: argparse.Namespace):
    if args.img_size and len(args.img_size) > 2:
        raise UserError("--img_size takes one side, or height and width")
    head = f"{'model':18s} {'part':9s} {'input HxW':>9s} {'parameters':>12s}"
    say(f"{head} {'GMACs':>9s} {'GFLOPs':>9s}")
    for version in args.version:
        if version not in recipes.RECIPES:
            raise UserError(cli.unknown("model", version, recipes.RECIPES))
        recipe = recipes.RECIPES[version]
        sides = args.img_size or padded_hw([recipe.sides])
        size_hw = (sides[0], sides[-1])
        for part, (parameters, flops) in count(recipe, size_hw, args.num_classes).items():
            say(
                f"{version if not part else '':18s} {part or 'all':9s} "
                f"{f'{size_hw[0]}x{size_hw[1]}':>9s} {parameters:12,d} {flops / 2e9:9.3f} "
                f"{flops / 1e9:9.3f}"
            )
