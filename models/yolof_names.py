"""YOLOF checkpoints of four sources: their names in ours, which model they hold, read from the
shapes, and the rules that their weights were trained by, told by the source."""

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor

from models.names import TORCHVISION, Names, pairs, renamed, rules
from models.resnet import LAYOUTS
from models.yolof import LOGIT_CLAMP
from utils.errors import UserError

KNOWN = "YOLOF (official, MMDetection, PyTorch_YOLOF)"

OFFICIAL_RESNET: Names = (
    ("stem", "stem.conv1", "stem.conv1.norm"),
    *(
        (f"layer{n}.#.conv#", f"res{n + 1}.#.conv#", f"res{n + 1}.#.conv#.norm")
        for n in range(1, 5)
    ),
    *(
        (f"layer{n}.#.downsample", f"res{n + 1}.#.shortcut", f"res{n + 1}.#.shortcut.norm")
        for n in range(1, 5)
    ),
)

OFFICIAL_DARKNET: Names = (
    ("stem", "conv1", "bn1"),
    ("stage#.base", "layer#.base_layer.0", "layer#.base_layer.1"),
    ("stage#.side", "layer#.partial_transition1.0", "layer#.partial_transition1.1"),
    ("stage#.down", "layer#.stage_layers.0.downsample.0", "layer#.stage_layers.0.downsample.1"),
    ("stage#.blocks.#.conv1", "layer#.stage_layers.#.conv1", "layer#.stage_layers.#.bn1"),
    ("stage#.blocks.#.conv2", "layer#.stage_layers.#.conv2", "layer#.stage_layers.#.bn2"),
    ("stage#.post", "layer#.partial_transition2.0", "layer#.partial_transition2.1"),
    ("stage#.fuse", "layer#.fuse_transition.0", "layer#.fuse_transition.1"),
)

_BLOCK = "dilated_encoder_blocks.#.conv#"
OFFICIAL: Names = (
    ("neck.lateral", "encoder.lateral_conv", "encoder.lateral_norm"),
    ("neck.fpn", "encoder.fpn_conv", "encoder.fpn_norm"),
    ("neck.blocks.#.conv#", f"encoder.{_BLOCK}.0", f"encoder.{_BLOCK}.1"),
    *(
        (f"head.{ours}_convs.{i}", f"decoder.{theirs}.{3 * i}", f"decoder.{theirs}.{3 * i + 1}")
        for ours, theirs, convs in (("cls", "cls_subnet", 2), ("reg", "bbox_subnet", 4))
        for i in range(convs)
    ),
    ("head.cls_pred", "decoder.cls_score"),
    ("head.reg_pred", "decoder.bbox_pred"),
    ("head.obj_pred", "decoder.object_pred"),
)

MMDETECTION: Names = (
    ("neck.lateral", "neck.lateral_conv", "neck.lateral_norm"),
    ("neck.fpn", "neck.fpn_conv", "neck.fpn_norm"),
    ("neck.blocks.#.conv#", f"neck.{_BLOCK}.conv", f"neck.{_BLOCK}.bn"),
    ("head.cls_convs.#", "bbox_head.cls_subnet.#.conv", "bbox_head.cls_subnet.#.bn"),
    ("head.reg_convs.#", "bbox_head.bbox_subnet.#.conv", "bbox_head.bbox_subnet.#.bn"),
    ("head.cls_pred", "bbox_head.cls_score"),
    ("head.reg_pred", "bbox_head.bbox_pred"),
    ("head.obj_pred", "bbox_head.object_pred"),
)

_BRANCH = "neck.encoders.#.branch"
TEACHING_NECK: Names = (
    ("neck.lateral", "neck.projector.0.convs.0", "neck.projector.0.convs.1"),
    ("neck.fpn", "neck.projector.1.convs.0", "neck.projector.1.convs.1"),
    *(
        (f"neck.blocks.#.conv{k + 1}", f"{_BRANCH}.{k}.convs.0", f"{_BRANCH}.{k}.convs.1")
        for k in range(3)
    ),
)
SEED: Names = (
    *TEACHING_NECK,
    ("head.cls_convs.#", "cls_feat.#.convs.0", "cls_feat.#.convs.1"),
    ("head.reg_convs.#", "reg_feat.#.convs.0", "reg_feat.#.convs.1"),
    *((f"head.{part}_pred", f"{part}_pred") for part in ("cls", "reg", "obj")),
)
LATER: Names = (
    *TEACHING_NECK,
    ("head.cls_convs.#", "head.head.cls_feats.#.convs.0", "head.head.cls_feats.#.convs.1"),
    ("head.reg_convs.#", "head.head.reg_feats.#.convs.0", "head.head.reg_feats.#.convs.1"),
    *((f"head.{part}_pred", f"head.{part}_pred") for part in ("cls", "reg", "obj")),
)
NOT_WEIGHTS = ("pixel_", "anchor_generator.", "data_preprocessor.")  # tables of constants

RULES = {  # official; what depends on the stride is added to it
    "layout": "caffe",
    "act": "own",
    "attention": "none",
    "dilate_first": True,
    "frozen": True,
    "matcher": "uniform",
    "ignore_thresh": 0.7,
    "ignore_on": "predictions",
    "image_mask": True,
    "decode_method": 2,
    "ctr_clamp": 32.0,
    "loss_norm": "batch",
    "anchor_offset": 0.0,
    "logit_clamp": LOGIT_CLAMP,
    "best_class": False,
}
LATER_RULES = {"layout": "torchvision", "dilate_first": False, "anchor_offset": 0.5}
SEED_RULES = {
    **LATER_RULES,
    "matcher": "l1_topk",
    "ignore_on": "anchors",
    "topk": 4,
    "pos_thresh": 0.15,
    "ctr_clamp": 0.0,
    "logit_clamp": math.log(1e4),
    "best_class": True,
}


class Source(NamedTuple):
    """Who wrote a checkpoint, told by names that only theirs have together."""

    signs: tuple[str, ...]
    names: Names  # of neck and head
    body: Names
    prefix: str  # of the backbone's names
    rules: dict  # where they differ from RULES


SOURCES = (
    Source(
        ("decoder.object_pred.weight", "backbone.stem.conv1.weight"),
        OFFICIAL,
        OFFICIAL_RESNET,
        "backbone.",
        {},
    ),
    Source(
        ("decoder.object_pred.weight", "backbone.layer1.base_layer.0.weight"),
        OFFICIAL,
        OFFICIAL_DARKNET,
        "backbone.",
        {},
    ),
    Source(("bbox_head.object_pred.weight",), MMDETECTION, TORCHVISION, "backbone.", {}),
    Source(
        ("obj_pred.weight", "cls_feat.0.convs.0.weight"),
        SEED,
        TORCHVISION,
        "backbone.body.",
        SEED_RULES,
    ),
    Source(
        ("head.obj_pred.weight", "head.head.cls_feats.0.convs.0.weight"),
        LATER,
        TORCHVISION,
        "backbone.body.",
        LATER_RULES,
    ),
)

# (blocks of layer3, inputs of the first 3 x 3, three convolutions a block) -> name, in versions.
RESNETS = {
    (2, 64, False): ("resnet18", "r18"),
    (6, 64, True): ("resnet50", "r50"),
    (23, 64, True): ("resnet101", "r101"),
    (23, 4, True): ("resnext101-64x4d", "x101"),
}
ANCHORS = {5: (32, 64, 128, 256, 512), 6: (16, 32, 64, 128, 256, 512)}  # C5 and DC5


def convert(state: dict[str, Tensor], meta: dict) -> tuple[dict[str, Tensor], dict] | None:
    """(state under our names, recipe) of a YOLOF; None for other models.

    `meta` is what MMDetection writes beside the weights; the text of its config tells the layout.
    """
    source = next((s for s in SOURCES if all(sign in state for sign in s.signs)), None)
    if source is None:
        _refuse_ours(state)
        return None
    table = [*pairs(source.names), *pairs(source.body, "backbone.", source.prefix)]
    to_ours = rules((theirs, ours) for ours, theirs in table)
    weights = {
        renamed(name, to_ours): value
        for name, value in state.items()
        if not name.startswith(NOT_WEIGHTS)
    }
    _check_parts(weights)
    weights |= _absent(weights)
    backbone, short = _backbone(weights)
    std = _pixel_std(state)
    if backbone == "resnext101-64x4d" and source.names is OFFICIAL:
        stem = "backbone.stem.conv.weight"
        weights[stem] = _for_torchvision_pixels(weights[stem], std)
    elif std != (1.0, 1.0, 1.0):
        raise UserError(f"this YOLOF divides pixels by {std}; the published {backbone} does not")
    options = _options(weights, backbone, source, meta)
    square = backbone == "cspdarknet53"  # published with its results at 608 x 608
    return weights, {
        "version": f"yolof-{short}-{'dc5' if options['dc5'] else 'c5'}",
        "detector": "yolof",
        "backbone": backbone,
        "img_size": 608 if square else 800,
        "max_size": 0 if square else 1333,
        "conf": 0.05,
        "nms": 0.6,
        "max_dets": 100,
        "model": options,
    }


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an official YOLOF under the names they came with, without the constants."""
    darknet = "backbone.stage1.base.conv.weight" in state
    body = OFFICIAL_DARKNET if darknet else OFFICIAL_RESNET
    to_theirs = rules([*pairs(OFFICIAL), *pairs(body, "backbone.", "backbone.")])
    counted = ("neck.", "head.", "backbone.") if darknet else ("neck.", "head.")
    return {
        renamed(name, to_theirs): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked") or name.startswith(counted)
    }


def count_classes(state: dict[str, Tensor]) -> int:
    return len(state["head.cls_pred.weight"]) // len(state["head.obj_pred.weight"])


def _refuse_ours(state: dict[str, Tensor]):
    if "neck.lateral.conv.weight" in state and "head.obj_pred.weight" in state:
        raise UserError(
            "these weights of YOLOF do not tell the rules they were trained by; "
            "name the checkpoint that training wrote, with its recipe"
        )


def _check_parts(weights: dict[str, Tensor]):
    """Raises for damaged files, and for what the seed's --norm GN trained."""
    for name in ("neck.lateral.bn.weight", "head.cls_pred.weight", "head.obj_pred.weight"):
        if name not in weights:
            raise UserError(f"this YOLOF has no {name} (our name for it): a damaged checkpoint?")
    if "neck.lateral.bn.running_mean" not in weights:
        raise UserError("this YOLOF was trained with group norm; only batch norm is known here")


def _absent(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for what only some sources have: biases before norms, and the norms' counters."""
    zeros = {}
    for name, value in weights.items():
        if name.endswith(".bn.weight"):
            counter = f"{name.removesuffix('weight')}num_batches_tracked"
            zeros[counter] = value.new_zeros((), dtype=torch.long)
        elif name.endswith(".conv.weight") and not name.startswith("backbone."):
            zeros[f"{name.removesuffix('weight')}bias"] = value.new_zeros(len(value))
    return {name: value for name, value in zeros.items() if name not in weights}


def _backbone(weights: dict[str, Tensor]) -> tuple[str, str]:
    if "backbone.stage1.base.conv.weight" in weights:
        return "cspdarknet53", "cspdarknet53"
    blocks = {name.split(".")[2] for name in weights if name.startswith("backbone.layer3.")}
    first = "backbone.layer1.0"
    conv2 = weights.get(f"{first}.conv2.conv.weight")
    inputs = 0 if conv2 is None else conv2.shape[1]
    found = RESNETS.get((len(blocks), inputs, f"{first}.conv3.conv.weight" in weights))
    if found is None:
        names = ", ".join(name for name, _ in RESNETS.values())
        raise UserError(
            f"this YOLOF's ResNet has {len(blocks)} blocks in its third stage and {inputs} inputs "
            f"of the first 3 x 3 convolution; there are {names}"
        )
    return found


def _options(weights: dict[str, Tensor], backbone: str, source: Source, meta: dict) -> dict:
    anchors = len(weights["head.obj_pred.weight"])
    if anchors not in ANCHORS:
        raise UserError(f"this YOLOF has {anchors} anchors in a cell; C5 has 5 and DC5 has 6")
    dc5, darknet = anchors == 6, backbone == "cspdarknet53"
    by_stride = (4, 8, 12, 16) if dc5 else (2, 4, 6, 8)
    options = {
        **RULES,
        "dc5": dc5,
        "dilations": tuple(range(1, 9)) if darknet else by_stride,
        "anchor_sizes": ANCHORS[anchors],
        "topk": 8 if dc5 else 4,
        "pos_thresh": 0.1 if dc5 else 0.15,
        "head_kernel": weights["head.cls_pred.weight"].shape[-1],
        "head_act": "lrelu" if darknet else "relu",
        **source.rules,
    }
    resnext = backbone == "resnext101-64x4d"
    if source.names is MMDETECTION:
        text = str(meta.get("config") or meta.get("cfg") or "")
        layout = "torchvision" if resnext else _layout(text)
        options |= {"layout": layout, "dilate_first": LAYOUTS[layout].stride_in_1x1}
    elif resnext:
        # Its `dilate_first` stays: the official code dilates all three blocks of any ResNet, also
        # where the stride was in the 3 x 3, and the weights were trained with that.
        options["layout"] = "torchvision"
    return options


def _layout(config: str) -> str:
    """Of MMDetection's config; TinyDet's gives the caffe weights RGB pixels."""
    if re.search(r"style['\"]?\s*[=:]\s*['\"]pytorch", config):
        return "torchvision"
    rgb = re.search(r"to_rgb['\"]?\s*[=:]\s*true", config, re.IGNORECASE)
    return "caffe-rgb" if rgb else "caffe"


def _pixel_std(state: dict[str, Tensor]) -> tuple[float, ...]:
    """What an official file's pixels, in BGR order, are divided by; 1 where it does not say."""
    if "pixel_mean" not in state or "pixel_std" not in state:
        return (1.0, 1.0, 1.0)
    mean, std = (
        tuple(round(value, 3) for value in state[name].flatten().tolist())
        for name in ("pixel_mean", "pixel_std")
    )
    published = LAYOUTS["caffe"].pixels.mean
    if mean != published:
        raise UserError(f"this YOLOF subtracts {mean} from pixels, the published {published}")
    return std


def _for_torchvision_pixels(stem: Tensor, std_bgr: tuple[float, ...]) -> Tensor:
    """The stem [64, 3, 7, 7] that does with RGB pixels over ImageNet's std what it did with BGR
    ones over `std_bgr`: official ResNeXts stride as torchvision's, so they take its layout."""
    ours_bgr = LAYOUTS["torchvision"].pixels.std[::-1]
    factors = [ours / theirs for ours, theirs in zip(ours_bgr, std_bgr, strict=True)]
    return (stem * stem.new_tensor(factors)[:, None, None]).flip(1)
