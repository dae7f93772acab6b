"""YOLOX's recipes, as published (arXiv 2107.08430)."""

from dataclasses import dataclass, replace

from recipes.fields import Augment, Recipe, Stage, attention_option, option


@dataclass(frozen=True)
class YoloxOptions:
    """YOLOX's own switches; the defaults of width and depth are those of yolox-s."""

    depth: float = option(0.33, "depth multiplier of the neck (a ratio)", least=0.05)
    width: float = option(0.50, "width multiplier of neck and head (a ratio)", least=0.05)
    depthwise: bool = option(False, "depthwise separable 3x3 convolutions")
    act: str = option(
        "silu",
        "activation; a backbone with its own takes acon and meta_acon alone, or none; yolof: the "
        "backbone's, own, acon or meta_acon",
        ("silu", "relu", "lrelu", "acon", "meta_acon"),
    )
    attention: str = attention_option()
    neck: str = option("pafpn", "neck: pafpn, or fpn for darknet53", ("pafpn", "fpn"))
    iou_loss: str = option(
        "iou", "box loss; ciou helps objects of a few pixels", ("iou", "giou", "diou", "ciou")
    )
    assign_cost: str = option(
        "iou", "overlap term of the assignment's cost; ciou ranks disjoint boxes", ("iou", "ciou")
    )
    center_radius: float = option(1.5, "radius of the centre region, in strides", least=0.0)


_PLAIN = Augment()
_STRONG = Augment(mosaic=1.0, mixup=1.0)  # s, m, l, x, darknet53
_MILD = Augment(mosaic=1.0, mosaic_scale=(0.5, 1.5))  # tiny
_WEAK = replace(_MILD, mosaic=0.5)  # nano


def _stages(augment: Augment) -> tuple[Stage, ...]:
    """YOLOX's schedule: 285 epochs augmented, then 15 plain ones with the L1 term."""
    return (Stage(285, augment), Stage(15, _PLAIN, weights=(("l1", 1.0),)))


_S = Recipe(
    version="yolox-s",
    detector="yolox",
    backbone="cspdarknet-s",
    model=YoloxOptions(),
    img_size=640,
    stages=_stages(_STRONG),
    multi_scale=(480, 800),
)


def _sized(name: str, depth: float, width: float, **changes) -> Recipe:
    return replace(
        _S,
        version=f"yolox-{name}",
        backbone=f"cspdarknet-{name}",
        model=YoloxOptions(depth=depth, width=width),
        **changes,
    )


_TINY = _sized("tiny", 0.33, 0.375, img_size=416, stages=_stages(_MILD), multi_scale=(320, 640))


def version(name: str, _options: YoloxOptions) -> str:
    """The name of a model on the backbone `name`."""
    return f"yolox-{name}"


def for_dataset(recipe: Recipe, dataset: str) -> dict:
    """What a data set changes in a recipe of the family: small sets need less warm-up, and flow is
    trained as its study did, 8 images an update at the full rate."""
    if dataset == "flow":
        return {"base_batch": 8, "model": replace(recipe.model, center_radius=2.5)}
    small = dataset in ("voc", "synthetic", "synthetic-tiny")
    return {"schedule": replace(recipe.schedule, warmup=1.0)} if small else {}


def with_flags(recipe: Recipe, given: dict) -> Recipe:
    """The recipe changed by the family's flags that were given."""
    return replace(recipe, model=replace(recipe.model, **given))


RECIPES = (
    replace(
        _TINY,
        version="yolox-nano",
        backbone="cspdarknet-nano",
        model=YoloxOptions(depth=0.33, width=0.25, depthwise=True),
        stages=_stages(_WEAK),
    ),
    _TINY,
    _S,
    _sized("m", 0.67, 0.75),
    _sized("l", 1.0, 1.0),
    _sized("x", 1.33, 1.25),
    replace(
        _S,
        version="yolox-darknet53",
        backbone="darknet53",
        model=YoloxOptions(depth=1.0, width=1.0, act="lrelu", neck="fpn"),
    ),
)
