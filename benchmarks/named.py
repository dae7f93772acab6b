"""The models that a benchmark is told of by name."""

import models
import recipes
from utils import cli
from utils.errors import UserError


def recipe_of(version: str, backbone: str | None) -> recipes.Recipe:
    """The recipe of a version, on another backbone if one is named."""
    if version not in recipes.RECIPES:
        raise UserError(cli.unknown("model", version, recipes.RECIPES))
    recipe = recipes.RECIPES[version]
    if backbone is None:
        return recipe
    if backbone not in models.BACKBONES:
        raise UserError(cli.unknown("backbone", backbone, models.BACKBONES))
    return recipes.with_backbone(recipe, backbone)
