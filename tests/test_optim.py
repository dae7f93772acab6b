from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from recipes import Schedule
from utils import optim


@dataclass
class Numbers:
    optimizer: str = "sgd"
    lr: float = 0.01
    weight_decay: float = 5e-4
    nesterov: bool = True
    part_lr: tuple = ()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.PReLU(4)
        self.pred = nn.Conv2d(4, 2, 1)
        self.tied = self.pred  # seen twice, to be trained once
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x):
        return self.pred(self.act(self.bn(self.conv(x))))


def test_groups_in_order_and_each_parameter_once():
    net = Net()
    groups = optim.param_groups(net, 5e-4)
    assert [group["name"] for group in groups] == ["norm", "weight", "bias"]
    assert [group["weight_decay"] for group in groups] == [0, 5e-4, 0]
    assert all(group["scale"] == 1 for group in groups)
    names = {id(p): n for n, p in net.named_parameters()}
    members = [[names[id(p)] for p in group["params"]] for group in groups]
    assert members == [
        ["bn.weight", "act.weight"],
        ["conv.weight", "pred.weight"],
        ["bn.bias", "pred.bias"],
    ]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_is_fused_and_can_be_masked(kind):
    torch.manual_seed(0)
    net = Net()
    optimizer = optim.build_optimizer(net, Numbers(optimizer=kind))
    assert all(group["fused"] for group in optimizer.param_groups)
    before = [p.clone() for p in net.parameters()]
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not torch.equal(before[0], net.conv.weight)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_of_sgd(nesterov):
    group = optim.build_optimizer(Net(), Numbers(nesterov=nesterov)).param_groups[1]
    assert group["momentum"] == 0.9 and group["nesterov"] is nesterov
    assert group["weight_decay"] == 5e-4


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="lion"):
        optim.build_optimizer(Net(), Numbers(optimizer="lion"))


# 300 epochs of 100 steps, 5 of warm-up, 15 at the least rate: the reference's values.
@pytest.mark.parametrize(
    "step, lr",
    [
        (0, 0.0),
        (1, 4e-8),
        (50, 1.0e-4),
        (250, 0.0025),
        (500, 0.01),
        (5000, 0.00940731),
        (14500, 0.00525),
        (25000, 8.61572e-4),
        (28500, 5e-4),
        (29999, 5e-4),
        (30000, 5e-4),
    ],
)
def test_lr_table(step, lr):
    value = optim.lr_at(step, base=0.01, total=30000, warmup=500, plain=1500, least=0.05)
    assert value == pytest.approx(lr, rel=1e-6, abs=1e-15)


def test_warmup_and_no_warmup():
    options = {"base": 1.0, "total": 100, "plain": 0}
    assert optim.lr_at(5, warmup=10, **options) == pytest.approx(0.25)
    assert optim.lr_at(0, warmup=0, **options) == 1.0


def test_lr_of_very_short_runs():
    for total in range(1, 6):
        for warmup in range(total + 1):
            for plain in range(total + 2):
                for step in range(total + 1):
                    lr = optim.lr_at(step, base=1.0, total=total, warmup=warmup, plain=plain)
                    assert 0 <= lr <= 1


def scheduled(updates, **changes):
    plan = replace(Schedule(), **changes)
    return optim.schedule_of(SimpleNamespace(schedule=plan), updates, 1.0)


def test_warmup_is_capped_in_short_runs():
    assert scheduled([100] * 300)["warmup"] == 500
    assert scheduled([100] * 10)["warmup"] == 100
    assert scheduled([1] * 5)["warmup"] == 0
    assert scheduled([100] * 10, most_warmup=0.2)["warmup"] == 200


def test_steps_and_the_kinds_of_warmup():
    steps = {"fall": "steps", "steps": (0.5, 0.75), "warmup": 1.0}
    plan = scheduled([10] * 10, **steps, rise="linear", rise_from=0.1)
    assert plan["warmup"] == 10
    found = [optim.lr_at(update, **plan) for update in (0, 5, 10, 49, 50, 74, 75, 99)]
    assert found == pytest.approx([0.1, 0.55, 1, 1, 0.1, 0.1, 0.01, 0.01])
    plan = scheduled([10] * 10, **steps, rise="exp")
    assert [optim.lr_at(update, **plan) for update in (0, 5, 10)] == pytest.approx([0, 0.0625, 1])


def test_a_backbone_at_its_own_rate_has_its_own_groups():
    net = nn.Module()
    net.backbone, net.head = Net(), Net()
    groups = optim.param_groups(net, 5e-4, (("backbone", 0.25),))
    assert [group["name"] for group in groups[3:]] == [
        "backbone norm",
        "backbone weight",
        "backbone bias",
    ]
    assert [group["scale"] for group in groups] == [1, 1, 1, 0.25, 0.25, 0.25]
    assert [group["weight_decay"] for group in groups] == [0, 5e-4, 0] * 2
    for near, far in zip(groups[:3], groups[3:], strict=True):
        assert [p.shape for p in near["params"]] == [p.shape for p in far["params"]]


def test_scaled_lr():
    assert optim.scaled_lr(0.01, 64, 64)[0] == 0.01
    lr, text = optim.scaled_lr(0.01, 64, 8)
    assert lr == 0.00125 and text == "lr 0.00125 = 0.01 x 8 / 64, by images per update"
    lr, text = optim.scaled_lr(0.001, 64, 16, "adamw")
    assert lr == pytest.approx(0.0005) and "sqrt(16 / 64)" in text


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_masked_first_step_is_as_if_it_had_not_been(kind):
    results = []
    for first_masked in (True, False):
        torch.manual_seed(0)
        net = Net()
        optimizer = optim.build_optimizer(net, Numbers(optimizer=kind))
        for masked in (True, False, False) if first_masked else (False, False):
            net(torch.ones(2, 3, 8, 8)).sum().backward()
            optimizer.found_inf = torch.tensor(float(masked))
            optimizer.step()
            optimizer.zero_grad()
        results.append([parameter.detach().clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
