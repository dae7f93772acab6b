"""Count a model's parameters and operations by part, without computing anything.

python benchmark.py flops -v yolox-nano yolox-s
python benchmark.py flops -v yolox-nano --backbone mobilenetv3-small --shape 416 416 --per_layer

Convolutions and matrix products are counted, attention's too, as torch.utils.flop_counter does, and
the operators of cuda_ops; norms, activations, decoding and NMS are not. One frame of a video model
is counted with the state of the one before. 1 GMAC is 2 GFLOPs: most tables print MACs and call
them FLOPs.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import recipes
from benchmarks.named import recipe_of
from utils import cli
from utils.classes import COCO_CLASSES
from utils.errors import UserError
from utils.log import say

SHAPE_HW = (800, 1280)  # pixels
CORNERS = 4  # pixels around a position that is read between pixels


class Count(NamedTuple):
    """Of a part or a layer."""

    name: str  # "" is the whole
    parameters: int
    flops: int

    @property
    def gmacs(self) -> float:
        return self.flops / 2e9


def add_flags(parser: cli.Parser):
    parser.add_argument(
        "-v",
        "--version",
        nargs="+",
        default=list(recipes.RECIPES),
        metavar="NAME",
        help="models (all)",
    )
    parser.add_argument("--backbone", metavar="NAME", help="another backbone under the same head")
    parser.add_argument(
        "--shape",
        type=cli.side,
        nargs="+",
        default=list(SHAPE_HW),
        metavar="PX",
        help="height and width of the input, or one side ({} {})".format(*SHAPE_HW),
    )
    parser.add_argument(
        "--num_classes", type=cli.whole(1), default=80, metavar="N", help="classes (80)"
    )
    parser.add_argument(
        "--fuse", action="store_true", help="of the network for inference: batch norms folded"
    )
    parser.add_argument("--per_layer", action="store_true", help="a line for each layer too")
    parser.add_argument("--out", metavar="FILE", help="write the numbers of the parts as JSON")


class Network(nn.Module):
    """What a detector computes of an image, as a module: the counter names parts by its modules."""

    def __init__(self, model: models.Detector):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor):
        state = self.model.example_state(len(images), images.shape[2:])
        return self.model.network(images, *state)


def counts(network: nn.Module, input_hw: tuple[int, int]) -> dict[str, int]:
    """{name of a module: FLOPs} of one image through a network that lies on the meta device, for
    all of its modules that compute; "" is the whole."""
    operators = {
        torch.ops.cuda_ops.dcnv3: _dcnv3_flops,
        torch.ops.cuda_ops.corr_lookup: _corr_lookup_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=operators)
    with torch.device("meta"), counter, torch.no_grad():
        network(torch.empty(1, 3, *input_hw))
    root = type(network).__name__
    found = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    inside = {
        name.removeprefix(f"{root}."): flops
        for name, flops in found.items()
        if name.startswith(f"{root}.")
    }
    return {**inside, "": counter.get_total_flops()}


def _dcnv3_flops(input, offset, mask, kernel, stride, pad, dilation, group, *rest, out_shape):
    """Each output is a sum over the taps of its group, each tap mixed of four pixels."""
    batch, height, width, channels = out_shape
    taps = mask[3] // group
    return 2 * batch * height * width * channels * taps * (1 + CORNERS)


def _corr_lookup_flops(fmap1, fmap2, coords, *rest, out_shape):
    """Each output is a product of two pixels' channels, read between four pixels."""
    return 2 * torch.Size(out_shape).numel() * (fmap1[1] + CORNERS)


def build(recipe: recipes.Recipe, num_classes: int) -> models.Detector:
    """The model on the meta device, in eval mode."""
    names = (COCO_CLASSES * (num_classes // len(COCO_CLASSES) + 1))[:num_classes]
    with torch.device("meta"):
        return models.build_model(recipe, names).eval()


def parts(model: models.Detector, input_hw: tuple[int, int]) -> list[Count]:
    """The whole, then backbone, neck, head, ..., whose numbers add up to it."""
    flops = counts(Network(model), input_hw)
    found = [Count("", _parameters(model), flops[""])]
    for name, part in model.named_children():
        found.append(Count(name, _parameters(part), flops.get(f"model.{name}", 0)))
    return found


def layers(model: models.Detector, input_hw: tuple[int, int]) -> Iterator[Count]:
    """Every module that has parameters or computes by itself, not through others inside it."""
    flops = counts(Network(model), input_hw)

    def total(name: str, module: nn.Module) -> int:
        # A list of modules is never called itself.
        return flops.get(f"model.{name}") or inside(name, module)

    def inside(name: str, module: nn.Module) -> int:
        children = module.named_children()
        return sum(total(f"{name}.{child}", each) for child, each in children)

    for name, module in model.named_modules():
        parameters = sum(each.numel() for each in module.parameters(recurse=False))
        own = total(name, module) - inside(name, module) if name else 0
        if parameters or own:
            yield Count(name, parameters, own)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def run(args: argparse.Namespace):
    if len(args.shape) > 2:
        raise UserError("--shape takes height and width, or one side")
    size_hw = (args.shape[0], args.shape[-1])
    found = {}
    for version in args.version:
        recipe = recipe_of(version, args.backbone)
        model = build(recipe, args.num_classes)
        found[recipe.version] = models.fuse(model) if args.fuse else model
    width = max(map(len, found))
    say(f"one image of {size_hw[0]} x {size_hw[1]} (height x width), {args.num_classes} classes")
    say(f"{'model':{width}s} {'part':10s} {'parameters':>12s} {'GMACs':>10s} {'GFLOPs':>10s}")
    results = []
    for version, model in found.items():
        for part in parts(model, size_hw):
            say(f"{'' if part.name else version:{width}s} {part.name or 'all':10s} {_row(part)}")
            results.append({"model": version, **part._asdict(), "macs": part.flops // 2})
        if args.per_layer:
            listed = list(layers(model, size_hw))
            wide = max(len(layer.name) for layer in listed)
            for layer in listed:
                say(f"  {layer.name:{wide}s} {_row(layer)}")
    if args.out:
        _write(Path(args.out), {"input_hw": size_hw, "results": results})


def _row(count: Count) -> str:
    return f"{count.parameters:12,d} {count.gmacs:10.4f} {2 * count.gmacs:10.4f}"


def _write(path: Path, content: dict):
    try:
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None
    say(f"numbers: {path}")
