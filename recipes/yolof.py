"""YOLOF's recipes, as published (arXiv 2103.09460), and the switches of the ablation studies."""

import math
from dataclasses import dataclass, replace

from recipes.changes import with_part_lr
from recipes.fields import Augment, Recipe, Schedule, Stage, attention_option, option

LN_1E8, LN_1E4 = (
    math.log(1e8),
    math.log(1e4),
)  # where the objectness' exponentials are cut, as logits
COCO_IMAGES = 117_266  # of train2017, those with objects: what iterations are counted in
SHIFT = 32  # pixels
BACKBONE_LR = 0.334  # as a share of the learning rate


@dataclass(frozen=True)
class YolofOptions:
    """The network and what it learns from; the defaults are those of yolof-r50-c5."""

    layout: str = option(
        "torchvision",
        "the kind of a ResNet's weights: where it strides, which pixels it expects",
        ("torchvision", "caffe", "caffe-rgb"),
    )
    dc5: bool = option(False, "the last stage dilated, not strided: stride 16 instead of 32")
    dilate_first: bool = option(
        False, "with dc5: the last stage's first block dilated too; layout caffe: on"
    )
    act: str = option(
        "own",
        "activation of the backbone: its own, or a learnt one where it has a place for that",
        ("own", "acon", "meta_acon"),
    )
    attention: str = attention_option()
    frozen: bool = option(True, "what the paper freezes of a pretrained backbone stays as read")
    dilations: tuple[int, ...] = option((2, 4, 6, 8), "of the encoder's blocks, as in 2,4,6,8")
    anchor_sizes: tuple[int, ...] = option(
        (32, 64, 128, 256, 512), "sides of the anchors, input pixels, as in 32,64,128"
    )
    anchor_offset: float = option(
        0.0, "anchors' centres in their cells: 0 corner, 0.5 middle", least=0.0, most=1.0
    )
    matcher: str = option(
        "uniform",
        "uniform: nearest predictions and anchors; iou_topk, l1_topk: anchors alone",
        ("uniform", "iou_topk", "l1_topk"),
    )
    topk: int = option(4, "predictions and anchors that each box is matched with; dc5 8", least=1)
    pos_thresh: float = option(
        0.15, "IoU with its box that a matched anchor needs; dc5 0.1", least=0.0, most=1.0
    )
    ignore_thresh: float = option(
        0.7, "IoU with a box above which others are ignored; 0: none", least=0.0, most=1.0
    )
    ignore_on: str = option(
        "predictions", "whose IoU decides what is ignored", ("predictions", "anchors")
    )
    image_mask: bool = option(True, "no loss, and no detection, in cells of the padding")
    decode_method: int = option(2, "shift of a centre: 1 in strides, 2 in anchor sizes", (1, 2))
    ctr_clamp: float = option(
        32.0, "most that a centre moves, pixels; 0: neither centre nor size is limited", least=0.0
    )
    loss_norm: str = option(
        "batch", "losses by the positives of the batch or of each image", ("batch", "image")
    )
    head_kernel: int = option(3, "side of the convolutions that predict", (1, 3))
    head_act: str = option("relu", "activation of encoder and decoder", ("relu", "lrelu"))
    logit_clamp: float = option(
        LN_1E8, "largest logit in the exponentials of the objectness", least=0.0, most=80.0
    )
    best_class: bool = option(False, "one class an anchor, and no cut to the best 1000 scores")


@dataclass(frozen=True)
class YolofSwitches:
    """The family's flags that change the rest of a recipe, not the network; see `with_flags`."""

    preset: str = option(
        "official",
        "the rules of the paper or those of the teaching repository",
        ("official", "seed"),
    )
    random_shift: bool = option(
        True, f"half of the images moved by up to {SHIFT} pixels; on VOC off"
    )
    shuffle: bool = option(True, "a new order of the images in each epoch")
    backbone_lr: float = option(
        BACKBONE_LR, "learning rate of the backbone, as a share of --lr; 0: frozen", least=0.0
    )
    warmup: str = option("linear", "how the learning rate rises", ("linear", "exp"))


_C5 = YolofOptions()
_DC5 = YolofOptions(
    dc5=True,
    dilations=(4, 8, 12, 16),
    anchor_sizes=(16, 32, 64, 128, 256, 512),
    topk=8,
    pos_thresh=0.10,
)
_OF_STRIDE = ("dc5", "dilations", "anchor_sizes", "topk", "pos_thresh")
_1X = Schedule(
    warmup=1500 * 64 / COCO_IMAGES,
    rise="linear",
    rise_from=0.00066667,
    fall="steps",
    steps=(15000 / 22500, 20000 / 22500),
)
_AUGMENT = Augment(hsv=0.0, shift=SHIFT, min_box=0.0)

_R50 = Recipe(
    version="yolof-r50-c5",
    detector="yolof",
    backbone="resnet50",
    model=_C5,
    img_size=800,
    max_size=1333,
    pretrained=True,
    stages=(Stage(12, _AUGMENT),),
    nesterov=False,
    lr=0.12,
    part_lr=(("backbone", BACKBONE_LR),),
    short_lr=1e-3,
    schedule=_1X,
    weight_decay=1e-4,
    ema_decay=0.0,
    eval_every=1,
    train_difficult=False,
    conf=0.05,
    nms=0.6,
    max_dets=100,
)


def version(name: str, options: YolofOptions) -> str:
    """The name of a model on the backbone `name`."""
    return f"yolof-{name}-{'dc5' if options.dc5 else 'c5'}"


def _with(backbone: str, short: str, model: YolofOptions = _C5, **changes) -> Recipe:
    name = version(short, model)
    return replace(_R50, version=name, backbone=backbone, model=model, **changes)


# The 3x schedule of the paper's darknet, on squares of 512 to 768 pixels as its jitter makes them.
_CSP = {
    "pretrained": False,
    "img_size": 640,
    "max_size": 0,
    "multi_scale": (512, 768),
    "stages": (Stage(37, Augment(mosaic=0.5, mosaic_scale=(0.5, 1.5), shift=SHIFT)),),
    "lr": 0.04,
    "part_lr": (),
    "schedule": replace(_1X, steps=(52500 / 67500, 62500 / 67500)),
}
_CSP_BLOCKS = {"head_act": "lrelu", "dilations": tuple(range(1, 9))}

RECIPES = (
    _with("resnet18", "r18"),
    _with("resnet18", "r18", _DC5),
    _R50,
    _with("resnet50", "r50", _DC5),
    _with("resnet101", "r101"),
    _with("resnet101", "r101", _DC5),
    _with("resnext101-64x4d", "x101"),
    _with("cspdarknet53", "cspdarknet53", replace(_C5, **_CSP_BLOCKS), **_CSP),
    _with("cspdarknet53", "cspdarknet53", replace(_DC5, **_CSP_BLOCKS), **_CSP),
)

# VOC2007 as TinyDet trains it: 5011 images 36 times in batches of 16, smaller, without shift.
_VOC_UPDATES = 5011 * 36 / 16
_VOC_SIDES = {"img_size": 600, "max_size": 1000}
_VOC = {
    "stages": (Stage(36, replace(_AUGMENT, shift=0)),),
    "schedule": replace(
        _1X,
        warmup=36 * 2000 / _VOC_UPDATES,
        most_warmup=2000 / _VOC_UPDATES,
        steps=(8 / 12, 11 / 12),
    ),
}


def for_dataset(recipe: Recipe, dataset: str) -> dict:
    """What a data set changes in a recipe of the family; sides of a checkpoint's own stay."""
    if dataset != "voc" or recipe.schedule != _1X:  # the darknet's training stays
        return {}
    return {**_VOC, **(_VOC_SIDES if recipe.sides == _R50.sides else {})}


# What a preset sets, whatever the stride.
_RULES = (
    "matcher",
    "ignore_thresh",
    "ignore_on",
    "image_mask",
    "decode_method",
    "ctr_clamp",
    "loss_norm",
    "head_kernel",
    "anchor_offset",
    "logit_clamp",
    "best_class",
)
_OFFICIAL = {name: vars(_C5)[name] for name in _RULES}
_SEED = {
    **_OFFICIAL,
    "topk": 4,
    "pos_thresh": 0.15,
    "matcher": "l1_topk",
    "ignore_on": "anchors",
    "ctr_clamp": 0.0,
    "head_kernel": 1,
    "anchor_offset": 0.5,
    "logit_clamp": LN_1E4,
    "best_class": True,
}
_SEED_TRAINING = {
    "lr": 0.01,
    "base_batch": 16,
    "part_lr": (),
    "schedule": Schedule(
        warmup=500 * 16 / COCO_IMAGES, rise="exp", fall="steps", steps=(8 / 12, 11 / 12)
    ),
}


def with_flags(recipe: Recipe, given: dict) -> Recipe:
    """The recipe changed by the family's flags that were given: what stands for several first."""
    given = dict(given)
    if given.get("dc5", recipe.model.dc5) != recipe.model.dc5:
        here, there = (vars(_DC5 if dc5 else _C5) for dc5 in (recipe.model.dc5, given["dc5"]))
        own = vars(recipe.model)
        like = {name: there[name] for name in _OF_STRIDE if own[name] == here[name]}
        body = recipe.version.removeprefix("yolof-").rsplit("-", 1)[0]
        model = replace(recipe.model, **like)
        recipe = replace(recipe, model=model, version=version(body, model))
    if "layout" in given:  # a dilated stage keeps the function of its weights; see models.resnet
        given = {"dilate_first": given["layout"] != "torchvision", **given}
    preset = given.pop("preset", "")
    if preset == "official":  # the recipes' schedules are the official ones already
        like = _DC5 if recipe.model.dc5 else _C5
        model = replace(recipe.model, **_OFFICIAL, topk=like.topk, pos_thresh=like.pos_thresh)
        recipe = replace(recipe, model=model)
    elif preset == "seed":
        recipe = replace(recipe, model=replace(recipe.model, **_SEED), **_SEED_TRAINING)
        given = {"random_shift": True, **given}
    if "random_shift" in given:
        shift = SHIFT if given.pop("random_shift") else 0
        stages = (replace(s, augment=replace(s.augment, shift=shift)) for s in recipe.stages)
        recipe = replace(recipe, stages=tuple(stages))
    if "warmup" in given:
        rise = given.pop("warmup")
        rise_from = _1X.rise_from if rise == "linear" else 0.0
        schedule = replace(recipe.schedule, rise=rise, rise_from=rise_from)
        recipe = replace(recipe, schedule=schedule)
    if "backbone_lr" in given:
        recipe = with_part_lr(recipe, {"backbone": given.pop("backbone_lr")})
    changes = {"shuffle": given.pop("shuffle")} if "shuffle" in given else {}
    return replace(recipe, **changes, model=replace(recipe.model, **given))
