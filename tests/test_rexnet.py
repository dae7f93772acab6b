"""ReXNet: channels that grow block by block, and files of others."""

import urllib.error

import pytest
import torch
from torch import nn

from models import backbone_weights, rexnet
from models.layers import FrozenBN, StridedDepthwise
from utils.errors import UserError

# As published, of the blocks of 1.0.
CHANNELS = [16, 27, 38, 50, 61, 72, 84, 95, 106, 117, 128, 140, 151, 162, 174, 185]
HIDDEN = [19, 25, 30, 36, 42, 47, 53, 58, 64, 70, 75, 81, 87]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return rexnet.rexnet_1_0()


def test_blocks_of_the_smallest(network):
    blocks = network.features
    assert [block.conv_pwl.conv.out_channels for block in blocks] == CHANNELS
    assert [block.se.fc1.out_channels for block in blocks[3:]] == HIDDEN
    strided = [i for i, block in enumerate(blocks) if block.conv_dw.conv.stride == (2, 2)]
    assert strided == [1, 3, 5, 11]
    assert all(isinstance(blocks[i].conv_dw.conv, StridedDepthwise) for i in strided)
    added = [i for i, block in enumerate(blocks) if block.added]
    assert added == [2, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15]


@torch.no_grad()
def test_the_input_is_added_to_the_first_channels(network):
    block = network.features[4].eval()
    x = torch.randn(2, 50, 6, 5)
    alone = block.conv_pwl(block.act(block.se(block.conv_dw(block.conv_exp(x)))))
    expected = alone.clone()
    expected[:, :50] += x
    assert torch.equal(block(x), expected)


@torch.no_grad()
def test_excitation_is_one_factor_a_channel():
    part = rexnet.Excitation(24, norm=rexnet.NormOfMeans).eval()
    x = torch.randn(2, 24, 5, 4)
    factors = part(x) / x
    assert factors.std((2, 3)).max() < 1e-5 and (0 < factors).all() and (factors < 1).all()
    assert part.fc1.out_channels == 2


def test_a_batch_of_one_trains():
    norm = rexnet.NormOfMeans(3)
    nn.init.normal_(norm.running_mean)
    kept = norm.running_mean.clone()
    x = torch.randn(1, 3, 1, 1, requires_grad=True)
    norm(x).sum().backward()
    assert torch.equal(norm.running_mean, kept) and x.grad.any() and norm.weight.grad.any()
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    pair = torch.randn(2, 3, 1, 1)
    assert torch.equal(norm(pair), plain(pair))
    assert torch.equal(norm.running_mean, plain.running_mean)
    network = rexnet.rexnet_1_0().train()
    sum(y.mean() for y in network(torch.rand(1, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_last_conv_and_activation():
    with torch.device("meta"):
        network = rexnet.rexnet_1_0(last_conv=True)
        assert network.channels == (61, 128, 1280)
        assert network(torch.empty(1, 3, 64, 64))[2].shape == (1, 1280, 2, 2)
        network = rexnet.rexnet_1_0(act="lrelu")
    kinds = {type(module) for module in network.modules()}
    assert nn.LeakyReLU in kinds and nn.ReLU6 in kinds and nn.SiLU not in kinds


def test_frozen_keeps_norms_and_the_first_blocks():
    network = rexnet.rexnet_1_0(frozen=True).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(isinstance(norm, FrozenBN) and not norm.training for norm in norms)
    assert {norm.eps for norm in norms} == {1e-5}
    learns = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("stem.", "features.0.", "features.2.")) for name in learns)
    assert "features.3.conv_dw.conv.weight" in learns and "features.3.se.fc1.bias" in learns
    assert not any(".bn." in name for name in learns)


def original(state: dict) -> dict:
    """Our state under the names of the original repository."""
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "stem":
            place = f"features.{['conv', 'bn'].index(parts[1])}"
        elif parts[1] == "16":
            place = f"features.{19 + ['conv', 'bn'].index(parts[2])}"
        else:
            index, layer = int(parts[1]), parts[2]
            numbers = {"conv_exp": 0, "conv_dw": 3, "conv_pwl": 6 if index < 3 else 7}
            if index == 0:
                numbers = {"conv_dw": 0, "conv_pwl": 3}
            place = f"features.{index + 3}.out."
            if layer == "se":
                place += f"5.fc.{ {'fc1': 0, 'bn': 1, 'fc2': 3}[parts[3]] }"
            else:
                place += str(numbers[layer] + ["conv", "bn"].index(parts[3]))
        renamed[f"{place}.{parts[-1]}"] = value
    return renamed


@pytest.mark.parametrize("naming", ["timm", "original"])
@pytest.mark.parametrize("last_conv", [False, True])
def test_files_of_others_are_read(naming, last_conv, tmp_path):
    whole = rexnet.rexnet_1_0(last_conv=True).state_dict()
    if naming == "original":
        file = original(whole) | {"output.1.weight": torch.zeros(9, 1280, 1, 1)}
        assert len(file) == len(whole) + 1 and "features.18.out.5.fc.3.bias" in file
    else:
        file = whole | {"head.fc.weight": torch.zeros(9, 1280)}
    state = rexnet.renamed(file, last_conv=last_conv)
    assert state.keys() == rexnet.rexnet_1_0(last_conv=last_conv).state_dict().keys()
    assert all(torch.equal(value, whole[name]) for name, value in state.items())
    if not last_conv:
        torch.save(file, tmp_path / "file.bin")
        network = rexnet.rexnet_1_0()
        found, _ = backbone_weights.read(tmp_path / "file.bin", network, "rexnet-1.0")
        backbone_weights.load(network, found)
        assert torch.equal(network.features[15].se.bn.weight, whole["features.15.se.bn.weight"])


def test_other_files_are_none_of_its():
    assert rexnet.renamed({"features.3.conv.weight": torch.zeros(1)}) is None


def test_published_weights_come_from_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    state = rexnet.rexnet_1_0(last_conv=True).state_dict()
    torch.save(state, folder / "rexnet_100.nav_in1k.bin")
    network = rexnet.rexnet_1_0()
    backbone_weights.load(network, backbone_weights.published("rexnet-1.0"))
    assert torch.equal(network.features[0].conv_dw.bn.weight, state["features.0.conv_dw.bn.weight"])
    assert torch.equal(network.stem.conv.weight, state["stem.conv.weight"])


def test_weights_that_cannot_be_fetched(tmp_path, monkeypatch):
    def offline(*_args, **_kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(UserError) as raised:
        backbone_weights.published("rexnet-1.3")
    text = str(raised.value)
    assert "https://huggingface.co/timm/rexnet_130.nav_in1k/resolve/main/pytorch_model.bin" in text
    assert str(tmp_path / "hub" / "checkpoints" / "rexnet_130.nav_in1k.bin") in text
    assert "--backbone_weight FILE" in text
