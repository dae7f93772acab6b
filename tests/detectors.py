"""Detectors at their smallest and batches of noise for them, for the tests of the models."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import models
from models import yolof
from recipes import RECIPES, with_sides

CLASSES = ("disc", "square", "cross")
SIZE = 64


@contextlib.contextmanager
def narrow_heads():
    """YOLOF is built with an eighth of its channels: the same code in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yolof, "CHANNELS", 64)
        yield


def build(name, classes=CLASSES, **options) -> models.Detector:
    """The untrained model of a recipe for squares of SIZE pixels, with a narrow head."""
    recipe = with_sides(RECIPES[name], SIZE)
    with narrow_heads():
        return models.build_model(replace(recipe, model=replace(recipe.model, **options)), classes)


def score_layers(model) -> list[nn.Conv2d]:
    """The convolutions whose biases decide how sure an untrained detector is."""
    return [
        module
        for name, module in model.head.named_modules()
        if isinstance(module, nn.Conv2d) and name.startswith(("cls_pred", "obj_pred"))
    ]


def settled(name, **options) -> models.Detector:
    """A model with the statistics of some noise, and scores to speak of."""
    return settle(build(name, **options))


def settle(model: models.Detector) -> models.Detector:
    for layer in score_layers(model):
        nn.init.normal_(layer.bias, -1.0, 0.5)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.15  # a mixture: with statistics of noise alone boxes are huge
    with torch.no_grad():
        for _ in range(4):
            model.train().network(batch(4)[0].float())
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    model.conf = 0.05
    return model


def batch(num=2, size=SIZE, boxes=True, content=(SIZE, SIZE - 12)):
    """Images and targets as a loader packs them: three boxes in each and an empty slot. The small
    one is first: what it shares with the others, too large an anchor for it, is theirs."""
    images = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8)
    gt = torch.tensor([[20.0, 12, 26, 30], [8, 8, 40, 40], [20, 4, 50, 30], [0, 0, 0, 0]])
    targets = {
        "boxes": gt.repeat(num, 1, 1),
        "labels": torch.tensor([[1, 0, 2, 0]]).repeat(num, 1),
        "valid": torch.tensor([[True, True, True, False]]).repeat(num, 1),
        "size": torch.tensor([content] * num),
    }
    if not boxes:
        for key in ("boxes", "labels", "valid"):
            targets[key] = targets[key][:, :0]
    return images, targets


def loss_without_values(make, **options):
    """The loss of the detector that `make` builds, for inputs of which no value is known: it may
    ask for none, as that would wait for the device. Its gradient too has been computed."""
    with FakeTensorMode():
        images = torch.empty(2, 3, SIZE, SIZE, dtype=torch.uint8)
        targets = {
            "boxes": torch.empty(2, 7, 4),
            "labels": torch.empty(2, 7, dtype=torch.long),
            "valid": torch.empty(2, 7, dtype=torch.bool),
            "size": torch.empty(2, 2, dtype=torch.long),
        }
        losses, _ = make().train()(images, targets, **options)
        losses["loss"].backward()
    return losses["loss"]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def assert_finite_gradients(model):
    assert [name for name, p in trainable(model).items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in trainable(model).values())
