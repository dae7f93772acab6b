"""`fuse` folds norms into the convolutions that are computed before them, and nothing else."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import build_backbone
from models.acon import MetaAcon
from models.attention import CoordAttention
from models.fusing import ConvAct, fuse
from models.layers import ConvBNAct, Focus

WIDTH = 6
SMALLEST = (  # of each family with batch norms; resnet18 is in test_resnet
    "c2f-nano",
    "cspdarknet-nano",
    "mobilenetv2-ca",
    "mobilenetv3-small",
    "repvgg-a0",
    "rexnet-1.0",
    "shufflenetv2-x0.5",
    "yolov5-n",
)


class Crossed(nn.Module):
    """Registers its layers in an order that is not the one in which it computes: a fuser that goes
    by the order in which they stand, or by their names, takes the other norm."""

    def __init__(self):
        super().__init__()
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.conv1 = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=2)

    def forward(self, x):
        return self.bn1(self.conv2(F.relu(self.bn2(self.conv1(x)))))


def cleared(y):
    y[:, 0] = 0
    return y


class Mixed(nn.Module):
    """A convolution and norms, put to use by `compute(parts, x)`."""

    def __init__(self, compute, norm=nn.BatchNorm2d):
        super().__init__()
        self.compute = compute
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm1, self.norm2 = norm(3), norm(3)

    def forward(self, x):
        return self.compute(self, x)


# Where no norm may go: what the convolution gives is needed as it is, or the norm takes more.
KEPT = {
    "two norms": lambda m, x: m.norm1(y := m.conv(x)) + m.norm2(y),
    "used twice, with other norms": lambda m, x: m.norm1(m.conv(x)) + m.norm2(m.conv(x)),
    "used twice, once without": lambda m, x: m.norm1(m.conv(x)) + m.conv(x),
    "read beside the norm": lambda m, x: m.norm1(y := m.conv(x)) + y.mean(),
    "given beside the norm": lambda m, x: [m.norm1(y := m.conv(x)), y],
    "a view between": lambda m, x: m.norm1(m.conv(x).transpose(2, 3)),
    "written over before": lambda m, x: m.norm1(m.conv(x).mul_(2)),
    "written into before": lambda m, x: m.norm1(cleared(m.conv(x))),
    "another map too": lambda m, x: m.norm1(m.conv(x)) + m.norm1(x),
    "weight read elsewhere": lambda m, x: m.norm1(m.conv(x)) * m.conv.weight.sum(),
    "weight applied elsewhere": lambda m, x: m.norm1(m.conv(x)) + F.conv2d(x, m.conv.weight),
    "norm read elsewhere": lambda m, x: m.norm1(m.conv(x)) + m.norm1.running_var.sum(),
    "no convolution": lambda m, x: m.norm1(x) + m.norm2(x),
}


def lively(network: nn.Module) -> nn.Module:
    """In eval mode, with norms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            for values in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(values)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@torch.no_grad()
def check(network: nn.Module, x: torch.Tensor, left: int) -> nn.Module:
    """The fused network, which has so many norms left and gives the same, twice."""
    lively(network)
    before, expected = copy.deepcopy(network.state_dict()), network(x)
    fused = fuse(network, tuple(x.shape))
    assert norms(fused) == left and not fused.training
    for form in (fused, fuse(fused, tuple(x.shape))):
        for one, other in zip(form(x), expected, strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.items())
    return fused


def test_the_order_of_computing_decides():
    fused = check(Crossed(), torch.randn(2, 3, 9, 7), left=0)
    assert isinstance(fused.bn1, nn.Identity) and isinstance(fused.bn2, nn.Identity)
    assert fused.conv1.bias is not None and fused.conv2.groups == 2


@pytest.mark.parametrize("case", KEPT)
def test_norms_that_are_not_the_convolution_s_alone_stay(case):
    check(Mixed(KEPT[case]), torch.randn(2, 3, 5, 5), left=2)


def test_a_pair_used_twice_is_folded():
    twice = Mixed(lambda m, x: m.norm1(m.conv(m.norm1(m.conv(x)))))
    check(twice, torch.randn(2, 3, 5, 5), left=1)


def test_a_module_under_two_names_is_replaced_under_both():
    network = Mixed(lambda m, x: m.again(m.conv(x)))
    network.again = network.norm1
    check(network, torch.randn(2, 3, 5, 5), left=1)


def test_other_norms_are_left_alone():
    for norm in (lambda c: nn.GroupNorm(1, c), nn.InstanceNorm2d):
        check(Mixed(lambda m, x: m.norm1(m.conv(x)), norm), torch.randn(2, 3, 5, 5), left=0)
    plain = Mixed(lambda m, x: m.norm1(m.conv(x)))
    plain.norm1 = nn.BatchNorm2d(3, affine=False)
    plain.norm2 = nn.BatchNorm2d(3, track_running_stats=False)
    fused = fuse(plain.eval())
    assert norms(fused) == 2


def test_the_activation_that_follows_joins():
    layers = OrderedDict(
        conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), act=nn.ReLU6(inplace=True),
        last=nn.Conv2d(4, 4, 1), gate=nn.Hardsigmoid(),
    )  # fmt: skip
    fused = check(nn.Sequential(layers), torch.randn(2, 3, 9, 9), left=0)
    assert isinstance(fused.conv, ConvAct) and isinstance(fused.conv.act, nn.ReLU6)
    assert isinstance(fused.last.act, nn.Hardsigmoid) and isinstance(fused.act, nn.Identity)


def test_an_activation_in_place_that_is_read_twice_stays_where_it_is():
    act = nn.ReLU(inplace=True)
    network = Mixed(lambda m, x: act(y := m.norm1(m.conv(x))) + y)
    network.act = act
    fused = check(network, torch.randn(2, 3, 5, 5), left=1)
    assert isinstance(fused.norm1, nn.Identity)


def test_blocks_and_parts_of_networks():
    x = torch.randn(2, 8, 8, 12)
    check(ConvBNAct(8, 6, 3, 2, act="silu"), x, left=0)
    check(CoordAttention(8), x, left=0)
    check(MetaAcon(8, norms=True), x, left=0)
    check(Focus(5, act="lrelu"), torch.randn(1, 3, 8, 12), left=0)
    both = nn.Sequential(ConvBNAct(3, 8, 1, act="silu"), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    fused = check(both, torch.randn(1, 3, 8, 12), left=0)
    assert isinstance(fused[0].conv, nn.Conv2d) and isinstance(fused[1], nn.Conv2d)
    frozen = nn.Sequential(
        OrderedDict(a=ConvBNAct(3, 8, 1, act="none"), b=ConvBNAct(8, 4, 1, act="relu"))
    )
    check(frozen, torch.randn(1, 3, 8, 12), left=0)


def test_folding_is_exact():
    """A norm of a tiny variance: in float32 the folded bias would lose what the numbers have."""
    torch.manual_seed(3)
    block = lively(ConvBNAct(16, 16, 3, act="none"))
    nn.init.uniform_(block.bn.running_var, 1e-6, 1e-4)
    x = torch.randn(1, 16, 12, 12)
    with torch.no_grad():
        wanted = copy.deepcopy(block).double()(x.double())
        error = (fuse(block).double()(x.double()) - wanted).abs().max() / wanted.abs().max()
    assert error < 2e-7  # rounding of the weights themselves


@pytest.mark.parametrize("name", SMALLEST)
def test_no_norm_is_left_in_a_backbone(name):
    network = build_backbone(name, {})
    fused = check(network, torch.randn(1, 3, 64, 64), left=0)
    convs = [sum(isinstance(m, nn.Conv2d) for m in net.modules()) for net in (fused, network)]
    assert convs[0] <= convs[1]


def test_attention_on_the_maps_is_fused_too():
    check(build_backbone("cspdarknet-nano", {"attention": "coord"}), torch.randn(1, 3, 64, 64), 0)


def test_a_network_without_values_is_fused_too():
    with torch.device("meta"):
        fused = fuse(build_backbone("mobilenetv3-small", {}))
    assert norms(fused) == 0 and next(fused.parameters()).is_meta
