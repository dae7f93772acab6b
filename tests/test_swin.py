"""Swin: torchvision's network, a norm for each map, and the names that others give its weights."""

import pytest
import torch
import torchvision
from torch import nn

from models import backbone_weights, swin
from utils.optim import param_groups

# Names in timm's files and in its authors', and torchvision's.
NAMES = {
    "patch_embed.proj.weight": "features.0.0.weight",
    "patch_embed.norm.bias": "features.0.2.bias",
    "layers.0.blocks.0.attn.qkv.weight": "features.1.0.attn.qkv.weight",
    "layers.0.blocks.1.mlp.fc1.weight": "features.1.1.mlp.0.weight",
    "layers.2.blocks.17.mlp.fc2.bias": "features.5.17.mlp.3.bias",
    "layers.3.blocks.0.norm2.weight": "features.7.0.norm2.weight",
    "layers.1.blocks.1.attn.relative_position_bias_table": (
        "features.3.1.attn.relative_position_bias_table"
    ),
    "norm.weight": "norms.2.weight",
    "norm.bias": "norms.2.bias",
}
HALVINGS = {  # (in timm's files, the authors') and torchvision's
    ("layers.1.downsample.norm.weight", "layers.0.downsample.norm.weight"): (
        "features.2.norm.weight"
    ),
    ("layers.3.downsample.reduction.weight", "layers.2.downsample.reduction.weight"): (
        "features.6.reduction.weight"
    ),
}
DROPPED = (
    "head.weight",
    "head.fc.bias",
    "layers.0.blocks.0.attn.relative_position_index",
    "layers.0.blocks.1.attn_mask",
)


def narrow():
    """A quarter of swin_t's channels."""
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7])


@pytest.fixture(scope="module")
def library():
    network = narrow().eval()
    nn.init.uniform_(network.norm.weight, 0.5, 1.5)
    return network


@torch.no_grad()
def test_maps_are_those_of_torchvision(library):
    ours = swin.Swin(narrow).eval()
    backbone_weights.load(ours, swin.renamed(library.state_dict()))
    x = torch.randn(1, 3, 64, 96)
    expected, y = [], x
    for index, layer in enumerate(library.features):
        y = layer(y)
        if index in swin.STAGES:
            expected.append(y)
    expected = [
        nn.functional.layer_norm(expected[0], (48,)),  # untrained
        nn.functional.layer_norm(expected[1], (96,)),
        library.norm(expected[2]),
    ]
    for found, wanted in zip(ours(x), expected, strict=True):
        assert torch.equal(found, wanted.permute(0, 3, 1, 2))


@torch.no_grad()
def test_one_map_alone_has_a_norm(library):
    ours = swin.Swin(narrow, maps=1).eval()
    backbone_weights.load(ours, swin.renamed(library.state_dict()))
    assert [type(norm) for norm in ours.norms] == [nn.Identity, nn.Identity, nn.LayerNorm]
    whole = swin.Swin(narrow)
    backbone_weights.load(whole, ours.state_dict())
    backbone_weights.load(ours, whole.state_dict())
    assert torch.equal(whole.norms[2].weight, library.norm.weight)
    assert torch.equal(whole.norms[0].weight, torch.ones(48))


def test_a_file_without_the_last_norm_leaves_it_fresh(library):
    file = {k: v for k, v in library.state_dict().items() if not k.startswith("norm.")}
    ours = swin.Swin(narrow)
    backbone_weights.load(ours, swin.renamed(file))
    assert torch.equal(ours.norms[2].weight, torch.ones(192))


@pytest.mark.parametrize("column", [0, 1])
def test_names_of_timm_and_of_the_authors(column):
    state = {name: torch.ones(1) for name in (*NAMES, *DROPPED)}
    state |= {names[column]: torch.ones(1) for names in HALVINGS}
    assert swin.renamed(state).keys() == {*NAMES.values(), *HALVINGS.values()}


def test_files_of_other_networks_are_not_its_own():
    with torch.device("meta"):
        other = torchvision.models.mobilenet_v3_small().state_dict()
    assert swin.renamed(other) is None


def test_tables_of_positions_and_norms_do_not_decay():
    with torch.device("meta"):
        network = swin.swin_t()
    decayed = {id(p) for g in param_groups(network, 0.05) if g["weight_decay"] for p in g["params"]}
    for name, parameter in network.named_parameters():
        free = parameter.dim() == 1 or name.endswith("relative_position_bias_table")
        assert (id(parameter) in decayed) != free, name


def test_what_is_computed_is_not_saved():
    with torch.device("meta"):
        network = swin.swin_t()
    assert not [name for name in network.state_dict() if name.endswith("index")]
    assert network.features[1][0].attn.relative_position_index.shape == (49 * 49,)
