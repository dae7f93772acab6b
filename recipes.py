"""Every number one would tune, as frozen dataclasses, and the one table of recipes.

A variant is `replace(base, ...)`, so that the difference is all you see. This file imports nothing
of the project: it is data, and a few pure functions that turn one recipe into another.
"""

import math
from dataclasses import asdict, dataclass, field, fields, replace


def option(default, text: str, choices: tuple = ()):
    """A field of a family's options: its help text (and choices) make the family's flag."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Augment:
    """What happens to the pixels of one stage; probabilities 0..1, angles in degrees."""

    mosaic: float = 0.0
    mixup: float = 0.0
    mosaic_scale: tuple[float, float] = (0.1, 2.0)
    mixup_scale: tuple[float, float] = (0.5, 1.5)
    degrees: float = 10.0
    translate: float = 0.1
    shear: float = 2.0
    hsv: float = 1.0
    flip: float = 0.5
    fill: int = 114
    min_box: float = 1.0  # boxes whose shorter side is at most this many pixels are dropped


@dataclass(frozen=True)
class Clip:
    """How many frames make one sample, and how many frames lie between two of them."""

    length: int = 1
    interval: int = 1


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs with its own pixels, loss weights and clip."""

    epochs: int
    augment: Augment = Augment()
    weights: tuple[tuple[str, float], ...] = ()
    clip: Clip = Clip()

    @property
    def text(self) -> str:
        """What the stage does, in a few words."""
        shares = {"mosaic": self.augment.mosaic, "mixup": self.augment.mixup}
        parts = [f"{name} {share:g}" for name, share in shares.items() if share] or ["plain images"]
        return ", ".join(parts + [f"{name} loss {weight:g}" for name, weight in self.weights])


@dataclass(frozen=True)
class YoloxOptions:
    """YOLOX's own switches; the defaults of width and depth are those of yolox-s."""

    depth: float = option(0.33, "depth multiplier of the neck (a ratio)")
    width: float = option(0.50, "width multiplier of neck and head (a ratio)")
    depthwise: bool = option(False, "depthwise separable 3x3 convolutions")
    act: str = option("silu", "activation", ("silu", "relu", "lrelu"))
    neck: str = option("pafpn", "neck: pafpn, or fpn for darknet53", ("pafpn", "fpn"))
    iou_loss: str = option(
        "iou", "box loss; ciou helps objects of a few pixels", ("iou", "giou", "diou", "ciou")
    )
    assign_cost: str = option(
        "iou", "overlap term of the assignment's cost; ciou ranks disjoint boxes", ("iou", "ciou")
    )
    center_radius: float = option(1.5, "radius of the centre region, in strides")


@dataclass(frozen=True)
class Recipe:
    """All that decides a training, and what inference needs to know of it."""

    version: str
    detector: str
    backbone: str
    model: YoloxOptions
    img_size: int
    stages: tuple[Stage, ...]
    batch_size: int = 8  # images per process and step
    accumulate: int = 1  # steps whose gradients are summed before one update
    optimizer: str = "sgd"
    lr: float = 0.01  # at `base_batch` images per update
    base_batch: int = 64
    min_lr: float = 0.05  # as a fraction of lr, kept for the last twentieth of the run
    warmup: float = 5.0  # epochs
    weight_decay: float = 5e-4
    grad_clip: float = 0.0  # largest gradient norm; 0: not clipped
    ema_decay: float = 0.9998  # 0: no moving average
    ema_ramp: float = 2000.0  # updates over which the decay grows
    multi_scale: tuple[int, int] = (0, 0)  # least and largest side in pixels; 0, 0: img_size only
    eval_every: int = 10  # epochs
    patience: int = 0  # epochs without a better AP before the run ends; 0: never
    train_difficult: bool = True
    seed: int = 42
    conf: float = 0.01  # least score of a detection during training's evaluations
    nms: float = 0.65  # IoU
    max_dets: int = 1000  # per image; COCO then counts 100 of each class


OPTIONS = {"yolox": YoloxOptions}

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

RECIPES: dict[str, Recipe] = {
    recipe.version: recipe
    for recipe in (
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
}

# What a data set changes, whatever the model.
_DATASETS: dict[str, dict] = {
    "voc": {"warmup": 1.0},
    "synthetic": {"warmup": 1.0, "img_size": 224, "multi_scale": (160, 352)},
    # No other sizes: specks that are made smaller are lost.
    "synthetic-tiny": {"warmup": 1.0, "img_size": 192, "multi_scale": (0, 0)},
}
_DATASET_EPOCHS = {"synthetic": 30, "synthetic-tiny": 20}

SHORT_RUN = 8000  # updates; below it the reference's slow start never ends


def for_dataset(recipe: Recipe, dataset: str) -> Recipe:
    """The recipe with what the data set changes; the synthetic set is small and quickly learnt."""
    changed = replace(recipe, **_DATASETS.get(dataset, {}))
    if dataset in _DATASET_EPOCHS:
        changed = with_epochs(changed, _DATASET_EPOCHS[dataset])
    return changed


def with_model(recipe: Recipe, changes: dict, options: dict) -> Recipe:
    """The recipe for the network that a checkpoint describes."""
    changes = {**changes, "model": replace(recipe.model, **_known(type(recipe.model), options))}
    return replace(with_img_size(recipe, changes["img_size"]), **changes)


def total_epochs(recipe: Recipe) -> int:
    return sum(stage.epochs for stage in recipe.stages)


def with_img_size(recipe: Recipe, img_size: int) -> Recipe:
    """The recipe at another image size; the multi-scale range keeps its ratio to the size."""
    ratio = img_size / recipe.img_size
    low, high = (round(side * ratio / 32) * 32 for side in recipe.multi_scale)
    return replace(recipe, img_size=img_size, multi_scale=(low, high))


def with_epochs(recipe: Recipe, epochs: int, plain: int | None = None) -> Recipe:
    """The recipe with `epochs` in all. Its last stage has `plain` of them, by default its own
    length, but at most a quarter of a short run; the stages before share the rest in proportion."""
    *early, last = recipe.stages
    plain = min(last.epochs, max(1, epochs // 4)) if plain is None else min(plain, epochs)
    if not early or plain == epochs:
        return replace(recipe, stages=(replace(last, epochs=epochs),))
    rest, asked = epochs - plain, sum(stage.epochs for stage in early)
    edges = [
        round(rest * sum(stage.epochs for stage in early[:i]) / asked)
        for i in range(len(early) + 1)
    ]
    lengths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    stages = [replace(stage, epochs=n) for stage, n in zip(early, lengths, strict=True) if n]
    if plain:
        stages.append(replace(last, epochs=plain))
    return replace(recipe, stages=tuple(stages))


def fit_to_length(recipe: Recipe, updates: int, given: frozenset[str] = frozenset()):
    """(recipe, sentences): what a run of few updates needs, for each field the user left alone.

    The reference's numbers are made for some 550,000 updates. In a few hundred of them SGD at
    0.01 / 64 images hardly moves and a moving average over thousands never arrives, which users
    read as "AP is 0": a short run takes AdamW, a clipped gradient, and an average over the last
    tenth of the run (update n averages over about exp(n / ramp) updates). Sizes far from the
    input's are left out: there is no time to learn them.
    """
    if updates >= SHORT_RUN:
        return recipe, []
    changes = {
        "optimizer": "adamw",
        "lr": 2e-3,
        "base_batch": 8,
        "grad_clip": 10.0,
        "ema_ramp": min(recipe.ema_ramp, round(updates / math.log(max(updates / 10, 2)), 1)),
        "eval_every": max(1, total_epochs(recipe) // 15),
        "multi_scale": narrowed(recipe),
    }
    if "optimizer" in given and recipe.optimizer == "sgd":
        kept = ("ema_ramp", "eval_every", "multi_scale")
        changes = {k: v for k, v in changes.items() if k in kept}
    changes = {k: v for k, v in changes.items() if k not in given}
    listed = ", ".join(
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in changes.items()
    )
    return replace(recipe, **changes), [f"short run ({updates} updates): {listed}"]


def narrowed(recipe: Recipe) -> tuple[int, int]:
    """The multi-scale range, at most 32 pixels to either side of the input."""
    low, high = recipe.multi_scale
    if not high:
        return 0, 0
    return max(low, recipe.img_size - 32), min(high, recipe.img_size + 32)


def as_dict(recipe: Recipe) -> dict:
    """Plain dict, list, str and number, as a checkpoint holds it."""
    return _plain(asdict(recipe))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def _tuples(value):
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def _known(kind, values: dict) -> dict:
    """The entries of `values` that are fields of `kind`, lists as tuples."""
    names = {entry.name for entry in fields(kind)}
    return {key: _tuples(value) for key, value in values.items() if key in names}


def from_dict(values: dict) -> Recipe:
    """The recipe that `as_dict` wrote."""
    stages = tuple(
        Stage(
            **{
                **_known(Stage, stage),
                "augment": Augment(**_known(Augment, stage["augment"])),
                "clip": Clip(**_known(Clip, stage["clip"])),
            }
        )
        for stage in values["stages"]
    )
    options = OPTIONS[values["detector"]]
    model = options(**_known(options, values["model"]))
    return Recipe(**{**_known(Recipe, values), "stages": stages, "model": model})
