"""The model that a training begins with, and what its weights are."""

import torch

from models import Checkpoint, backbone_weights, build_model
from models.detector import Detector
from utils import checkpoint, cli, dist
from utils.errors import UserError

ALIKE = ("caffe", "caffe-rgb")  # layouts of the same strides, whose pixels one user mixed up


def initial_model(
    recipe,
    classes: tuple[str, ...],
    *,
    weight: Checkpoint | None = None,
    backbone_weight: str | None = None,
) -> tuple[Detector, list[str]]:
    """(model, sentences about its weights): those of a checkpoint, where a head of other classes
    starts anew; or of the backbone alone, out of a file or as published; or none."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, classes)
    expected = vars(recipe.model).get("layout", "torchvision")
    if weight:
        check_layout(weight.path, weight.recipe["model"].get("layout"), expected)
        told = _differences(weight.recipe["model"], vars(recipe.model))
        try:
            skipped = checkpoint.load_weights(model, weight.state, allow=model.class_layers)
        except UserError as error:
            if not told:
                raise
            raise UserError(f"{weight.path} was made with {told}: {error}") from error
        said = [f"weights: {weight.path}, {len(model.state_dict()) - len(skipped)} tensors"]
        if skipped:
            said.append(f"  another number of classes: {', '.join(skipped)} start untrained")
        if told:
            said.append(f"  they were trained with {told}")
        return model, said
    if backbone_weight:
        state, layout = backbone_weights.read(backbone_weight, model.backbone, recipe.backbone)
        check_layout(backbone_weight, layout, expected)
        backbone_weights.load(model.backbone, state)
        return model, [f"weights of the backbone: {backbone_weight}; the rest starts untrained"]
    if recipe.pretrained:
        check_layout("the published file", "torchvision", expected)
        state = dist.from_main(lambda: backbone_weights.published(recipe.backbone))
        backbone_weights.load(model.backbone, state)
        return model, [
            f"weights of the backbone: published, of {recipe.backbone}; the rest starts untrained"
        ]
    return model, ["weights: none; all of the model starts untrained, and nothing of it is frozen"]


def _differences(theirs: dict, ours: dict) -> str:
    """The options of a file that are not those of the model, with both values."""
    both = {name: (theirs[name], ours[name]) for name in theirs.keys() & ours.keys()}
    return ", ".join(
        f"{name} {cli.typed(old)} (now {cli.typed(new)})"
        for name, (old, new) in sorted(both.items())
        if cli.typed(old) != cli.typed(new)
    )


def check_layout(what, layout: str | None, expected: str):
    """Raises UserError for weights of one layout in a network of another: all shapes agree, and
    strides and pixels would be wrong."""
    if layout not in (None, expected) and (layout, expected) != ALIKE:
        raise UserError(
            f"{what} holds weights of the layout {layout}, the model is of the layout {expected}: "
            f"strides and pixels would be wrong; give --layout {layout}"
        )
