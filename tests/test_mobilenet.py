"""MobileNetV3 and MobileNetV2 with coordinate attention: torchvision's networks, several names."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import SqueezeExcitation

from models import backbone_weights, mobilenet, mobilenet_names
from models.attention import CoordAttention
from models.layers import StridedDepthwise
from utils.errors import UserError
from utils.optim import param_groups

# Places in a MobileNetV3 of four blocks: timm's names, and torchvision's.
TIMM = {
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "blocks.0.0.conv_dw": "features.1.block.0.0",
    "blocks.0.0.bn1": "features.1.block.0.1",
    "blocks.0.0.se.conv_reduce": "features.1.block.1.fc1",
    "blocks.0.0.se.conv_expand": "features.1.block.1.fc2",
    "blocks.0.0.conv_pw": "features.1.block.2.0",
    "blocks.0.0.bn2": "features.1.block.2.1",
    "blocks.1.0.conv_pw": "features.2.block.0.0",
    "blocks.1.0.bn1": "features.2.block.0.1",
    "blocks.1.0.conv_dw": "features.2.block.1.0",
    "blocks.1.0.bn2": "features.2.block.1.1",
    "blocks.1.0.conv_pwl": "features.2.block.2.0",
    "blocks.1.0.bn3": "features.2.block.2.1",
    "blocks.2.0.conv_pw": "features.3.block.0.0",
    "blocks.2.0.bn1": "features.3.block.0.1",
    "blocks.2.0.conv_dw": "features.3.block.1.0",
    "blocks.2.0.bn2": "features.3.block.1.1",
    "blocks.2.0.se.conv_reduce": "features.3.block.2.fc1",
    "blocks.2.0.se.conv_expand": "features.3.block.2.fc2",
    "blocks.2.0.conv_pwl": "features.3.block.3.0",
    "blocks.2.0.bn3": "features.3.block.3.1",
    "blocks.10.0.conv": "features.4.0",
    "blocks.10.0.bn1": "features.4.1",
}


def settle(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def outputs(features, x):
    found = []
    for layer in features:
        x = layer(x)
        found.append(x)
    return found


@pytest.mark.parametrize("last_conv", [False, True])
@torch.no_grad()
def test_maps_are_the_last_of_their_strides(last_conv):
    network = settle(torchvision.models.mobilenet_v3_small())
    ours = mobilenet.mobilenetv3_small(last_conv=last_conv).eval()
    ours.load_state_dict(mobilenet_names.renamed_v3(network.state_dict(), last_conv=last_conv))
    x = torch.randn(1, 3, 64, 96)
    of_all = outputs(network.features, x)
    maps = ours(x)
    for found, stride in zip(maps, (8, 16, 32), strict=True):
        of_stride = [y for y in of_all if y.shape[2] == 64 // stride]
        assert torch.equal(found, of_stride[-1 if last_conv or stride < 32 else -2])


def test_timms_names_of_mobilenetv3():
    weights = {f"{theirs}.weight": torch.ones(1) for theirs in TIMM}
    norms = [theirs for theirs in TIMM if theirs.split(".")[-1].startswith("bn")]
    variances = {f"{theirs}.running_var": torch.ones(1) for theirs in norms}
    others = {"conv_head.weight": torch.ones(1), "classifier.bias": torch.ones(1)}
    state = mobilenet_names.renamed_v3({**others, **weights, **variances})
    ours = {f"{place}.weight" for place in TIMM.values()}
    assert state.keys() == ours | {f"{TIMM[name]}.running_var" for name in norms}


@torch.no_grad()
def test_a_norm_of_timms_eps_stays_the_same_function():
    norm, ours = nn.BatchNorm2d(4, eps=1e-5).eval(), nn.BatchNorm2d(4, eps=1e-3).eval()
    norm.running_var.copy_(torch.tensor([1e-4, 1e-3, 0.1, 10.0]))  # the first is less than our eps
    state = {f"bn1.{name}": value for name, value in norm.state_dict().items()}
    state |= {"blocks.0.0.conv.weight": torch.ones(1)}
    renamed = mobilenet_names.renamed_v3(state)
    ours.load_state_dict(
        {
            name.removeprefix("features.0.1."): value
            for name, value in renamed.items()
            if name.startswith("features.0.1.")
        }
    )
    x = torch.randn(2, 4, 3, 3)
    assert torch.allclose(norm(x), ours(x), rtol=1e-4)


def test_an_efficientnet_of_timm_is_none_of_them():
    names = "conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.6.0.conv_pwl.weight"
    state = {name: torch.ones(1) for name in names}
    assert mobilenet_names.renamed_v3(state) is None and mobilenet_names.renamed_v2(state) is None


def test_files_of_other_networks_are_not_its_own():
    with torch.device("meta"):
        v2 = torchvision.models.mobilenet_v2().state_dict()
        v3 = torchvision.models.mobilenet_v3_small().state_dict()
        other = torchvision.models.resnet18().state_dict()
    assert mobilenet_names.renamed_v3(v2) is mobilenet_names.renamed_v3(other) is None
    assert mobilenet_names.renamed_v2(v3) is mobilenet_names.renamed_v2(other) is None


# ---- coordinate attention ----


def test_coordinate_attention_stands_for_squeeze_and_excitation():
    with torch.device("meta"):
        plain, ours = mobilenet.mobilenetv3_large(), mobilenet.mobilenetv3_large(attention="coord")
    excited = [name for name, m in plain.named_modules() if isinstance(m, SqueezeExcitation)]
    attended = [name for name, m in ours.named_modules() if isinstance(m, CoordAttention)]
    assert len(excited) == 8
    assert attended == [f"{name}.attention" for name in excited]
    assert not any(isinstance(m, SqueezeExcitation) for m in ours.modules())


@torch.no_grad()
def test_published_weights_fill_all_but_the_attention():
    network = settle(torchvision.models.mobilenet_v3_small())
    ours = mobilenet.mobilenetv3_small(attention="coord")
    fresh = {k: v.clone() for k, v in ours.state_dict().items() if ".attention." in k}
    backbone_weights.load(ours, mobilenet_names.renamed_v3(network.state_dict()))
    state, theirs = ours.state_dict(), network.state_dict()
    assert fresh and all(torch.equal(state[name], value) for name, value in fresh.items())
    rest = state.keys() - fresh.keys()
    assert all(torch.equal(state[name], theirs[name]) for name in rest)
    other = mobilenet.mobilenetv3_small(attention="coord")
    backbone_weights.load(other, state)  # with its attention
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    with pytest.raises(UserError, match="unexpected: features.1.block.1.attention"):
        backbone_weights.load(mobilenet.mobilenetv3_small(), state)


@torch.no_grad()
def test_open_gates_leave_torchvisions_mobilenetv2():
    network = settle(torchvision.models.mobilenet_v2())
    ours = mobilenet.mobilenetv2_ca().eval()
    backbone_weights.load(ours, mobilenet_names.renamed_v2(network.state_dict()))
    attention = [m for m in ours.modules() if isinstance(m, CoordAttention)]
    assert len(attention) == 16  # each block but the first widens
    for module in attention:
        for conv in (module.conv_h, module.conv_w):
            nn.init.zeros_(conv.weight)
            nn.init.constant_(conv.bias, 100.0)
    x = torch.randn(1, 3, 64, 64)
    of_all = outputs(network.features, x)
    for found, index in zip(ours(x), (6, 13, 17), strict=True):
        assert torch.equal(found, of_all[index])


def test_attention_of_blocks_does_not_decay():
    with torch.device("meta"):
        network = mobilenet.mobilenetv2_ca()
    ours = {
        id(p) for m in network.modules() if isinstance(m, CoordAttention) for p in m.parameters()
    }
    for group in param_groups(network, 5e-4):
        if group["weight_decay"]:
            assert group["params"] and not ours & {id(p) for p in group["params"]}


def test_strided_depthwise_convolutions_are_ours():
    with torch.device("meta"):
        networks = (
            mobilenet.mobilenetv3_small(),
            mobilenet.mobilenetv3_large(),
            mobilenet.mobilenetv2_ca(),
        )
    for network, expected in zip(networks, (4, 4, 4), strict=True):
        found = [m for m in network.modules() if isinstance(m, StridedDepthwise)]
        assert len(found) == expected
        assert all(conv.stride == (2, 2) for conv in found)
