"""What is YOLOX's own: where it begins, its box losses, its numbers in 16 bits, its blocks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.layers import Focus, SPPBottleneck
from models.yolox import decode_cxcywh, encode_cxcywh
from tests.detectors import batch, build
from utils.errors import UserError


def test_batch_norm_is_yoloxs_and_predictions_begin_at_the_prior():
    model = build("yolox-nano")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    for conv in (*model.head.cls_preds, *model.head.obj_preds):
        assert conv.bias.sigmoid().tolist() == pytest.approx([0.01] * len(conv.bias))


@pytest.mark.parametrize("weights", [{}, {"l1": 1.0}])
def test_the_l1_term_is_there_if_a_stage_asks_for_it(weights):
    losses, _ = build("yolox-nano").train()(*batch(), weights=weights)
    assert (losses["l1"] > 0) == bool(weights)
    assert losses["divisor"] == losses["positives"] > 0
    assert losses["per_object"] == losses["positives"] / 6


def test_objects_without_a_positive_are_counted():
    images, targets = batch()
    model = build("yolox-nano").train()
    assert model.loss(images, targets)["unmatched"] == 0
    targets["boxes"][0, 0] += 10_000  # far beyond the last cell
    assert model.loss(images, targets)["unmatched"] == 1


def test_bfloat16_keeps_small_far_boxes():
    model = build("yolox-nano").eval()
    images, targets = batch(1, size=640, content=(640, 640))
    targets["boxes"] = torch.tensor([[[601.3, 555.2, 605.3, 559.2], [572, 600, 576, 604]]])
    targets["labels"], targets["valid"] = torch.tensor([[0, 1]]), torch.tensor([[True, True]])
    with torch.no_grad():
        exact = model.loss(images, targets, {"l1": 1.0})
        with torch.autocast("cpu", torch.bfloat16):
            half = model.loss(images, targets, {"l1": 1.0})
    assert half["loss"].dtype == torch.float32
    for name in ("loss", "iou", "obj", "cls", "l1"):
        assert half[name].item() == pytest.approx(exact[name].item(), rel=0.01), name


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_box_losses_and_costs_train(kind):
    model = build("yolox-nano", iou_loss=kind, assign_cost="ciou").train()
    losses, _ = model(*batch())
    losses["loss"].backward()
    assert losses["loss"].isfinite() and losses["iou"] > 0


def test_infinite_predictions_elsewhere_leave_gradients_finite():
    model = build("yolox-nano").train()
    with torch.no_grad():
        model.head.reg_preds[2].bias[2:] = 200  # exp overflows where nothing is matched
    images, targets = batch()
    targets["valid"] = torch.zeros_like(targets["valid"])
    losses, _ = model(images, targets, weights={"l1": 1.0})
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_decode_and_encode_round_trip():
    raw, cell, stride = torch.randn(9, 4), torch.rand(9, 2) * 50, torch.full((9, 1), 16.0)
    assert torch.allclose(
        encode_cxcywh(decode_cxcywh(raw, cell, stride), cell, stride), raw, atol=1e-4
    )
    one = decode_cxcywh(torch.zeros(4), torch.tensor([3.0, 2.0]), torch.tensor([8.0]))
    assert one.tolist() == [24, 16, 8, 8]


def test_focus_is_space_to_depth():
    focus, x = Focus(8, act="silu").eval(), torch.rand(2, 3, 32, 48) * 255
    parts = [x[..., a::2, b::2] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
    with torch.no_grad():
        assert torch.allclose(focus(x), focus.conv(torch.cat(parts, dim=1)), atol=1e-3)


def test_spp_is_three_pools():
    spp, x = SPPBottleneck(8, 8, act="silu").eval(), torch.randn(2, 8, 20, 17)
    with torch.no_grad():
        y = spp.conv1(x)
        pools = [F.max_pool2d(y, k, stride=1, padding=k // 2) for k in (5, 9, 13)]
        assert torch.equal(spp(x), spp.conv2(torch.cat((y, *pools), dim=1)))


def test_mistakes_are_told():
    model = build("yolox-nano")
    with pytest.raises(UserError, match="32 divides, not 64 x 60"):
        model.decode(torch.zeros(1, 3, 64, 60))
    with pytest.raises(UserError, match="'l2'; it can be iou, obj, cls, l1"):
        model(*batch(), weights={"l2": 1.0})
    with pytest.raises(UserError, match="siou"):
        build("yolox-nano", iou_loss="siou")
    with pytest.raises(UserError, match="gelu"):
        build("yolox-nano", act="gelu")
