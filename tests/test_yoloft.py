"""YOLOFT's own parts: blocks, memory and state, clips and the loss."""

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from cuda_ops import DCNv3
from models import c2f, temporal, yoloft
from models.anchors import cells
from models.yoloft import BINS, LONGEST, DySample, decode_sides, encode_sides
from recipes import RECIPES
from tests.detectors import CLASSES, SIZE, batch, build, loss_without_values, settled
from utils.boxes import pairwise_iou
from utils.checkpoint import load_weights
from utils.errors import UserError

CONSTANTS = 16  # of the reference's expectation over bins, counted in the published numbers
PUBLISHED = {
    "yoloft-s": 11_386_820,
    "yoloft-s-dcn": 11_933_706,
    "yoloft-s-p2": 8_572_842,
    "yoloft-m": 29_151_936,
    "yoloft-mstf-s": 13_022_124,
    "yoloft-mstf-l": 45_157_068,
}


@functools.cache
def kept(memory: str):
    torch.manual_seed(0)
    model = settled("yoloft-nano", memory=memory)
    for module in model.memory.modules():
        if isinstance(module, DCNv3):  # begins with 0: as if there were no memory
            nn.init.normal_(module.offset.weight)
            nn.init.normal_(module.mask.weight)
    return model


@pytest.fixture
def model():
    return copy.deepcopy(kept("gru")).eval()


@pytest.fixture(params=["gru", "deform", "mstf"])
def each(request):
    """The smallest network with each kind of memory."""
    return copy.deepcopy(kept(request.param)).eval()


def clip(frames: int, num: int = 2):
    """Clips of noise with the same three boxes in each frame."""
    each = [batch(num) for _ in range(frames)]
    targets = {name: torch.stack([t[name] for _, t in each], dim=1) for name in each[0][1]}
    return torch.stack([images for images, _ in each], dim=1), targets


# ---- network ----


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = models.build_model(RECIPES[name], [str(index) for index in range(8)])
    assert sum(p.numel() for p in model.parameters()) + CONSTANTS == PUBLISHED[name]


def test_every_norm_is_the_published_kind():
    with torch.device("meta"):
        model = models.build_model(RECIPES["yoloft-s-dcn"], CLASSES)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    deformable = [name for name, m in model.named_modules() if isinstance(m, c2f.DeformConv)]
    assert deformable == ["backbone.stages.1.1.m.1.cv2", "backbone.stages.2.1.m.1.cv2"]


def test_p2_gives_a_map_of_stride_4():
    with torch.device("meta"):
        backbone = c2f.c2f_nano(p2=True)
        maps = backbone(torch.empty(1, 3, 64, 96))
    assert tuple(x.shape[1] for x in maps) == backbone.channels
    assert [64 // x.shape[2] for x in maps] == list(backbone.strides) == [4, 8, 16, 32]


def test_other_backbones_and_sides():
    recipe = replace(RECIPES["yoloft-nano"], backbone="resnet18")
    with torch.device("meta"):
        model = models.build_model(recipe, CLASSES).eval()
        _, _, *state = model.decode(torch.empty(1, 3, 64, 64))
    assert [x.shape[1] for x in state] == [128, 256, 512]
    dilated = models.BACKBONES["resnet18"].build(dc5=True)
    with pytest.raises(UserError, match=r"gru needs maps of strides 8, 16, 32, not \(8, 16, 16"):
        models.DETECTORS["yoloft"](dilated, classes=("a",), depth=0.33, width=0.25)
    with pytest.raises(UserError, match="sides that 32 divides, not 40 x 64"):
        build("yoloft-nano").network(torch.zeros(1, 3, 40, 64))


@torch.no_grad()
def test_dysample_without_offsets_enlarges_bilinearly():
    layer = DySample(8)
    nn.init.zeros_(layer.offset.weight)
    nn.init.zeros_(layer.offset.bias)
    x = torch.randn(2, 8, 5, 7)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@torch.no_grad()
def test_dysample_moves_each_group_by_its_own_offsets():
    layer = DySample(8)
    nn.init.zeros_(layer.offset.weight)
    bias = torch.zeros(2, 4, 2, 2)  # (x, y), group, sub-pixel row and column
    bias[0, 1] = 4.0  # the second group reads one pixel to the right
    layer.offset.bias.copy_(bias.flatten())
    x = torch.randn(1, 8, 6, 6)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    moved = layer(x)
    assert torch.allclose(moved[:, 2:4, :, :-4], expected[:, 2:4, :, 2:-2], atol=1e-5)
    assert torch.allclose(moved[:, 4:], expected[:, 4:], atol=1e-5)


@torch.no_grad()
def test_gru_is_the_gated_step():
    gru = temporal.ConvGRU(6, 4)
    h, x = torch.randn(2, 6, 5, 5), torch.randn(2, 4, 5, 5)
    z, r = gru.gates(torch.cat((h, x), 1)).sigmoid().split(6, dim=1)
    q = gru.candidate(torch.cat((r * h, x), 1)).tanh()
    assert torch.allclose(gru(h, x), (1 - z) * h + z * q, atol=1e-6)
    separable = temporal.SepConvGRU(6, 4)
    assert torch.equal(separable(h, x), separable.columns(separable.rows(h, x), x))


def test_deformable_networks_do_not_wait_for_the_device():
    options = {"memory": "deform", "dcn": True}
    assert loss_without_values(lambda: build("yoloft-nano", **options)).shape == ()


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("memory", ["deform", "mstf"])
def test_the_gradient_reaches_every_parameter(memory, frames):
    """Of single images too: several processes wait for each other's gradient of every weight."""
    torch.manual_seed(0)
    model = build("yoloft-nano", memory=memory, dcn=True).train()
    images, targets = clip(frames)
    model(images, targets)[0]["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---- state ----


@torch.no_grad()
def test_what_was_seen_before_counts(each):
    images, targets = batch()
    first, state = each.step(images, targets["size"])
    again, newer = each.step(images, targets["size"], state)
    assert [x.shape for x in state] == [x.shape for x in each.example_state(2, (SIZE, SIZE))]
    assert max((a - b).abs().max() for a, b in zip(state, newer, strict=True)) > 1e-3
    assert not torch.equal(first[0]["scores"][:5], again[0]["scores"][:5])
    assert {x.dtype for x in state} == {torch.float32}


@torch.no_grad()
def test_only_rows_of_new_videos_forget(each):
    images, targets = batch()
    sizes = targets["size"]
    _, state = each.step(images, sizes)
    found, mixed = each.step(images, sizes, state, torch.tensor([True, False]))
    fresh, start = each.step(images, sizes)
    went_on, later = each.step(images, sizes, state)
    assert torch.allclose(found[0]["scores"], fresh[0]["scores"], atol=1e-6)
    assert torch.allclose(found[1]["scores"], went_on[1]["scores"], atol=1e-6)
    for one, begun, continued in zip(mixed, start, later, strict=True):
        assert torch.allclose(one[0], begun[0], atol=1e-6)
        assert torch.allclose(one[1], continued[1], atol=1e-6)


@torch.no_grad()
def test_a_state_that_is_not_a_number_is_forgotten_too(each):
    images, targets = batch()
    broken = tuple(torch.full_like(x, math.nan) for x in each.example_state(2, (SIZE, SIZE)))
    _, state = each.step(images, targets["size"], broken, torch.tensor([True, True]))
    assert all(x.isfinite().all() for x in state)


@torch.no_grad()
def test_another_size_starts_anew(each):
    images, targets = batch()
    _, state = each.step(images, targets["size"])
    wide = F.pad(images, (0, 32))
    _, new = each.step(wide, targets["size"], state)
    _, fresh = each.step(wide, targets["size"])
    assert all(torch.equal(a, b) for a, b in zip(new, fresh, strict=True))
    _, fewer = each.step(images[:1], targets["size"][:1], state)
    assert fewer[0].shape[0] == 1


@torch.no_grad()
def test_videos_in_rows_equal_videos_alone(each):
    """Two videos of different length in lock step: the shorter row takes up a third video. In
    float64, for an untrained head's scores are so near to each other that rounding orders them."""
    each = copy.deepcopy(each).double()
    videos = [[batch(1) for _ in range(length)] for length in (2, 4, 2)]
    alone = []
    for video in videos:
        alone.append(list(each.predict_video((x, t["size"]) for x, t in video)))
    rows = [[*videos[0], *videos[2]], videos[1]]

    def frames():
        for t in range(4):
            images = torch.cat([row[t][0] for row in rows])
            sizes = torch.cat([row[t][1]["size"] for row in rows])
            yield images, sizes, torch.tensor([t in (0, 2), t == 0])

    expected = [[*alone[0], *alone[2]], alone[1]]
    for t, found in enumerate(each.predict_video(frames())):
        for row in range(2):
            for name, value in found[row].items():
                assert torch.allclose(value, expected[row][t][0][name], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_model_that_forgets_has_no_memory_anywhere():
    torch.manual_seed(0)
    model = settled("yoloft-nano", forget=True).eval()
    images, targets = batch(content=(SIZE, SIZE))
    filled = model.fill_padding(images, targets["size"])
    _, state = model.step(images, targets["size"])
    for output, again in zip(model.decode(filled, *state)[:2], model.decode(filled), strict=False):
        assert torch.equal(output, again)
    found, again = (
        model.step(images, targets["size"], state)[0],
        model.predict(images, targets["size"]),
    )
    assert torch.equal(found[0]["scores"], again[0]["scores"])


@torch.no_grad()
def test_decode_carries_the_state_as_step_does(each):
    images, targets = batch(content=(SIZE, SIZE))
    state = each.example_state(2, (SIZE, SIZE))
    stepped = None
    for _ in range(3):
        boxes, scores, *state = each.decode(images.float(), *state)
        found, stepped = each.step(images, targets["size"], stepped)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(state, stepped, strict=True))
    best = scores[0].flatten().argmax()
    assert torch.allclose(found[0]["scores"][0], scores[0].max(), atol=1e-5)
    assert torch.allclose(found[0]["boxes"][0], boxes[0, best // len(CLASSES)], atol=1e-2)


@torch.no_grad()
def test_mixed_precision_keeps_the_memory_in_float32(each):
    images, targets = batch()
    _, exact = each.step(images, targets["size"])
    with torch.autocast("cpu", torch.bfloat16):
        _, state = each.step(images, targets["size"])
    assert [x.dtype for x in state] == [torch.float32] * len(state)
    for one, other in zip(state, exact, strict=True):
        assert (one - other).norm() < 0.1 * other.norm()


# ---- clips ----


def test_a_clip_is_its_frames_one_after_the_other(each):
    images, targets = clip(3)
    losses, state = each(images, targets)
    found_each, carried = [], None
    for frame_images, frame_targets in yoloft.frames_of(images, targets):
        found, carried = each(frame_images, frame_targets, carried)
        found_each.append(found)
    for name, value in losses.items():
        mean = sum(found[name] for found in found_each) / 3
        assert value.item() == pytest.approx(mean.item(), rel=1e-5)
    assert all(torch.allclose(a, b) for a, b in zip(state, carried, strict=True))


def test_one_pass_a_frame(each):
    images, targets = clip(3)
    before = each.backbone.stem.bn.num_batches_tracked.item()
    each.train()(images, targets)
    for module in each.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == before + 3


def test_the_gradient_goes_through_the_frames(each):
    """The loss of the last frame alone reaches the pixels of the first."""
    images, targets = clip(3, num=1)
    images = images.float().requires_grad_()
    each.train()
    (*_, last), state = yoloft.frames_of(images, targets), None
    for frame in yoloft.frames_of(images, targets)[:2]:
        _, state = each.frame_loss(*frame, state, yoloft.LOSS_WEIGHTS)
    each.frame_loss(*last, state, yoloft.LOSS_WEIGHTS)[0]["loss"].backward()
    assert all(images.grad[:, t].abs().sum() > 0 for t in range(3))


def test_a_step_takes_no_gradient_from_the_one_before(each):
    images, targets = batch()
    _, state = each.train()(images, targets)
    losses, newer = each(images, targets, state)
    losses["loss"].backward()  # the first step's graph is not asked for
    assert newer[0].requires_grad
    losses, _ = each(images, targets, newer)
    losses["loss"].backward()


@torch.no_grad()
def test_training_clears_the_rows_of_new_videos(each):
    images, targets = batch()
    _, state = each(images, targets)
    begins = {**targets, "new_video": torch.tensor([True, True])}
    fresh, _ = each(images, targets)
    cleared, _ = each(images, begins, state)
    assert torch.allclose(fresh["loss"], cleared["loss"])
    assert each(images, targets, state)[0]["loss"] != cleared["loss"]


# ---- loss ----


def test_sides_round_trip():
    """A distribution that is sure of two bins gives back the distance between them."""
    cell, stride = cells([(4, 4, 8)], "cpu")
    center = (cell + 0.5) * stride
    distances = torch.rand(16, 4) * 14.9
    boxes = torch.cat((center - distances[:, :2] * 8, center + distances[:, 2:] * 8), dim=1)
    wanted = encode_sides(boxes, cell, stride)
    assert torch.allclose(wanted, distances, atol=1e-5)
    below = distances.floor().long()[..., None]
    share = distances[..., None] - below
    odds = torch.full((16, 4, BINS), 1e-12).scatter(2, below, 1 - share + 1e-12)
    odds = odds.scatter(2, below + 1, share + 1e-12)
    assert torch.allclose(decode_sides(odds.log().flatten(1), cell, stride), boxes, atol=1e-2)
    far = encode_sides(torch.tensor([[-500.0, 20, 500, 30]]), cell[:1], stride[:1])
    assert far.tolist() == [
        [pytest.approx(LONGEST), 0.0, pytest.approx(LONGEST), pytest.approx(3.25)]
    ]


@torch.no_grad()
def test_the_loss_in_plain_form(model):
    """The sums are those of the dense targets, cross entropy over all locations and classes."""
    images, targets = batch()
    filled = model.fill_padding(images, targets["size"])
    sides, cls, *_ = model.outputs(filled)
    match = model.match(sides, cls, targets, filled)
    dense = torch.zeros_like(cls)
    for b, valid in enumerate(match.valid):
        labels = targets["labels"][b][match.gt[b][valid]]
        dense[b, match.location[b][valid], labels] = match.score[b][valid]
    expected = F.binary_cross_entropy_with_logits(cls, dense, reduction="sum")
    share = 0.5 / match.score.sum().clamp(min=1)
    losses = model.loss(images, targets)
    assert losses["cls"].item() == pytest.approx((expected * share).item(), rel=1e-4)
    assert losses["divisor"] == match.score.sum()
    found = [set(gt[valid].tolist()) for gt, valid in zip(match.gt, match.valid, strict=True)]
    missed = targets["valid"].sum() - sum(map(len, found))
    assert losses["unmatched"] == missed < targets["valid"].sum() / 2


@torch.no_grad()
def test_locations_in_ignored_regions_learn_no_class(model):
    images, targets = batch()
    plain = model.loss(images, targets)
    nowhere = {
        **targets,
        "ignore_boxes": torch.zeros(2, 1, 4),
        "ignore_valid": torch.zeros(2, 1).bool(),
    }
    assert model.loss(images, nowhere)["cls"] == plain["cls"]
    everywhere = {
        **targets,
        "ignore_boxes": torch.tensor([[[-1.0, -1, SIZE + 1, SIZE + 1]]]).repeat(2, 1, 1),
        "ignore_valid": torch.ones(2, 1).bool(),
    }
    masked = model.loss(images, everywhere)
    assert masked["positives"] == plain["positives"]
    assert masked["box"] == plain["box"] and masked["dfl"] == plain["dfl"]

    filled = model.fill_padding(images, targets["size"])
    sides, cls, *_ = model.outputs(filled)
    match = model.match(sides, cls, targets, filled)
    learns = model.learns(everywhere, filled, match)
    assert learns.sum() == plain["positives"] < learns.numel()
    assert 0 < masked["cls"] < plain["cls"]
    model.mask_ignored = False
    assert model.loss(images, everywhere)["cls"] == plain["cls"]


def test_ignored_regions_leave_no_gradient(model):
    images, targets = batch(boxes=False)
    targets["ignore_boxes"] = torch.tensor([[[-1.0, -1, SIZE + 1, SIZE + 1]]]).repeat(2, 1, 1)
    targets["ignore_valid"] = torch.ones(2, 1).bool()
    model.train()(images, targets)[0]["loss"].backward()
    assert all(not p.grad.any() for p in model.parameters())


def test_it_learns_what_it_sees():
    torch.manual_seed(0)
    model = build("yoloft-nano").train()
    images, targets = batch()
    images[:, :, 8:40, 8:40] = 250
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.2  # thirty steps are enough to know the statistics
    for _ in range(30):
        losses, _ = model(images, targets)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(losses["loss"].item())
    assert history[-1] < 0.3 * history[0]
    with torch.no_grad():
        found = model.eval().predict(images, targets["size"])[0]
    overlap, at = pairwise_iou(targets["boxes"][0, 1:3], found["boxes"]).max(1)
    assert overlap.min() > 0.7 and found["scores"][at].min() > 0.5
    assert torch.equal(found["labels"][at], targets["labels"][0, 1:3])


def test_other_classes_start_the_class_towers_anew():
    """They are wider for eighty classes than for three; all else is taken over."""
    many = build("yoloft-nano", classes=tuple(map(str, range(80))))
    few = build("yoloft-nano")
    skipped = load_weights(few, many.state_dict(), allow=few.class_layers)
    assert "head.cls_convs.0.0.conv.weight" in skipped and "head.cls_preds.0.bias" in skipped
    assert all(name.startswith("head.cls_") for name in skipped)
    assert torch.equal(few.head.box_preds[0].weight, many.head.box_preds[0].weight)
