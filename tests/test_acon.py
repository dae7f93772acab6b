"""ACON and Meta-ACON: limits and gradients that the paper gives, and how they begin."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.acon import Acon, MetaAcon, acon


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)


def test_begins_as_silu():
    x = torch.randn(2, 8, 5, 5)
    assert torch.allclose(Acon(8)(x), F.silu(x), atol=1e-6)


def test_meta_acon_begins_as_swish_of_its_beta():
    part, x = MetaAcon(8), torch.randn(2, 8, 5, 5)
    beta = part.fc2(part.fc1(x.mean((2, 3), keepdim=True))).sigmoid()
    assert beta.shape == (2, 8, 1, 1)
    assert torch.allclose(part(x), x * (beta * x).sigmoid(), atol=1e-6)


def test_limits():
    x = torch.linspace(-3, 3, 25, dtype=torch.float64).view(1, 1, 5, 5)
    p1, p2 = column(1.2), column(-0.3)
    assert torch.allclose(acon(x, p1, p2, column(0.0)), (p1 + p2) / 2 * x)
    assert torch.allclose(acon(x, p1, p2, column(1e4)), torch.maximum(p1 * x, p2 * x))


def test_gradients_are_the_papers():
    torch.manual_seed(0)
    x, p1, p2, beta = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 4, 5), (1, 3, 1, 1), (1, 3, 1, 1), (2, 3, 1, 1))
    )
    acon(x, p1, p2, beta).sum().backward()
    d = p1 - p2
    z = beta * d * x
    s = z.sigmoid()
    rises = s * (1 + z * (1 - s))
    expected = {
        x: d * rises + p2,
        p1: x * rises,
        p2: x * (1 - rises),
        beta: (d * x) ** 2 * s * (1 - s),
    }
    for parameter, gradient in expected.items():
        summed = gradient.sum_to_size(parameter.shape)
        assert torch.allclose(parameter.grad, summed)


def test_second_channel_is_its_own():
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    both = acon(x, column(1.0, 2.0), column(0.5, -1.0), column(1.0, 3.0))
    for k, (p1, p2, beta) in enumerate(((1.0, 0.5, 1.0), (2.0, -1.0, 3.0))):
        alone = acon(x[:, k : k + 1], column(p1), column(p2), column(beta))
        assert torch.allclose(both[:, k : k + 1], alone)


def test_equals_the_formula():
    torch.manual_seed(0)
    x, beta = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 1, 1)
    p1, p2 = torch.randn(2, 1, 3, 1, 1)
    d = p1 - p2
    expected = d * x * (beta * d * x).sigmoid() + p2 * x
    assert torch.allclose(acon(x, p1, p2, beta), expected, atol=1e-6)


def test_keeps_the_dtype_of_the_map():
    x = torch.randn(1, 4, 3, 3).bfloat16()
    assert Acon(4)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("make", [Acon, MetaAcon])
def test_one_image_trains_it(make):
    part = make(20).train()
    x = torch.randn(1, 20, 1, 1, requires_grad=True)
    part(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in part.parameters())


def test_meta_acon_with_norms_is_for_weights_that_had_them():
    names = MetaAcon(48, norms=True).state_dict().keys()
    assert {"bn1.running_var", "bn2.weight"} <= names
    assert not any(name.startswith("bn") for name in MetaAcon(48).state_dict())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in MetaAcon(48).modules())


def test_hidden_channels():
    for channels, reduction, hidden in ((48, 16, 16), (512, 16, 32), (24, 8, 8), (192, 8, 24)):
        assert MetaAcon(channels, reduction=reduction).fc1.out_channels == hidden
