"""Coordinate attention by itself, and on the maps of a backbone."""

import pytest
import torch
from torch import nn

from models import backbone_weights
from models.attention import Attended, CoordAttention
from models.layers import RGB_PIXELS


class Maps(nn.Module):
    """A backbone that gives what it is given."""

    channels, strides, pixels = (16, 32, 64), (8, 16, 32), RGB_PIXELS

    def forward(self, x):
        return x


def plain(part, x):
    """The paper's formulas, one image, row and column after the other."""
    out = torch.empty_like(x)
    for image in range(len(x)):
        rows = x[image].mean(2)  # [C, H]
        columns = x[image].mean(1)  # [C, W]
        both = torch.cat((rows, columns), 1)  # [C, H + W]
        norm = part.bn1
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        hidden = part.conv1.weight[:, :, 0, 0] @ both + part.conv1.bias[:, None]
        hidden = (hidden - norm.running_mean[:, None]) * scale[:, None] + norm.bias[:, None]
        hidden = hidden * (hidden + 3).clamp(0, 6) / 6
        of_rows, of_columns = hidden.split((rows.shape[1], columns.shape[1]), 1)
        gate_h = part.conv_h.weight[:, :, 0, 0] @ of_rows + part.conv_h.bias[:, None]
        gate_w = part.conv_w.weight[:, :, 0, 0] @ of_columns + part.conv_w.bias[:, None]
        out[image] = x[image] * gate_h.sigmoid()[:, :, None] * gate_w.sigmoid()[:, None]
    return out


@torch.no_grad()
def test_equals_the_formulas():
    torch.manual_seed(0)
    part = CoordAttention(48).eval()
    nn.init.uniform_(part.bn1.running_mean, -1, 1)
    nn.init.uniform_(part.bn1.running_var, 0.5, 2)
    nn.init.normal_(part.conv_h.bias)
    x = torch.randn(2, 48, 5, 9)
    assert torch.allclose(part(x), plain(part, x), atol=1e-6)


@pytest.mark.parametrize(("channels", "hidden"), [(16, 8), (256, 8), (512, 16), (960, 30)])
def test_hidden_channels(channels, hidden):
    with torch.device("meta"):
        assert CoordAttention(channels).conv1.out_channels == hidden


@torch.no_grad()
def test_fresh_gates_are_open():
    x = torch.randn(2, 64, 8, 8)
    ratio = CoordAttention(64).eval()(x) / x
    assert 0.8 < ratio.min() and ratio.max() < 1


def test_one_image_trains_it():
    part = CoordAttention(16).train()
    x = torch.randn(1, 16, 3, 4, requires_grad=True)
    part(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in part.parameters())


@pytest.mark.parametrize("maps", [1, 3])
@torch.no_grad()
def test_the_maps_that_are_used_are_attended(maps):
    backbone = Attended(Maps(), maps=maps).eval()
    assert backbone.channels == (16, 32, 64) and backbone.pixels is RGB_PIXELS
    given = [torch.randn(1, c, 4, 4) for c in backbone.channels]
    for index, (one, other) in enumerate(zip(backbone(given), given, strict=True)):
        assert torch.equal(one, other) == (index < 3 - maps)


def test_weights_of_a_detector_on_more_or_fewer_maps():
    all_maps, last = Attended(Maps(), maps=3), Attended(Maps(), maps=1)
    backbone_weights.load(last, all_maps.state_dict())
    assert torch.equal(last.attention[2].conv1.weight, all_maps.attention[2].conv1.weight)
    other = Attended(Maps(), maps=3)
    before = other.attention[0].conv1.weight.clone()
    backbone_weights.load(other, last.state_dict())
    assert torch.equal(other.attention[2].conv1.weight, last.attention[2].conv1.weight)
    assert torch.equal(other.attention[0].conv1.weight, before)
