import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.cspdarknet import cspdarknet_nano
from models.layers import RAW_PIXELS
from models.losses import sigmoid_focal
from models.yolof import LOGIT_CLAMP, YOLOF, flat, joint_logits
from tests.detectors import CLASSES, SIZE, batch, loss_without_values
from utils.boxes import iou
from utils.errors import UserError


class Shrink(nn.Module):
    """A backbone that is nothing but means of 32 x 32 pixels."""

    pixels, strides, channels = RAW_PIXELS, (32,), (3,)

    def forward(self, x):
        return [F.avg_pool2d(x, 32, ceil_mode=True)]


def build(backbone=None, **options):
    torch.manual_seed(1)
    return YOLOF(backbone or Shrink(), classes=CLASSES, sides=(SIZE, SIZE), **options)


# ---- focal loss and implicit objectness ----


@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_focal_loss_and_its_gradient_are_the_formulas(gamma):
    logits = torch.linspace(-12, 12, 49, dtype=torch.float64).requires_grad_()
    for kind in (True, False):
        targets = torch.full(logits.shape, kind)
        p = logits.sigmoid() if kind else 1 - logits.sigmoid()
        expected = (0.25 if kind else 0.75) * (1 - p) ** gamma * -p.log()
        loss = sigmoid_focal(logits, targets, gamma=gamma)
        assert torch.allclose(loss, expected, rtol=1e-6)
        weight = torch.rand_like(logits)
        ours, theirs = (torch.autograd.grad((x * weight).sum(), logits) for x in (loss, expected))
        assert torch.allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-9)


def test_focal_gradients_of_any_logit_are_finite():
    logits = torch.tensor([-200.0, -90, 0, 90, 200]).repeat(2, 1).requires_grad_()
    targets = torch.tensor([[True], [False]]).expand(2, 5)
    loss = sigmoid_focal(logits, targets)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    assert loss[0, 0].item() == pytest.approx(0.25 * 200) and loss[0, 4] == 0
    assert logits.grad[0, 0].item() == pytest.approx(-0.25) and logits.grad[0, 4] == 0
    assert loss[1, 4].item() == pytest.approx(0.75 * 200) and loss[1, 0] == 0


def test_joint_scores_are_products_and_large_logits_have_finite_gradients():
    cls, obj = 4 * torch.randn(2, 7, 3), 4 * torch.randn(2, 7)
    joint = joint_logits(cls, obj, LOGIT_CLAMP)
    assert torch.allclose(joint.sigmoid(), cls.sigmoid() * obj.sigmoid()[..., None], atol=1e-6)
    cls = torch.tensor([[[-200.0, 90, 200]]]).requires_grad_()
    obj = torch.tensor([[200.0]]).requires_grad_()
    joint = joint_logits(cls, obj, LOGIT_CLAMP)
    joint.sum().backward()
    assert joint[0, 0, 0].item() == pytest.approx(-math.log(1e8), abs=1e-3)
    assert cls.grad.isfinite().all() and obj.grad.isfinite().all()


# ---- the network ----


def test_begins_as_the_paper_says():
    model = build()
    assert model.head.cls_pred.bias.sigmoid().tolist() == pytest.approx([0.01] * 15)
    assert model.head.obj_pred.bias.tolist() == [0] * 5
    normal = [conv for conv in model.head.modules() if isinstance(conv, nn.Conv2d)]
    normal += [conv for conv in model.neck.blocks.modules() if isinstance(conv, nn.Conv2d)]
    assert len(normal) == 9 + 12
    assert all(0.005 < conv.weight.std() < 0.015 and conv.bias is not None for conv in normal)
    for conv in model.neck.lateral.conv, model.neck.fpn.conv:
        bound = math.sqrt(3 / conv.weight[0].numel())
        assert 0.99 * bound < conv.weight.abs().max() <= bound and not conv.bias.any()
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)} and len(norms) == 20
    _, scores = model.eval().decode(torch.rand(1, 3, SIZE, SIZE))
    assert scores.mean().item() == pytest.approx(0.005, abs=0.001)


def test_as_many_parameters_as_the_official_network():
    with torch.device("meta"):
        wide = Shrink()
        wide.channels = (2048,)
        model = YOLOF(wide, classes=[str(index) for index in range(80)])
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    assert (round(count["neck"] / 1e6, 2), round(count["head"] / 1e6, 2)) == (4.53, 16.12)


def test_channels_are_anchor_major_and_rows_by_cell():
    x = torch.arange(2 * 6 * 3 * 4).view(2, 6, 3, 4)  # 2 anchors of 3 outputs
    rows = flat(x, 2)
    assert rows.shape == (2, 3 * 4 * 2, 3)
    assert rows[1, (2 * 4 + 3) * 2 + 1].tolist() == x[1, 3:, 2, 3].tolist()


def test_sides_that_the_stride_does_not_divide():
    model = build().eval()
    images = torch.rand(1, 3, 70, 100) * 255
    boxes, scores = model.decode(images)
    assert boxes.shape == (1, 3 * 4 * 5, 4) and scores.shape == (1, 3 * 4 * 5, 3)


def test_any_backbone_by_its_last_map():
    model = build(cspdarknet_nano(act="silu"), head_kernel=1, head_act="lrelu").train()
    losses, state = model(*batch())
    losses["loss"].backward()
    assert state is None and losses["loss"].isfinite()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---- losses ----


@pytest.mark.parametrize("matcher", ["uniform", "iou_topk", "l1_topk"])
def test_losses_are_what_they_say(matcher):
    model = build(matcher=matcher, ignore_on="anchors").eval()
    images, targets = batch()
    losses, _ = model(images, targets)
    assert losses["loss"].item() == pytest.approx((losses["cls"] + losses["box"]).item())
    assert not any(value.requires_grad for name, value in losses.items() if name != "loss")
    shown = model.positives(images, targets)
    pairs = sum(len(image["gt"]) for image in shown)
    assert losses["per_object"].item() == pytest.approx(pairs / 6)
    missed = sum(3 - len(image["gt"].unique()) for image in shown)
    assert losses["unmatched"] == missed
    assert losses["divisor"] == losses["positives"] <= pairs
    weighted, _ = model(images, targets, weights={"cls": 0.0, "box": 2.0})
    assert weighted["cls"] == 0 and weighted["box"].item() == pytest.approx(
        2 * losses["box"].item()
    )


def test_dividing_by_image_or_by_batch():
    images, targets = batch()
    targets["valid"][1] = False
    by_batch = build(loss_norm="batch").eval().loss(images, targets)
    by_image = build(loss_norm="image").eval().loss(images, targets)
    first, second = (
        build(loss_norm="batch")
        .eval()
        .loss(images[i : i + 1], {key: value[i : i + 1] for key, value in targets.items()})
        for i in range(2)
    )
    assert by_image["divisor"] == 2 and by_batch["divisor"] == first["divisor"] > 1
    mean = (first["loss"] + second["loss"]) / 2
    assert by_image["loss"].item() == pytest.approx(mean.item(), rel=1e-4)
    total = first["loss"] + second["loss"] / first["divisor"]
    assert by_batch["loss"].item() == pytest.approx(total.item(), rel=1e-4)


def test_cells_of_the_padding_have_no_loss_with_the_mask():
    images, targets = batch(1, size=128, content=(40, 60))
    model = build().eval()
    cells = torch.arange(16).view(4, 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True  # corners at 0 and 32 lie within (40, 60)
    inside = model.inside(images, targets["size"])
    assert inside.view(16, 5).all(1)[cells].equal(expected) and inside.sum() == 4 * 5
    assert build(image_mask=False).inside(images, targets["size"]).all()
    masked = model.loss(images, targets)
    model.image_mask = False
    whole = model.loss(images, targets)
    assert masked["cls"] < whole["cls"] and masked["divisor"] == whole["divisor"]


def test_the_loss_is_that_of_the_formulas():
    model = build(image_mask=False).eval()
    images, targets = batch(1)
    losses = model.loss(images, targets)
    images = model.fill_padding(images, targets["size"])
    boxes, scores = model.decode(images)
    raw, obj, cls = model.outputs(images)
    inside = model.inside(images, targets["size"])
    match = model.match(raw, targets, model.anchors(images), inside)
    total = 0.0
    for m, owner in enumerate(match.owner[0].tolist()):
        for c in range(3):
            p = scores[0, m, c].item()
            if owner >= 0 and targets["labels"][0, owner] == c:
                total -= 0.25 * (1 - p) ** 2 * math.log(p)
            elif owner != -2:
                total -= 0.75 * p**2 * math.log(1 - p)
    divisor = max(1, (match.owner >= 0).sum().item())
    assert losses["cls"].item() == pytest.approx(total / divisor, rel=1e-4)
    pred = boxes[0, match.anchor[0][match.valid[0]]]
    giou = iou(pred, targets["boxes"][0, match.gt[0][match.valid[0]]], "giou")
    assert losses["box"].item() == pytest.approx((1 - giou).sum().item() / divisor, rel=1e-4)


def test_bfloat16_keeps_the_loss_in_float32():
    model = build().eval()
    images, targets = batch()
    with torch.no_grad():
        exact = model.loss(images, targets)
        with torch.autocast("cpu", torch.bfloat16):
            half = model.loss(images, targets)
    assert half["loss"].dtype == torch.float32
    assert half["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.02)


def test_infinite_predictions_elsewhere_leave_gradients_finite():
    model = build(ctr_clamp=0.0, matcher="l1_topk").train()
    with torch.no_grad():
        model.head.reg_pred.bias[18:] = 200  # of the largest anchor, which no object takes
        model.head.cls_pred.bias[:4], model.head.obj_pred.bias[1] = 200, 200
        model.head.cls_pred.bias[5:9] = -200
    losses, _ = model(*batch())
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_seeds_loss_does_not_wait_for_the_device():
    seeds = {"matcher": "l1_topk", "ignore_on": "anchors", "loss_norm": "image"}
    assert loss_without_values(lambda: build(**seeds)).shape == ()


# ---- positives and detections ----


def test_positives_tell_how_each_was_found():
    model = build(ignore_thresh=0.3).train()
    images, targets = batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shown = model.positives(images, targets)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert any(len(image["ignored"]) for image in shown)
    for image in shown:
        num = len(image["gt"])
        assert image["predicted"].any() and not image["predicted"].all()
        assert image["boxes"].shape == (num, 4) and image["points"].shape == (num, 2)
        assert (image["strides"] == 32).all() and image["ignored"].shape[1:] == (4,)
        overlap = iou(image["boxes"], targets["boxes"][0][image["gt"]])
        assert (overlap >= 0.15).all()
        assert torch.equal(image["points"], image["boxes"].view(-1, 2, 2).mean(1))
    model.matcher = "l1_topk"
    assert not any(image["predicted"].any() for image in model.positives(images, targets))


def test_an_anchor_may_give_several_classes_unless_only_its_best_counts():
    model = build(conf=0.3).eval()
    with torch.no_grad():
        model.head.obj_pred.bias[:] = 15.0
        model.head.obj_pred.weight.zero_(), model.head.cls_pred.weight.zero_()
        model.head.reg_pred.weight.zero_()
        model.head.cls_pred.bias[:] = -20.0
        model.head.cls_pred.bias[:3] = torch.tensor([2.0, 1.0, -5.0])  # of anchors of 32 px
        found = model.predict(torch.zeros(1, 3, SIZE, SIZE), torch.tensor([[SIZE, SIZE]]))[0]
        assert sorted(found["labels"].tolist()) == [0] * 4 + [1] * 4
        model.best_class = True
        found = model.predict(torch.zeros(1, 3, SIZE, SIZE), torch.tensor([[SIZE, SIZE]]))[0]
        assert found["labels"].tolist() == [0] * 4
    assert found["scores"].tolist() == pytest.approx([torch.tensor(2.0).sigmoid().item()] * 4)


@torch.no_grad()
@pytest.mark.parametrize("image_mask", [True, False])
def test_cells_without_a_loss_detect_nothing(image_mask):
    model = build(image_mask=image_mask, best_class=True, conf=0.01, nms=1.0, max_dets=1000).eval()
    for layer in (model.head.obj_pred, model.head.cls_pred):
        layer.weight.zero_()
        layer.bias.fill_(1.0)
    images, sizes = torch.zeros(1, 3, 128, 128, dtype=torch.uint8), torch.tensor([[40, 70]])
    (found,), _ = model.step(images, sizes)
    assert len(found["scores"]) == 5 * (2 * 3 if image_mask else 16)  # cells of 32 pixels


@torch.no_grad()
def test_detections_are_those_of_decode():
    model = build(conf=0.0, nms=1.0, max_dets=10000).eval()
    model.head.cls_pred.bias.normal_()
    images, targets = batch()
    filled = model.fill_padding(images, targets["size"])
    boxes, scores = model.decode(filled)
    found, _ = model.step(images, targets["size"])
    for image, one in enumerate(found):
        best, place = scores[image].flatten().topk(min(1000, boxes.shape[1]))
        assert torch.allclose(one["scores"], best)
        assert torch.allclose(one["boxes"], boxes[image, place // 3], atol=1e-4)
    model.best_class = True
    for image, one in enumerate(model.step(images, targets["size"])[0]):
        assert torch.allclose(one["scores"], scores[image].amax(1).sort(descending=True)[0])


@pytest.mark.parametrize("matcher", ["uniform", "iou_topk", "l1_topk"])
def test_an_object_whose_anchors_lie_in_the_padding_learns_nothing(matcher):
    """Its nearest anchor stands on the corner of the first cell outside of the image."""
    images, targets = batch(1, size=128, content=(64, 64))
    targets["boxes"] = torch.tensor([[[44.0, 44, 64, 64], [8, 8, 40, 40], [0, 0, 0, 0]]])
    targets["valid"] = torch.tensor([[True, True, False]])
    for image_mask, lost in ((True, 1), (False, 0)):
        model = build(matcher=matcher, image_mask=image_mask, topk=1).eval()
        losses = model.loss(images, targets)
        (shown,) = model.positives(images, targets)
        assert losses["unmatched"] == lost
        assert set(shown["gt"].tolist()) == ({1} if lost else {0, 1})


def test_mistakes_are_told():
    with pytest.raises(UserError, match="yolof: matcher is 'atss'; it can be uniform, iou_topk"):
        build(matcher="atss")
    with pytest.raises(UserError, match="decode_method is 3; it can be 1, 2"):
        build(decode_method=3)
    with pytest.raises(
        UserError, match="the loss that a stage weighs is 'obj'; it can be cls, box"
    ):
        build()(*batch(), weights={"obj": 1.0})
