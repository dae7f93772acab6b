import copy
import math

import pytest
import torch
from torch import nn

from utils.ema import Ema, move_by


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def train(model):
    """Changes weights, statistics and the counter."""
    model.train()(torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


# n updates -> decay, of the reference's schedule
@pytest.mark.parametrize(
    "n, decay", [(1, 4.998e-4), (100, 0.04876), (2000, 0.63199), (20000, 0.99975)]
)
def test_decay_table(n, decay):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model)
    ema.updates = n - 1
    nn.init.ones_(model.weight)
    ema.update(model)
    assert 1 - ema.model.weight.item() == pytest.approx(decay, rel=1e-3)


@pytest.mark.parametrize("skip", [None, torch.zeros(()), torch.tensor(False)])
def test_equals_the_formula_for_weights_and_statistics(skip):
    model = net()
    ema = Ema(model, decay=0.9, ramp=3)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for n in range(1, 6):
        train(model)
        ema.update(model, skip)
        decay = 0.9 * (1 - math.exp(-n / 3))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert ema.model[1].num_batches_tracked == 5


@pytest.mark.parametrize("skip", [torch.ones(()), torch.tensor(True)])
def test_skipped_update_changes_no_float(skip):
    model = net()
    ema = Ema(model)
    train(model)
    ema.update(model)
    before = copy.deepcopy(ema.model.state_dict())
    train(model)
    ema.update(model, skip)
    for name, value in ema.model.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith("num_batches_tracked")


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_weight_on_the_device_moves_as_a_number_does(weight):
    averages, values = ([torch.randn(3), torch.randn(2, 2)] for _ in range(2))
    expected = torch._foreach_lerp(averages, values, weight)
    move_by(averages, values, torch.tensor(weight))
    assert all(torch.allclose(a, b) for a, b in zip(averages, expected, strict=True))


def test_model_is_apart_in_eval_mode_without_gradients():
    model = net().train()
    ema = Ema(model)
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_state_round_trip_goes_on_to_the_same_bits():
    model = net()
    one = Ema(model, decay=0.9, ramp=5)
    train(model)
    one.update(model)
    other = Ema(net(), decay=0.9, ramp=5)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    train(model)
    one.update(model)
    other.update(model)
    assert one.updates == other.updates == 2
    for a, b in zip(
        one.model.state_dict().values(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_model_without_integers_or_buffers():
    model = nn.Linear(2, 2)
    Ema(model).update(model)


def test_shared_tensors_are_averaged_once_and_unsaved_ones_left():
    one = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(one.weight)
    model = nn.ModuleDict({"a": one, "b": one})
    model.register_buffer("grid", torch.zeros(2), persistent=False)
    ema = Ema(model, decay=0.5, ramp=1e-9)
    nn.init.ones_(one.weight)
    model.grid = torch.ones(3)
    ema.update(model)
    assert ema.model["a"].weight.item() == 0.5
    assert ema.model.grid.tolist() == [0, 0]
