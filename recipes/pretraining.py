"""Pretraining of a detector's backbone on patches: `center` from boxes, `patches` from nothing."""

from dataclasses import dataclass, replace

from recipes.changes import known
from recipes.fields import Recipe, Schedule, Stage, option
from recipes.yolof import YolofOptions
from recipes.yoloft import YoloftOptions

PATCH_SHARE = 0.25  # side of a patch by the longest one of the images it is cut from
LEAST_PATCH = 64  # pixels; below it the last map has one cell
_OF_RESNETS, _OF_C2F = YolofOptions.__dataclass_fields__, YoloftOptions.__dataclass_fields__


def _shared(fields: dict, name: str):
    """A field that another family has too: one flag, one help text."""
    told = fields[name].metadata
    return option(fields[name].default, told["help"], told["choices"])


@dataclass(frozen=True)
class PretrainingOptions:
    """What decides the backbone, as in the detector's options, and the images."""

    act: str = option(
        "own",
        "activation; a backbone that has its own takes acon and meta_acon alone, or none of these",
        ("own", "silu", "relu", "lrelu", "acon", "meta_acon"),
    )
    attention: str = _shared(_OF_RESNETS, "attention")
    layout: str = _shared(_OF_RESNETS, "layout")
    dc5: bool = _shared(_OF_RESNETS, "dc5")
    dilate_first: bool = _shared(_OF_RESNETS, "dilate_first")
    dcn: bool = _shared(_OF_C2F, "dcn")
    p2: bool = _shared(_OF_C2F, "p2")
    patch: int = option(
        0,
        f"side of the patches, rounded to a multiple of 32 from {LEAST_PATCH} on; 0: a quarter of "
        "the images' longest side",
        least=0,
    )


@dataclass(frozen=True)
class CenterOptions(PretrainingOptions):
    """Cross entropy and center loss on patches of objects and background."""

    objects: int = option(4, "patches of objects an image", least=1)
    background: int = option(4, "patches of places without objects an image", least=1)
    by_class: bool = option(True, "the classes told apart, not only objects from background")
    center_weight: float = option(0.1, "weight of the center loss", least=0.0)
    center_rate: float = option(0.5, "how fast ema moves the centers", least=0.0, most=1.0)
    center_update: str = option("ema", "what moves the centers", ("ema", "sgd"))
    normalize: bool = option(True, "center loss on features of length 1")


@dataclass(frozen=True)
class PatchesOptions(PretrainingOptions):
    """Patches that belong together against all others; no label is read."""

    objective: str = option(
        "infonce",
        "infonce; simsiam, which needs no negatives (the dense term has some); cosine, as "
        "published and without the dense term, which may collapse",
        ("infonce", "simsiam", "cosine"),
    )
    temperature: float = option(0.2, "of infonce, and of the dense term", least=0.01)
    dense: float = option(1.0, "weight of the term on places of the maps; 0: without", least=0.0)
    near: int = option(2, "patches that touch the anchor; 4 in published places", least=0)
    far: int = option(2, "patches far from it; 4 in published places", least=0)
    places: str = option(
        "anywhere",
        "where patches lie; published: neighbours left, far ones right",
        ("anywhere", "published"),
    )
    jitter: str = option(
        "patch", "colours drawn for each patch, or as published once an image", ("patch", "image")
    )
    colours: float = option(
        0.3,
        "how far colours change: 0 not at all, 1 about as published, at which learning begins late",
        least=0.0,
        most=1.5,
    )
    guard: bool = option(True, "stop when the outputs collapse into one point")


OPTIONS = {"center": CenterOptions, "patches": PatchesOptions}
OF_BACKBONE = frozenset(PretrainingOptions.__dataclass_fields__) - {"patch"}
FLAGS = {method: (options,) for method, options in OPTIONS.items()}
_EPOCHS = {"center": 40, "patches": 100}


def recipe_of(method: str, detector: Recipe) -> Recipe:
    """The pretraining of a detector's backbone, on images as large as the detector's input, so that
    objects are as large as it will see them."""
    return Recipe(
        version=f"{method}-{detector.version}",
        detector=method,
        backbone=detector.backbone,
        model=OPTIONS[method](**known(PretrainingOptions, vars(detector.model))),
        img_size=detector.img_size,
        max_size=detector.max_size,
        stages=(Stage(_EPOCHS[method]),),
        batch_size=16,
        optimizer="adamw",
        lr=1e-3,
        base_batch=16,
        weight_decay=0.05,
        grad_clip=10.0,
        ema_decay=0.0,
        schedule=Schedule(warmup=2.0),
    )


def patch_side(recipe: Recipe) -> int:
    """Side of the patches, a multiple of 32."""
    wanted = recipe.model.patch or recipe.sides[1] * PATCH_SHARE
    return max(LEAST_PATCH, round(wanted / 32) * 32)


def with_flags(recipe: Recipe, given: dict) -> Recipe:
    """The recipe changed by those of the method's flags that were given."""
    return replace(recipe, model=replace(recipe.model, **given))
