"""The interface of every backbone, and one of each family under the detectors."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

import models
from models.acon import Acon, MetaAcon
from models.attention import CoordAttention
from recipes import RECIPES, with_sides
from tests.detectors import (
    CLASSES,
    SIZE,
    assert_finite_gradients,
    batch,
    count,
    narrow_heads,
    trainable,
)
from utils.errors import UserError

# Parameters and channels of the backbones that no recipe is named after.
ZOO = {
    "shufflenetv2-x0.5": (143_136, (48, 96, 192)),
    "shufflenetv2-x1.0": (776_420, (116, 232, 464)),
    "shufflenetv2-x1.5": (1_755_680, (176, 352, 704)),
    "shufflenetv2-x2.0": (3_342_052, (244, 488, 976)),
    "mobilenetv3-small": (927_008, (24, 48, 576)),
    "mobilenetv3-large": (2_971_952, (40, 112, 960)),
    "mobilenetv2-ca": (2_257_488, (32, 96, 320)),
    "rexnet-1.0": (3_276_513, (61, 128, 185)),
    "rexnet-1.3": (5_489_403, (79, 167, 240)),
    "rexnet-1.5": (7_271_913, (92, 193, 277)),
    "rexnet-2.0": (12_853_300, (122, 257, 370)),
    "rexnet-3.0": (28_732_752, (183, 386, 554)),
    "repvgg-a0": (7_827_968, (96, 192, 1280)),
    "repvgg-a1": (12_811_264, (128, 256, 1280)),
    "repvgg-a2": (26_801_600, (192, 384, 1408)),
    "repvgg-b0": (14_536_960, (128, 256, 1280)),
    "repvgg-b1": (55_366_016, (256, 512, 2048)),
    "repvgg-b1g4": (37_917_056, (256, 512, 2048)),
    "repvgg-b2": (86_461_376, (320, 640, 2560)),
    "repvgg-b3": (120_524_288, (384, 768, 2560)),
    "yolov5-n": (1_046_368, (64, 128, 256)),
    "yolov5-s": (4_171_456, (128, 256, 512)),
    "yolov5-m": (12_167_904, (192, 384, 768)),
    "yolov5-l": (26_582_912, (256, 512, 1024)),
    "yolov5-x": (49_275_040, (320, 640, 1280)),
    "swin-t": (27_520_506, (192, 384, 768)),
    "swin-s": (48_838_410, (192, 384, 768)),
}
SMALLEST_OF_ZOO = (
    "shufflenetv2-x0.5",
    "mobilenetv3-small",
    "mobilenetv2-ca",
    "rexnet-1.0",
    "repvgg-a0",
    "yolov5-n",
    "swin-t",
)
SMALLEST = (
    *SMALLEST_OF_ZOO,
    "cspdarknet-nano",
    "darknet53",
    "cspdarknet53",
    "resnet18",
    "resnet50",
)


@torch.no_grad()
def maps_of(backbone):
    """Those of an image of 64 x 96 pixels that is not there."""
    return backbone.eval()(torch.empty(1, 3, 64, 96, device="meta"))


@pytest.mark.parametrize(
    ("name", "dc5"),
    [
        (name, dc5)
        for name, backbone in models.BACKBONES.items()
        for dc5 in (False, True)
        if name in SMALLEST or not (dc5 or name in ZOO)
        if "dc5" in backbone.takes or not dc5
    ],
)
def test_backbone_interface(name, dc5):
    row = models.BACKBONES[name]
    taken = {*row.takes, *(("act",) if row.acts else ())}
    assert taken <= inspect.signature(row.build).parameters.keys()
    with torch.device("meta"):
        backbone = row.build(**({"dc5": True} if dc5 else {}))
        maps = maps_of(backbone)
    assert [x.shape[1] for x in maps] == list(backbone.channels)
    assert list(backbone.strides) == [8, 16, 16 if dc5 else 32]
    assert [(64 // x.shape[2], 96 // x.shape[3]) for x in maps] == [
        (s, s) for s in backbone.strides
    ]
    assert backbone.pixels.order in ("bgr", "rgb")
    everything = dict(backbone.named_parameters())
    assert len(trainable(backbone)) == len(everything)
    if "frozen" in row.takes:
        with torch.device("meta"):
            assert 0 < len(trainable(row.build(frozen=True))) < len(everything)


def test_the_zoo_is_whole():
    of_recipes = {recipe.backbone for recipe in RECIPES.values()}
    assert models.BACKBONES.keys() - of_recipes == ZOO.keys()


@pytest.mark.parametrize("name", ZOO)
def test_parameters_and_channels_of_the_zoo(name):
    with torch.device("meta"):
        backbone = models.BACKBONES[name].build()
    assert (count(backbone), backbone.channels) == ZOO[name]
    assert backbone.strides == (8, 16, 32)


@torch.no_grad()
def test_channels_of_every_shufflenetv2():
    for name in [name for name in ZOO if name.startswith("shufflenetv2")]:
        for last_conv in (False, True):
            with torch.device("meta"):
                backbone = models.BACKBONES[name].build(last_conv=last_conv)
            assert tuple(x.shape[1] for x in maps_of(backbone)) == backbone.channels


def kinds_within(module):
    return {type(part) for part in module.modules()}


@pytest.mark.parametrize("name", [name for name in SMALLEST if models.BACKBONES[name].acts])
def test_learnt_activations_of_a_backbone(name):
    for act, kind in (("acon", Acon), ("meta_acon", MetaAcon)):
        with torch.device("meta"):
            assert kind in kinds_within(models.build_backbone(name, {"act": act}))
    with torch.device("meta"):
        assert not {Acon, MetaAcon} & kinds_within(models.build_backbone(name, {"act": "own"}))


@pytest.mark.parametrize("name", ["resnet18", "swin-t", "mobilenetv3-small", "mobilenetv2-ca"])
def test_coordinate_attention_of_a_backbone(name):
    row = models.BACKBONES[name]
    if row.attends:
        with pytest.raises(UserError, match=f"{name} has coordinate attention already"):
            models.build_backbone(name, {"attention": "coord"})
        return
    with torch.device("meta"):
        backbone = models.build_backbone(name, {"attention": "coord"})
        maps = maps_of(backbone)
        assert CoordAttention not in kinds_within(models.build_backbone(name, {}))
    assert CoordAttention in kinds_within(backbone)
    assert [x.shape[1] for x in maps] == list(backbone.channels)


# ---- the zoo under the detectors ----


def detector_on(backbone, recipe, **options):
    """The detector with nothing frozen, and a narrow head."""
    recipe = with_sides(replace(RECIPES[recipe], backbone=backbone), SIZE)
    options |= {"frozen": False} if "frozen" in vars(recipe.model) else {}
    with narrow_heads():
        return models.build_model(replace(recipe, model=replace(recipe.model, **options)), CLASSES)


@pytest.mark.parametrize("recipe", ["yolof-r18-c5", "yolox-nano"])
@pytest.mark.parametrize("name", SMALLEST_OF_ZOO)
def test_a_backbone_of_the_zoo_learns(name, recipe):
    model = detector_on(name, recipe)
    losses, _ = model.train()(*batch())
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert_finite_gradients(model)


@pytest.mark.parametrize("recipe", ["yolof-r18-c5", "yolox-nano"])
@pytest.mark.parametrize("name", ["shufflenetv2-x0.5", "mobilenetv3-small", "rexnet-1.0"])
def test_one_image_trains_attention_and_learnt_activations(name, recipe):
    row = models.BACKBONES[name]
    options = {"act": "meta_acon"} if row.acts else {}
    model = detector_on(name, recipe, attention="coord", **options)
    losses, _ = model.train()(*batch(1))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert_finite_gradients(model)
    assert CoordAttention in kinds_within(model)
    assert (MetaAcon in kinds_within(model)) == ("meta_acon" in row.acts)


@pytest.mark.parametrize("name", SMALLEST_OF_ZOO)
def test_what_is_frozen_stays(name):
    row = models.BACKBONES[name]
    backbone = row.build(frozen=True).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, SIZE, SIZE))).backward()
    assert_finite_gradients(backbone)
    attends = {key for key in before if ".attention." in key}  # new, whatever the weights
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]) or key in attends
    assert not next(backbone.parameters()).requires_grad
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m for m in norms if m.training or m.weight.requires_grad] == [
        m.bn1 for m in backbone.modules() if isinstance(m, CoordAttention)
    ]
    with torch.device("meta"):
        plain = [m for m in row.build().modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.eps for m in norms] == [m.eps for m in plain]


def test_a_detector_on_one_map_attends_to_that_alone():
    for recipe, expected in (("yolof-r18-c5", 1), ("yolox-nano", 3)):
        model = detector_on("repvgg-a0", recipe, attention="coord")
        found = [part for part in model.modules() if isinstance(part, CoordAttention)]
        assert len(found) == expected
