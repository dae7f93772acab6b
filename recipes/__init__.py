"""Every number one would tune, as frozen dataclasses, and the one table of recipes.

A variant is `replace(base, ...)`, so that the difference is all you see. This folder imports
nothing else of the project: it is data, and pure functions that turn one recipe into another.
"""

from dataclasses import replace

from recipes import pretraining, yolof, yoloft, yolox
from recipes.changes import (
    as_dict,
    can_end_plain,
    fit_to_length,
    from_values,
    known,
    narrowed,
    samples_of,
    total_epochs,
    updates_of,
    with_epochs,
    with_sides,
    without_weights,
)
from recipes.fields import EMA_DECAY, Augment, Clip, Recipe, Schedule, Stage
from recipes.yolof import YolofOptions, YolofSwitches
from recipes.yoloft import YoloftOptions, YoloftSwitches
from recipes.yolox import YoloxOptions

__all__ = [
    "DEFAULT",
    "EMA_DECAY",
    "OPTIONS",
    "RECIPES",
    "FLAGS",
    "PLAIN",
    "Augment",
    "Clip",
    "Recipe",
    "Schedule",
    "Stage",
    "YolofOptions",
    "YolofSwitches",
    "YoloftOptions",
    "YoloftSwitches",
    "YoloxOptions",
    "as_dict",
    "changed_options",
    "can_end_plain",
    "fit_to_length",
    "for_dataset",
    "from_dict",
    "narrowed",
    "pretraining",
    "samples_of",
    "total_epochs",
    "updates_of",
    "with_backbone",
    "with_epochs",
    "with_flags",
    "with_model",
    "with_sides",
    "without_weights",
]

DEFAULT = "yolof-r50-c5"  # what is trained if neither -v nor --weight names a model
RECIPES: dict[str, Recipe] = {
    recipe.version: recipe for recipe in (*yolox.RECIPES, *yolof.RECIPES, *yoloft.RECIPES)
}

# Of each family: the options of its network, and all its flags, which may change the rest too.
OPTIONS = {"yolox": YoloxOptions, "yolof": YolofOptions, "yoloft": YoloftOptions}
FLAGS = {
    "yolox": (YoloxOptions,),
    "yolof": (YolofOptions, YolofSwitches),
    "yoloft": (YoloftOptions, YoloftSwitches),
}
# Whose schedule models without a name take.
PLAIN = {"yolox": "yolox-s", "yolof": "yolof-r50-c5", "yoloft": "yoloft-s"}
_FAMILIES = {"yolox": yolox, "yolof": yolof, "yoloft": yoloft}

# What a data set changes, whatever the model.
_SQUARES: dict[str, int] = {"synthetic": 224, "synthetic-tiny": 192, "synthetic-video": 128}
# Specks that are made smaller are lost: no other sizes.
_RANGES: dict[str, tuple[int, int]] = {
    "synthetic": (160, 352),
    "synthetic-tiny": (0, 0),
    "synthetic-video": (0, 0),
}
_DATASET_EPOCHS = {"synthetic": 30, "synthetic-tiny": 20, "synthetic-video": 20}


def for_dataset(recipe: Recipe, dataset: str) -> Recipe:
    """The recipe with what the data set changes; the synthetic set is small and quickly learnt."""
    if dataset in _SQUARES:
        recipe = with_sides(recipe, _SQUARES[dataset])
        if recipe.multi_scale[1]:
            recipe = replace(recipe, multi_scale=_RANGES[dataset])
    recipe = replace(recipe, **_FAMILIES[recipe.detector].for_dataset(recipe, dataset))
    if dataset in _DATASET_EPOCHS:
        recipe = with_epochs(recipe, _DATASET_EPOCHS[dataset])
    return recipe


def with_flags(recipe: Recipe, given: dict) -> Recipe:
    """The recipe changed by those of its family's flags that were given."""
    return _FAMILIES[recipe.detector].with_flags(recipe, given)


def with_backbone(recipe: Recipe, name: str) -> Recipe:
    """The recipe on another backbone, named after it; all else is as it was."""
    version = _FAMILIES[recipe.detector].version(name, recipe.model)
    return replace(recipe, backbone=name, version=version)


def changed_options(recipe: Recipe) -> dict:
    """The options of the network that are not those of the recipe of its name; what is frozen
    follows from the weights."""
    plain = vars(RECIPES.get(recipe.version, RECIPES[PLAIN[recipe.detector]]).model)
    plain = plain | {"frozen": vars(recipe.model).get("frozen")}
    return {name: value for name, value in vars(recipe.model).items() if value != plain[name]}


def with_model(recipe: Recipe, changes: dict, options: dict) -> Recipe:
    """The recipe for the network that a checkpoint describes."""
    model = replace(recipe.model, **known(type(recipe.model), options))
    sized = with_sides(recipe, changes["img_size"], changes["max_size"])
    return replace(sized, **changes, model=model)


def from_dict(values: dict) -> Recipe:
    """The recipe that `as_dict` wrote; a ValueError if an earlier release did."""
    kinds = OPTIONS | pretraining.OPTIONS
    return from_values(values, kinds[values["detector"]])
