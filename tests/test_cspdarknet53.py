"""CSPDarknet-53: its maps, names and size, what a frozen one learns, and its form for inference."""

import pytest
import torch
from torch import nn

from models.cspdarknet53 import CSPStage, cspdarknet53
from models.fusing import fuse
from models.optimize import _pack


def lively(network: nn.Module) -> nn.Module:
    """The same with statistics of norms unlike those at the start, in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("dc5", [False, True])
def test_maps_have_the_strides_and_channels_it_names(dc5):
    network = lively(cspdarknet53(dc5=dc5))
    x = torch.randn(1, 3, 75, 97)
    with torch.no_grad():
        maps, fast = network(x), fuse(network)
        if torch.backends.mkldnn.is_available():
            _pack(fast, torch.float32)
        others = fast(x)
    assert network.channels == (256, 512, 1024) and network.strides[-1] == (16 if dc5 else 32)
    for each, other, channels, stride in zip(
        maps, others, network.channels, network.strides, strict=True
    ):
        assert each.shape == (1, channels, -(-75 // stride), -(-97 // stride))
        assert (each - other).norm() < 1e-4 * each.norm() and each.std() > 0.01


def test_its_size_is_the_published_one():
    with torch.device("meta"):
        network = cspdarknet53()
    # YOLOv4's network without its classifier of 1024 x 1000 weights and 1000 biases.
    assert sum(each.numel() for each in network.parameters()) == 27_642_184 - 1_025_000
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["stage1.side.conv.weight"] == (64, 64, 1, 1)
    assert shapes["stage1.blocks.0.conv1.conv.weight"] == (32, 64, 1, 1)
    assert shapes["stage4.blocks.7.conv2.conv.weight"] == (256, 256, 3, 3)
    assert shapes["stage5.fuse.conv.weight"] == (1024, 1024, 1, 1)
    norm = network.stage5.blocks[3].conv2.bn
    assert (norm.eps, norm.momentum) == (1e-4, 0.03)


def test_a_stage_reads_like_the_paper():
    """Written out with plain operations, the main path first in what is joined."""
    torch.manual_seed(0)
    stage = lively(CSPStage(4, 8, 4, 6, 2, stride=1, dilation=2))

    def run(block, x):
        return nn.functional.mish(block.bn(block.conv(x)))

    x = torch.randn(2, 4, 7, 9)
    with torch.no_grad():
        base = run(stage.base, x)
        y = run(stage.down, base)
        for block in stage.blocks:
            y = y + run(block.conv2, run(block.conv1, y))
        joined = torch.cat((run(stage.post, y), run(stage.side, base)), dim=1)
        assert torch.allclose(stage(x), run(stage.fuse, joined), atol=1e-6)
    convs = {name: each for name, each in stage.named_modules() if isinstance(each, nn.Conv2d)}
    dilated = {name for name, each in convs.items() if each.dilation == (2, 2)}
    assert dilated == {"base.conv", "blocks.0.conv2.conv", "blocks.1.conv2.conv"}


def test_frozen_stages_gather_statistics_and_learn_nothing():
    network = cspdarknet53(frozen=True).train()
    sum(each.square().mean() for each in network(torch.randn(2, 3, 64, 64))).backward()
    for name, each in network.named_parameters():
        frozen = name.startswith(("stem.", "stage1.", "stage2."))
        assert each.requires_grad != frozen and (each.grad is None) == frozen
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 1 for norm in norms)
    assert network.stem.bn.running_mean.abs().max() > 0
    assert all(each.requires_grad for each in cspdarknet53(frozen=False).parameters())
