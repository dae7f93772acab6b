"""ResNets against torchvision's with the same weights; layouts, dilation and what is frozen."""

import inspect
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from models import resnet
from models.backbone_weights import from_torchvision
from models.fusing import fuse
from models.layers import ConvBNAct, FrozenBN, FrozenConvBNAct
from models.optimize import _pack
from recipes import RECIPES, with_flags
from utils.errors import UserError

PLAIN = {"layout": "torchvision", "frozen": False}


def peer(make, **options):
    """torchvision's network with statistics and weights of norms unlike those at the start."""
    torch.manual_seed(0)
    network = make(**options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 0.8)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def same_weights(ours, theirs):
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    return ours


def maps(theirs, x):
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    c3 = theirs.layer2(theirs.layer1(x))
    c4 = theirs.layer3(c3)
    return [c3, c4, theirs.layer4(c4)]


def assert_near(ours, theirs, rtol=1e-4):
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= rtol * other.norm() and other.std() > 0.01


DILATED = {"replace_stride_with_dilation": [False, False, True]}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "dilated"])
def test_outputs_are_torchvisions(name, frozen):
    options = {"frozen": frozen}
    if name == "dilated":
        theirs = peer(torchvision.models.resnet50, **DILATED)
        ours = resnet.resnet50(dc5=True, **options)
    else:
        theirs = peer(getattr(torchvision.models, name))
        ours = getattr(resnet, name)(**options)
    same_weights(ours, theirs).eval()
    x = torch.randn(1, 3, 75, 97)
    with torch.no_grad():
        found, expected = ours(x), maps(theirs, x)
        assert_near(found, expected)
        folded = fuse(ours)
        assert_near(folded(x), expected)
        if torch.backends.mkldnn.is_available():
            _pack(folded, torch.float32)
            assert_near(folded(x.to(memory_format=torch.channels_last)), expected)
    assert ours.channels == tuple(each.shape[1] for each in found)
    for each, stride in zip(found, ours.strides, strict=True):
        assert each.shape[2:] == (-(-75 // stride), -(-97 // stride))


def test_caffes_layout_has_the_stride_in_the_1x1():
    theirs = peer(torchvision.models.resnet50)
    ours = same_weights(resnet.resnet50(layout="caffe"), theirs).eval()
    for layer in theirs.layer2, theirs.layer3, theirs.layer4:
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_near(ours(x), maps(theirs, x))


@pytest.mark.parametrize(
    "make, layout, dilate_first",
    [
        (resnet.resnet18, "torchvision", False),
        (resnet.resnet50, "torchvision", False),
        (resnet.resnet50, "caffe", True),
    ],
)
def test_every_second_place_of_a_dilated_stage_is_the_strided_ones(make, layout, dilate_first):
    strided = make(layout=layout).eval()
    dilated = make(layout=layout, dc5=True, dilate_first=dilate_first).eval()
    other = make(layout=layout, dc5=True, dilate_first=not dilate_first).eval()
    for network in dilated, other:
        network.load_state_dict(strided.state_dict())
    c4 = torch.randn(1, strided.channels[1], 7, 10)
    with torch.no_grad():
        coarse, fine, unlike = (each.layer4(c4) for each in (strided, dilated, other))
    assert dilated.strides == (8, 16, 16) and fine.shape[2:] == (7, 10)
    assert_near([fine[:, :, ::2, ::2]], [coarse])
    assert (unlike[:, :, ::2, ::2] - coarse).norm() > 0.1 * coarse.norm()


DC5 = sorted(
    name
    for name, recipe in RECIPES.items()
    if recipe.backbone.startswith("resn") and recipe.model.dc5
)


@pytest.mark.parametrize("name", DC5)
def test_a_dilated_recipe_keeps_the_function_of_its_layouts_weights(name):
    recipe = RECIPES[name]
    strides = {layout: known.stride_in_1x1 for layout, known in resnet.LAYOUTS.items()}
    assert recipe.model.dilate_first == strides[recipe.model.layout]
    for layout, expected in strides.items():
        model = with_flags(recipe, {"layout": layout}).model
        assert (model.layout, model.dilate_first) == (layout, expected)
        for asked in (True, False):
            given = {"layout": layout, "dilate_first": asked}
            assert with_flags(recipe, given).model == replace(recipe.model, **given)
    other = replace(recipe, model=replace(recipe.model, dilate_first=True))
    for preset in ("official", "seed"):  # weights know what they need, presets do not
        assert with_flags(other, {"preset": preset}).model.dilate_first


def test_variants_take_the_same_options():
    known = inspect.signature(resnet.resnet18).parameters
    for make in (resnet.resnet50, resnet.resnet101, resnet.resnext101_64x4d):
        taken = inspect.signature(make).parameters
        assert {name: taken[name].default for name in known} == {
            name: option.default for name, option in known.items()
        }


def test_frozen_norms_and_first_stages_learn_nothing():
    network = resnet.resnet18(frozen=True).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sum(each.square().mean() for each in network(torch.randn(2, 3, 64, 64))).backward()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(isinstance(norm, FrozenBN) and not norm.training for norm in norms)
    learning = {name for name, each in network.named_parameters() if each.requires_grad}
    convs = {name for name, _ in network.named_parameters() if name.endswith("conv.weight")}
    assert learning == {name for name in convs if not name.startswith(("stem.", "layer1."))}
    for name, each in network.named_parameters():
        assert (each.grad is not None and each.grad.abs().max() > 0) == (name in learning)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_not_frozen_everything_learns():
    network = resnet.resnet18(frozen=False).train()
    sum(each.square().mean() for each in network(torch.randn(2, 3, 64, 64))).backward()
    assert all(each.grad is not None for each in network.parameters())
    assert network.stem.bn.num_batches_tracked == 1
    assert network.state_dict().keys() == resnet.resnet18(frozen=True).state_dict().keys()


def test_folding_a_frozen_norm_changes_neither_output_nor_gradient():
    torch.manual_seed(0)
    options = {"groups": 2, "dilation": 2, "eps": 1e-5, "momentum": 0.1, "act": "relu"}
    folded = FrozenConvBNAct(4, 6, 3, 2, **options)
    nn.init.uniform_(folded.bn.weight, 0.5, 2.0)
    nn.init.normal_(folded.bn.bias)
    nn.init.normal_(folded.bn.running_mean)
    nn.init.uniform_(folded.bn.running_var, 0.5, 2.0)
    plain = ConvBNAct(4, 6, 3, 2, **options).eval()
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(2, 4, 9, 11)
    for block in folded, plain:
        block(x).square().sum().backward()
    assert torch.allclose(folded(x), plain(x), atol=1e-5)
    assert torch.allclose(folded.conv.weight.grad, plain.conv.weight.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(fuse(folded)(x), plain(x), atol=1e-5)


def test_at_the_start_the_weights_are_torchvisions():
    torch.manual_seed(1)
    ours = resnet.resnet18(**PLAIN)
    theirs = torchvision.models.resnet18()
    expected = from_torchvision(theirs.state_dict())
    for name, value in ours.state_dict().items():
        value, other = value.float(), expected[name].float()
        assert value.shape == other.shape
        assert torch.allclose(value.mean(), other.mean(), atol=2e-2)
        if name.endswith("conv.weight"):
            assert torch.allclose(value.std(), other.std(), rtol=0.05)


@pytest.mark.parametrize(
    "name, count", [("resnet101", 42_500_160), ("resnext101_64x4d", 81_406_272)]
)
def test_sizes(name, count):
    with torch.device("meta"):
        ours = getattr(resnet, name)()
        theirs = getattr(torchvision.models, name)()
    expected = {name: v.shape for name, v in from_torchvision(theirs.state_dict()).items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected
    assert sum(each.numel() for each in ours.parameters()) == count


def test_pixels_belong_to_the_layout():
    for layout in resnet.LAYOUTS.values():
        mean = layout.pixels.mean if layout.pixels.order == "bgr" else layout.pixels.mean[::-1]
        assert layout.pixels.padding == mean == (103.53, 116.28, 123.675)
    official = resnet.LAYOUTS["caffe"].pixels
    assert official.order == "bgr" and official.std == (1.0, 1.0, 1.0)
    with pytest.raises(UserError, match="no layout 'msra'.*torchvision, caffe, caffe-rgb"):
        resnet.resnet50(layout="msra")
