"""RepVGG: three branches that one convolution replaces, and files of others."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import BACKBONES, backbone_weights, build_backbone, repvgg
from models.fusing import ConvAct, fuse
from models.layers import FrozenBN
from utils.errors import UserError

PARAMETERS = {  # fused, as the original networks have them; test_backbones has the train form's
    "repvgg-a0": 7_028_384,
    "repvgg-a1": 11_508_864,
    "repvgg-a2": 24_090_944,
    "repvgg-b0": 13_058_048,
    "repvgg-b1": 49_780_480,
    "repvgg-b1g4": 34_076_416,
}


def lively(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


def relative(one, other) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_fused_form(name):
    with torch.device("meta"):
        fused = fuse(BACKBONES[name].build())
    assert sum(p.numel() for p in fused.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("cin, cout, stride, groups", [(8, 8, 1, 1), (8, 8, 1, 4), (8, 12, 2, 2)])
@torch.no_grad()
def test_a_block_is_one_convolution(cin, cout, stride, groups):
    block = lively(repvgg.Block(cin, cout, stride, groups))
    fused = fuse(block)
    assert isinstance(fused, ConvAct) and fused.conv.weight.shape == (cout, cin // groups, 3, 3)
    x = torch.randn(2, cin, 9, 7)
    wide = F.conv2d(x, block.conv_kxk.conv.weight, None, stride, 1, 1, groups)
    narrow = F.conv2d(x, block.conv_1x1.conv.weight, None, stride, 0, 1, groups)
    total = block.conv_kxk.bn(wide) + block.conv_1x1.bn(narrow)
    if (cin, stride) == (cout, 1):
        total = total + block.identity(x)
    assert torch.allclose(block(x), total.relu(), atol=1e-6)
    assert relative(fused(x), block(x)) < 1e-6


@torch.no_grad()
def test_fused_equals_the_train_form_and_is_faster():
    network = lively(repvgg.repvgg_a0())
    fused = fuse(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == 22
    x = torch.rand(1, 3, 96, 96)
    for one, other in zip(fused(x), network(x), strict=True):
        assert other.std() > 1e-2 and relative(one, other) < 1e-5
    again = fuse(fused)
    assert all(torch.equal(one, other) for one, other in zip(again(x), fused(x), strict=True))
    times = {form: [] for form in (fused, network)}
    for _ in range(7):  # in turns, as the machine may be busy for a while
        for form in times:
            begin = time.perf_counter()
            form(x)
            times[form].append(time.perf_counter() - begin)
    assert min(times[fused]) < min(times[network])


def test_every_second_block_has_groups():
    with torch.device("meta"):
        network = repvgg.repvgg_b1g4()
    groups = [block.conv_kxk.conv.groups for stage in network.stages for block in stage]
    assert groups == [1, 4] * 13 + [1]
    assert network.stem.conv_kxk.conv.groups == 1


def test_frozen_keeps_norms_and_the_first_stage():
    network = repvgg.repvgg_a0(frozen=True).train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    sum(y.mean() for y in network(torch.rand(2, 3, 64, 64))).backward()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(module, FrozenBN) and module.weight.grad is None
    for part in (network.stem, network.stages[0]):
        assert all(p.grad is None for p in part.parameters())
    assert all(block.conv_1x1.conv.weight.grad.any() for block in network.stages[2])
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())


def original_name(name: str) -> str:
    """A name of ours in the original repository."""
    for ours, theirs in (("conv_kxk", "rbr_dense"), ("conv_1x1", "rbr_1x1")):
        name = name.replace(ours, theirs)
    name = name.replace("identity", "rbr_identity").replace("stem", "stage0")
    head, _, rest = name.partition(".")
    if head != "stages":
        return name
    number, _, rest = rest.partition(".")
    return f"stage{int(number) + 1}.{rest}"


@pytest.mark.parametrize("naming", ["timm", "original"])
def test_files_of_others_are_read(naming, tmp_path):
    network, other = lively(repvgg.repvgg_a0()), repvgg.repvgg_a0()
    state = network.state_dict()
    if naming == "original":
        state = {original_name(name): value for name, value in state.items()}
        assert (
            "stage4.0.rbr_dense.bn.running_var" in state and "stage1.1.rbr_identity.bias" in state
        )
    head = {"timm": "head.fc", "original": "linear"}[naming]
    torch.save({**state, f"{head}.weight": torch.zeros(9, 1280)}, tmp_path / "file.bin")
    found, layout = backbone_weights.read(tmp_path / "file.bin", other, "repvgg-a0")
    backbone_weights.load(other, found)
    assert layout is None
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for one, wanted in zip(other.eval()(x), network(x), strict=True):
            assert torch.equal(one, wanted)


@pytest.mark.parametrize("form", ["timm", "original", "ours"])
def test_a_fused_file_is_refused(form, tmp_path):
    state = fuse(repvgg.repvgg_a0()).state_dict()
    if form == "timm":
        state = {name.replace(".conv.", ".reparam_conv."): v for name, v in state.items()}
    elif form == "original":
        state = {original_name(n.replace(".conv.", ".rbr_reparam.")): v for n, v in state.items()}
    torch.save(state, tmp_path / "fused.pth")
    with pytest.raises(UserError, match=r"branches are fused.*train form"):
        backbone_weights.read(tmp_path / "fused.pth", repvgg.repvgg_a0(), "repvgg-a0")


def test_other_files_are_none_of_its():
    assert repvgg.renamed({"conv1.weight": torch.zeros(1)}) is None


def test_no_pixels_are_left_out_by_a_1_x_1_convolution_of_few_channels():
    # oneDNN (torch 2.14) writes outside its memory in the gradient of such a one: 8 images of 256
    # pixels, channels last, 3 channels, stride 2 end the process. All backbones are asked.
    for name in BACKBONES:
        with torch.device("meta"):
            network = build_backbone(name, {"attention": "none", "act": "own"})
        for part in network.modules():
            if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1):
                assert part.stride == (1, 1) or part.in_channels >= 16, name
