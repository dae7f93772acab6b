"""Backbones by name: how each is built, and which options of a detector's recipe it takes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from models import (
    c2f,
    cspdarknet,
    mobilenet,
    mobilenet_names,
    repvgg,
    resnet,
    rexnet,
    shufflenetv2,
    swin,
    yolov5_backbone,
)
from models.attention import COORD, Attended
from models.cspdarknet53 import cspdarknet53
from models.darknet53 import darknet53
from utils.errors import UserError

State = dict[str, Tensor]


class Backbone(NamedTuple):
    """A row of the table. `build` takes the options that `takes` names as keywords; `act` only with
    one of the values `acts`, as most networks have an activation of their own."""

    build: Callable[..., nn.Module]
    takes: tuple[str, ...] = ()
    acts: tuple[str, ...] = ()
    attends: bool = False  # whether it has coordinate attention without being asked
    # Its weights under our names, without a classifier's, out of those that others publish under
    # theirs; None of a file that holds no weights of this network, in whatever size.
    renamed: Callable[[State], State | None] = lambda state: None


LEARNT_ACTS = ("acon", "meta_acon")
ANY_ACT = ("silu", "relu", "lrelu", *LEARNT_ACTS)
RESNET_OPTIONS = ("layout", "dc5", "dilate_first", "frozen")
C2F_OPTIONS = ("dcn", "p2")
_shuffled = partial(Backbone, takes=("frozen",), acts=LEARNT_ACTS, renamed=shufflenetv2.renamed)
_mobile = partial(Backbone, takes=("frozen", "attention"), renamed=mobilenet_names.renamed_v3)
_rex = partial(Backbone, takes=("frozen",), acts=ANY_ACT, renamed=rexnet.renamed)
_rep = partial(Backbone, takes=("frozen",), renamed=repvgg.renamed)
_v5 = partial(Backbone, takes=("frozen",), acts=ANY_ACT, renamed=yolov5_backbone.renamed)
BACKBONES = {
    "c2f-nano": Backbone(c2f.c2f_nano, C2F_OPTIONS),
    "c2f-s": Backbone(c2f.c2f_s, C2F_OPTIONS),
    "c2f-m": Backbone(c2f.c2f_m, C2F_OPTIONS),
    "c2f-l": Backbone(c2f.c2f_l, C2F_OPTIONS),
    "c2f-v8-s": Backbone(c2f.c2f_v8_s),
    "c2f-v8-l": Backbone(c2f.c2f_v8_l),
    "cspdarknet-nano": Backbone(cspdarknet.cspdarknet_nano, acts=ANY_ACT),
    "cspdarknet-tiny": Backbone(cspdarknet.cspdarknet_tiny, acts=ANY_ACT),
    "cspdarknet-s": Backbone(cspdarknet.cspdarknet_s, acts=ANY_ACT),
    "cspdarknet-m": Backbone(cspdarknet.cspdarknet_m, acts=ANY_ACT),
    "cspdarknet-l": Backbone(cspdarknet.cspdarknet_l, acts=ANY_ACT),
    "cspdarknet-x": Backbone(cspdarknet.cspdarknet_x, acts=ANY_ACT),
    "darknet53": Backbone(darknet53, acts=ANY_ACT),
    "cspdarknet53": Backbone(cspdarknet53, ("dc5", "frozen")),
    "resnet18": Backbone(resnet.resnet18, RESNET_OPTIONS),
    "resnet50": Backbone(resnet.resnet50, RESNET_OPTIONS, LEARNT_ACTS),
    "resnet101": Backbone(resnet.resnet101, RESNET_OPTIONS, LEARNT_ACTS),
    "resnext101-64x4d": Backbone(resnet.resnext101_64x4d, RESNET_OPTIONS, LEARNT_ACTS),
    "shufflenetv2-x0.5": _shuffled(shufflenetv2.shufflenetv2_x0_5),
    "shufflenetv2-x1.0": _shuffled(shufflenetv2.shufflenetv2_x1_0),
    "shufflenetv2-x1.5": _shuffled(shufflenetv2.shufflenetv2_x1_5),
    "shufflenetv2-x2.0": _shuffled(shufflenetv2.shufflenetv2_x2_0),
    "mobilenetv3-small": _mobile(mobilenet.mobilenetv3_small),
    "mobilenetv3-large": _mobile(mobilenet.mobilenetv3_large),
    "mobilenetv2-ca": Backbone(
        mobilenet.mobilenetv2_ca, ("frozen",), attends=True, renamed=mobilenet_names.renamed_v2
    ),
    "rexnet-1.0": _rex(rexnet.rexnet_1_0),
    "rexnet-1.3": _rex(rexnet.rexnet_1_3),
    "rexnet-1.5": _rex(rexnet.rexnet_1_5),
    "rexnet-2.0": _rex(rexnet.rexnet_2_0),
    "rexnet-3.0": _rex(rexnet.rexnet_3_0),
    "repvgg-a0": _rep(repvgg.repvgg_a0),
    "repvgg-a1": _rep(repvgg.repvgg_a1),
    "repvgg-a2": _rep(repvgg.repvgg_a2),
    "repvgg-b0": _rep(repvgg.repvgg_b0),
    "repvgg-b1": _rep(repvgg.repvgg_b1),
    "repvgg-b1g4": _rep(repvgg.repvgg_b1g4),
    "repvgg-b2": _rep(repvgg.repvgg_b2),
    "repvgg-b3": _rep(repvgg.repvgg_b3),
    "yolov5-n": _v5(yolov5_backbone.yolov5_n),
    "yolov5-s": _v5(yolov5_backbone.yolov5_s),
    "yolov5-m": _v5(yolov5_backbone.yolov5_m),
    "yolov5-l": _v5(yolov5_backbone.yolov5_l),
    "yolov5-x": _v5(yolov5_backbone.yolov5_x),
    "swin-t": Backbone(swin.swin_t, ("frozen", "maps"), renamed=swin.renamed),
    "swin-s": Backbone(swin.swin_s, ("frozen", "maps"), renamed=swin.renamed),
}
# What a detector is not told; it is told its other options.
OF_BACKBONE = {
    "yolof": frozenset((*RESNET_OPTIONS, "act", "attention")),
    "yolox": frozenset(("attention",)),
    "yoloft": frozenset(C2F_OPTIONS),
}
ONLY_OF_SOME = {  # options of a backbone that another cannot leave unheeded
    "dc5": ("dilated last stage (DC5)", "choose a model of stride 32 (-c5)"),
    "dcn": ("deformable blocks", "choose c2f-nano, -s, -m or -l"),
    "p2": ("map of stride 4 to give", "choose c2f-nano, -s, -m or -l"),
}


def build_backbone(name: str, options: Mapping, *, maps: int = 3) -> nn.Module:
    """The untrained backbone of this name, with those of a recipe's options that it takes; its user
    needs its last `maps` maps."""
    row = row_named(name)
    for option, (lacking, instead) in ONLY_OF_SOME.items():
        if options.get(option) and option not in row.takes:
            raise UserError(f"{name} has no {lacking}; leave --{option} out, or {instead}")
    options = {**options, "maps": maps}
    taken = {option: options[option] for option in row.takes if option in options}
    if options.get("act") in row.acts:
        taken["act"] = options["act"]
    backbone = row.build(**taken)
    if options.get("attention") != COORD or "attention" in row.takes:
        return backbone
    if row.attends:
        raise UserError(f"{name} has coordinate attention already; leave --attention out")
    return Attended(backbone, maps=maps)


def row_named(name: str) -> Backbone:
    if name not in BACKBONES:
        raise UserError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]
