"""A training step on clips, as the engine takes it, against the reference's loop in plain torch."""

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import engine
import recipes
from benchmarks import clip_loss
from benchmarks.clip import random_clips
from models import yoloft
from tests.detectors import build

SIDE, FRAMES = 64, 2


@functools.cache
def kept(memory: str):
    torch.manual_seed(0)
    return build("yoloft-nano", classes=tuple("abcdefgh"), memory=memory).train()


@pytest.fixture(params=["gru", "deform", "mstf"])
def model(request):
    return copy.deepcopy(kept(request.param))


@pytest.fixture
def gru():
    return copy.deepcopy(kept("gru"))


def trainer_of(model) -> engine.Trainer:
    recipe = recipes.with_sides(recipes.RECIPES["yoloft-nano"], SIDE)
    recipe = replace(recipe, batch_size=2, lr=1e-3, base_batch=2)
    return engine.Trainer(model, recipe, device=torch.device("cpu"), amp=False, per_epoch=[10])


def step(trainer: engine.Trainer, images, targets) -> dict:
    losses = trainer.backward(images, targets, {}, sync=True)
    trainer.update(losses["divisor"], torch.zeros(()))
    return losses


def passes(model) -> set[int]:
    """How often the norms have seen a batch."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return {norm.num_batches_tracked.item() for norm in norms}


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: dict, other: dict, rel: float):
    """The same tensors, up to a share of the longest."""
    assert one.keys() == other.keys()
    longest = max(tensor.norm() for tensor in other.values())
    assert longest > 0
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= rel * longest, name


def reference(model, images, targets):
    return clip_loss.reference(model, images, targets, torch.channels_last)


def test_a_step_is_the_references_with_half_the_passes(gru):
    """Losses, and what the optimizer makes of their gradients; each norm sees a frame once."""
    images, targets = random_clips(2, FRAMES, SIDE, 5)
    ours, theirs = trainer_of(gru), trainer_of(copy.deepcopy(gru))
    losses = step(ours, images, targets)
    loss = reference(theirs.model, images, targets)
    assert losses["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    theirs.update(torch.ones(()), torch.zeros(()))
    learnt = dict(gru.named_parameters())
    for name, p in theirs.model.named_parameters():
        torch.testing.assert_close(learnt[name], p, rtol=1e-4, atol=1e-6)
    assert passes(ours.model) == {FRAMES} and passes(theirs.model) == {2 * FRAMES}


def test_gradients_are_the_references(model):
    images, targets = random_clips(2, FRAMES, SIDE, 5)
    own = gradients(model, model(images, targets)[0]["loss"])
    assert_same(own, gradients(model, reference(model, images, targets)), rel=1e-4)


def test_the_loss_of_a_clip_is_the_mean_of_its_frames_losses(gru):
    """Each by hand, from the outputs of the network with the state of the frame before; a frame
    without objects counts like any other."""
    images, targets = random_clips(2, FRAMES, SIDE, 5)
    targets["valid"][:, 1] = False
    losses, _ = gru(images, targets)
    state, each = gru.example_state(2, (SIDE, SIDE)), []
    for t in range(FRAMES):
        frame = images[:, t].float()
        sides, cls, *state = gru.network(frame, *state)
        cell, stride = yoloft.cells(gru.levels(frame), "cpu")
        own = {name: value[:, t] for name, value in targets.items()}
        each.append(clip_loss.frame_loss(sides, cls, cell + 0.5, stride, own).item())
    assert losses["loss"].item() == pytest.approx(sum(each) / FRAMES, rel=1e-5)
    assert min(each) < 0.5 * max(each)


def test_the_gradient_through_the_state_is_the_slope(gru):
    """Of the last frame's scores by the first frame's pixels: finite differences along it."""
    images, _ = random_clips(2, 2, SIDE, 5)
    first, last = (images[:, t].float() for t in range(2))

    def scores(first):
        _, _, *state = gru.network(first)
        return gru.network(last, *state)[1].sigmoid().mul(1000).sum()

    first.requires_grad_()
    (slope,) = torch.autograd.grad(scores(first), first)
    steep = slope.norm()
    reach = 4.0 * slope / steep
    with torch.no_grad():
        rise = (scores(first + reach) - scores(first - reach)) / 8
    assert steep > 0 and rise.item() == pytest.approx(steep.item(), rel=0.02)


def test_no_state_is_a_state_of_zeros(model):
    """It takes less arithmetic, and changes neither outputs nor gradients."""
    images, _ = random_clips(2, 1, SIDE, 5)
    frame = images[:, 0].float()
    found = []
    for state in ((), model.example_state(2, (SIDE, SIDE))):
        with torch.no_grad():
            maps = model.backbone(model.normalize(frame))
        fused, new = model.memory(maps, state)
        outputs = [*fused, *new]
        weighted = [x.square().sum() for x in fused] + [x.sum() for x in new if x.requires_grad]
        found.append((outputs, gradients(model, torch.stack(weighted).sum())))
    (begun, own), (zeros, expected) = found
    for one, other in zip(begun, zeros, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert_same(own, expected, rel=1e-5)


def test_a_step_of_new_videos_takes_nothing_over(model):
    images, targets = random_clips(2, 1, SIDE, 5)
    broken = tuple(torch.full_like(x, math.nan) for x in model.example_state(2, (SIDE, SIDE)))
    fresh, spoilt = trainer_of(copy.deepcopy(model)), trainer_of(model)
    spoilt.state = broken
    expected = fresh.backward(images, targets, {}, sync=True)
    losses = spoilt.backward(images, targets, {}, sync=True)
    assert losses["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    assert all(p.grad.isfinite().all() for p in spoilt.parameters if p.grad is not None)


def test_a_step_goes_on_where_a_video_does(gru):
    """Of two rows one goes on: the loss depends on the state."""
    images, targets = random_clips(2, 1, SIDE, 5)
    targets["new_video"] = torch.tensor([[False], [True]])
    trainer = trainer_of(gru)
    trainer.state = None
    anew = trainer.backward(images, targets, {}, sync=True)
    trainer.state = tuple(x + 0.5 for x in gru.example_state(2, (SIDE, SIDE)))
    went_on = trainer.backward(images, targets, {}, sync=True)
    assert abs(went_on["loss"] / anew["loss"] - 1) > 1e-4


def everywhere(frames: int, ignored: int) -> dict:
    """Regions that cover all of one frame."""
    regions = torch.tensor([-1.0, -1, SIDE + 1, SIDE + 1]).repeat(2, frames, 1, 1)
    there = torch.zeros(2, frames, 1, dtype=torch.bool)
    there[:, ignored] = True
    return {"ignore_boxes": regions, "ignore_valid": there}


def test_ignored_regions_carry_no_loss_in_clips(gru):
    """A frame that lies in one adds nothing, but is seen: the frame after it depends on it."""
    images, targets = random_clips(2, 2, SIDE, 0)
    images = images.float().requires_grad_()
    plain = gru(images, targets)[0]["loss"]
    frames = yoloft.frames_of(images, targets)
    alone, state = gru.frame_loss(*frames[0], None, yoloft.LOSS_WEIGHTS)
    second, _ = gru.frame_loss(*frames[1], state, yoloft.LOSS_WEIGHTS)
    assert plain.item() == pytest.approx((alone["loss"] + second["loss"]).item() / 2, rel=1e-5)

    last = gru(images, {**targets, **everywhere(2, 1)})[0]["loss"]
    assert last.item() == pytest.approx(alone["loss"].item() / 2, rel=1e-5)
    (slope,) = torch.autograd.grad(last, images)
    assert slope[:, 0].any() and not slope[:, 1].any()

    first = gru(images, {**targets, **everywhere(2, 0)})[0]["loss"]
    assert first.item() == pytest.approx(second["loss"].item() / 2, rel=1e-5)
    (slope,) = torch.autograd.grad(first, images)
    assert slope[:, 0].any() and slope[:, 1].any()


def test_objects_in_ignored_regions_still_learn(gru):
    images, targets = random_clips(2, 2, SIDE, 5)
    plain, _ = gru(images, targets)
    masked, _ = gru(images, {**targets, **everywhere(2, 1)})
    assert masked["box"] == plain["box"] and masked["dfl"] == plain["dfl"]
    assert masked["positives"] == plain["positives"] > 0
    assert 0 < masked["cls"] < plain["cls"]
