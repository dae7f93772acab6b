"""Counts of operations against published ones, a formula, and another counter."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import benchmark
import models
from benchmarks import flops
from models.attention import CoordAttention
from recipes import RECIPES, with_backbone
from utils.errors import UserError

# GMACs of convolutions at 224 x 224, the classifier left out: of the published networks. Of other
# sizes the parameters are known, in test_backbones.
GMACS = {
    "shufflenetv2-x1.0": 0.121,
    "mobilenetv3-small": 0.052,
    "mobilenetv3-large": 0.207,
    "mobilenetv2-ca": 0.285,
    "rexnet-1.0": 0.385,
    "rexnet-3.0": 3.288,
    "yolov5-s": 0.634,
    "resnet18": 1.814,
    "resnet50": 4.087,
}
# Of their form for inference; in training a block has two kernels more.
FUSED_GMACS = {"repvgg-a0": 1.360, "repvgg-b1g4": 7.305}
# Dense convolutions, those of single channels, and of maps of one pixel.
SMALLEST = ("resnet18", "shufflenetv2-x0.5", "mobilenetv3-small")


def gmacs(network: nn.Module, side: int = 224) -> float:
    return flops.counts(network, (side, side))[""] / 2e9


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return models.BACKBONES[name].build(**options).eval()


@pytest.mark.parametrize("name", GMACS)
def test_backbones_cost_what_is_published(name):
    # There without the classifier's last convolution.
    options = {"last_conv": False} if name.startswith("mobilenetv3") else {}
    assert gmacs(on_meta(name, **options)) == pytest.approx(GMACS[name], abs=0.0006)


@pytest.mark.parametrize("name", FUSED_GMACS)
def test_fused_backbones_cost_what_is_published(name):
    network = on_meta(name)
    fused = models.fuse(network)
    assert gmacs(fused) == pytest.approx(FUSED_GMACS[name], abs=0.0006)
    assert gmacs(network) > gmacs(fused)


@pytest.mark.parametrize("name", SMALLEST)
def test_convolutions_by_their_formula(name):
    network, expected = on_meta(name), []

    def add(conv: nn.Conv2d, _, out):
        kernel = math.prod(conv.kernel_size) * conv.in_channels // conv.groups
        expected.append(2 * kernel * out.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    assert flops.counts(network, (64, 96))[""] == sum(expected) > 0


def test_attention_s_products_are_counted():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, images):
            tokens = images.flatten(2).mT.repeat(1, 1, 3)[..., :8]  # [1, N, 8]
            return self.inside(tokens, tokens, tokens, need_weights=False)[0]

    with torch.device("meta"):
        network = Attention().eval()
    tokens, width = 4 * 6, 8
    projected = 4 * tokens * width * width
    compared = 2 * tokens * tokens * width  # queries with keys, and weights with values
    assert flops.counts(network, (4, 6))[""] == 2 * (projected + compared)


def test_coordinate_attention_works_on_strips():
    with torch.device("meta"):
        attention = CoordAttention(3).eval()
    hidden, strips = attention.conv1.out_channels, 8 + 12  # rows and columns
    assert flops.counts(attention, (8, 12))[""] == 2 * strips * (3 * hidden + hidden * 3)


@pytest.mark.parametrize("name, gflops", [("yolox-nano", 1.08), ("yolox-s", 26.8)])
def test_detectors_cost_what_is_published(name, gflops):
    """Their counter also counts batch norms and activations, ours does not."""
    recipe = RECIPES[name]
    model = flops.build(recipe, 80)
    whole, *parts = flops.parts(model, (recipe.img_size, recipe.img_size))
    assert 0.96 * gflops < whole.flops / 1e9 < gflops
    assert whole.parameters == {"yolox-nano": 912_159, "yolox-s": 8_968_255}[name]
    assert [part.name for part in parts] == ["backbone", "neck", "head"]
    twice = flops.parts(model, (recipe.img_size, 2 * recipe.img_size))[0]
    assert twice == whole._replace(flops=2 * whole.flops)


SMALL = ["yolox-nano", "yolof-r18-c5", "yoloft-nano", "yoloft-s-dcn", "yoloft-mstf-s"]


@pytest.mark.parametrize("name", SMALL)
def test_parts_and_layers_add_up(name):
    model = flops.build(RECIPES[name], 3)
    whole, *parts = flops.parts(model, (64, 96))
    layers = list(flops.layers(model, (64, 96)))
    assert len(layers) > len(parts) and min(layer.flops for layer in layers) >= 0
    for found in (parts, layers):
        assert sum(each.flops for each in found) == whole.flops > 0
        assert sum(each.parameters for each in found) == whole.parameters


def test_native_operators_are_counted():
    layers = flops.layers(flops.build(RECIPES["yoloft-s-dcn"], 3), (64, 64))
    assert any(layer.flops for layer in layers if layer.name.endswith(".dcnv3"))
    # 2 pixels of 4 channels in 2 groups, 9 taps, each mixed of 4 pixels and weighed.
    shapes = [1, 1, 2, 4], [1, 1, 2, 36], [1, 1, 2, 18]
    assert flops._dcnv3_flops(*shapes, 3, 1, 1, 1, 2, out_shape=[1, 1, 2, 4]) == 2 * 8 * 9 * 5
    # 9 outputs at each of 6 queries, of products of 5 channels, mixed of 4 pixels.
    lookup = flops._corr_lookup_flops([1, 5, 2, 3], [], [], 1, out_shape=[1, 9, 2, 3])
    assert lookup == 2 * 54 * 9


def test_another_backbone_and_attention():
    recipe = with_backbone(RECIPES["yolox-nano"], "resnet18")
    whole, backbone, *_ = flops.parts(flops.build(recipe, 3), (64, 64))
    assert backbone.parameters == 11_176_512 and backbone.gmacs == pytest.approx(
        gmacs(on_meta("resnet18"), 64)
    )
    attended = replace(recipe, model=replace(recipe.model, attention="coord"))
    more = flops.parts(flops.build(attended, 3), (64, 64))[0]
    assert more.parameters > whole.parameters and more.flops > whole.flops


def test_command(tmp_path, capsys):
    def run(*flags):
        flops.run(benchmark.parse_arguments("flops", list(flags)))
        return capsys.readouterr().out.splitlines()

    out = tmp_path / "flops.json"
    head, names, *rows = run("-v", "yolox-nano", "--shape", "64", "96", "--out", str(out))
    assert head == "one image of 64 x 96 (height x width), 80 classes"
    assert names.split() == ["model", "part", "parameters", "GMACs", "GFLOPs"]
    row = rows[0].split()
    assert row[:3] == ["yolox-nano", "all", "912,159"]
    assert float(row[4]) == pytest.approx(2 * float(row[3]), abs=2e-4)
    content = json.loads(out.read_text())
    whole = content["results"][0]
    assert content["input_hw"] == [64, 96] and whole["flops"] == 2 * whole["macs"] > 0
    lines = run("-v", "yolox-nano", "--shape", "64", "--per_layer")
    assert any("backbone.dark2.0.dconv.conv" in line for line in lines)
    with pytest.raises(UserError, match="height and width"):
        run("--shape", "64", "64", "64")
    with pytest.raises(UserError, match="did you mean yolox-nano"):
        run("-v", "yolox-nanno")
    parser = benchmark.parse_arguments("flops", [])
    assert parser.shape == [800, 1280]
