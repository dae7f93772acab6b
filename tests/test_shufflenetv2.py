"""ShuffleNetV2: torchvision's network, with learnt activations where they are asked for."""

import pytest
import torch
import torchvision
from torch import nn

from models import shufflenetv2
from models.acon import Acon, MetaAcon
from models.layers import StridedDepthwise
from utils.optim import param_groups


def library():
    network = torchvision.models.shufflenet_v2_x0_5()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("last_conv", [False, True])
@torch.no_grad()
def test_maps_are_those_of_torchvision(last_conv):
    network = library()
    ours = shufflenetv2.shufflenetv2_x0_5(last_conv=last_conv).eval()
    ours.load_state_dict(shufflenetv2.renamed(network.state_dict(), last_conv=last_conv))
    x = torch.randn(1, 3, 64, 96)
    c3 = network.stage2(network.maxpool(network.conv1(x)))
    c4 = network.stage3(c3)
    c5 = network.stage4(c4)
    expected = [c3, c4, network.conv5(c5) if last_conv else c5]
    for found, wanted in zip(ours(x), expected, strict=True):
        assert torch.equal(found, wanted)


def test_files_of_other_networks_are_not_its_own():
    with torch.device("meta"):
        others = torchvision.models.mobilenet_v3_small(), torchvision.models.resnet18()
    assert [shufflenetv2.renamed(network.state_dict()) for network in others] == [None, None]


@pytest.mark.parametrize(("act", "kind"), [("acon", Acon), ("meta_acon", MetaAcon)])
@torch.no_grad()
def test_every_relu_becomes_a_learnt_activation(act, kind):
    plain = shufflenetv2.shufflenetv2_x0_5()
    relus = sum(isinstance(part, nn.ReLU) for part in plain.modules())
    network = shufflenetv2.shufflenetv2_x0_5(act=act)
    learnt = [part for part in network.modules() if isinstance(part, kind)]
    assert len(learnt) == relus == 1 + 2 * 16 + 3  # the stem; two a unit; three where it strides
    assert not any(isinstance(part, nn.ReLU) for part in network.modules())
    assert network.state_dict().keys() > plain.state_dict().keys()  # names of the rest stay
    assert [x.shape[1] for x in network(torch.randn(1, 3, 64, 64))] == [48, 96, 192]


def test_meta_acon_of_the_narrowest_reduces_less():
    for build, reduction in (
        (shufflenetv2.shufflenetv2_x0_5, 8),
        (shufflenetv2.shufflenetv2_x1_5, 16),
    ):
        with torch.device("meta"):
            network = build(act="meta_acon")
        for part in network.modules():
            if isinstance(part, MetaAcon):
                channels = part.fc2.out_channels
                assert part.fc1.out_channels == max(reduction, channels // reduction)


def test_learnt_activations_do_not_decay():
    with torch.device("meta"):
        network = shufflenetv2.shufflenetv2_x0_5(act="meta_acon")
    of_acts = {
        id(p) for part in network.modules() if isinstance(part, MetaAcon) for p in part.parameters()
    }
    decayed = [
        p for group in param_groups(network, 5e-4) if group["weight_decay"] for p in group["params"]
    ]
    assert decayed and not of_acts & {id(p) for p in decayed}
    assert len(decayed) == sum(isinstance(part, nn.Conv2d) for part in network.modules()) - 2 * len(
        [part for part in network.modules() if isinstance(part, MetaAcon)]
    )


def test_frozen_learnt_activations_learn():
    with torch.device("meta"):
        network = shufflenetv2.shufflenetv2_x0_5(act="acon", frozen=True)
    assert not network.conv1[0].weight.requires_grad
    assert all(p.requires_grad for p in network.conv1[2].parameters())


def test_strided_depthwise_convolutions_are_ours():
    with torch.device("meta"):
        network = shufflenetv2.shufflenetv2_x1_0()
    convs = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    strided = [conv for conv in convs if conv.stride == (2, 2) and conv.groups > 1]
    assert len(strided) == 6
    assert all(isinstance(conv, StridedDepthwise) for conv in strided)
    assert sum(isinstance(conv, StridedDepthwise) for conv in convs) == 6
