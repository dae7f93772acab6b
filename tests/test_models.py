"""The battery that every detector passes, on the smallest model of each family; sizes of all."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import models
from models.layers import Focus, SPPBottleneck, fuse
from models.yolox import decode_cxcywh, encode_cxcywh
from recipes import RECIPES
from utils.errors import UserError

SMALLEST = {"yolox": "yolox-nano"}  # of each family of DETECTORS
CLASSES = ("disc", "square", "cross")
SIZE = 64

# parameters, tensors of the state dict, batch norms, parameters of the backbone; 80 classes
COUNTS = {
    "yolox-nano": (912_159, 642, 104, 459_968),
    "yolox-tiny": (5_055_855, 462, 74, 2_372_304),
    "yolox-s": (8_968_255, 462, 74, 4_212_672),
    "yolox-m": (25_326_495, 606, 98, 12_352_992),
    "yolox-l": (54_208_895, 750, 122, 27_075_968),
    "yolox-x": (99_071_455, 894, 146, 50_301_600),
    "yolox-darknet53": (63_724_767, 528, 85, 52_651_744),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def build(name, classes=CLASSES, **options):
    recipe = RECIPES[name]
    recipe = replace(recipe, img_size=SIZE, model=replace(recipe.model, **options))
    return models.build_model(recipe, classes)


@pytest.fixture(params=sorted(models.DETECTORS))
def model(request):
    """The smallest detector of a family, with statistics of a batch and scores to speak of."""
    detector = build(SMALLEST[request.param])
    for layer in detector.head.obj_preds, detector.head.cls_preds:
        for conv in layer:
            nn.init.normal_(conv.bias, -1.0, 0.5)
    detector.conf = 0.05
    with torch.no_grad():
        for _ in range(20):
            detector.train()(*batch())
    return detector


def batch(num=2, size=SIZE, boxes=True, content=(SIZE, SIZE - 12)):
    images = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8)
    gt = torch.tensor([[8.0, 8, 40, 40], [20, 12, 26, 30], [0, 0, 0, 0]]).repeat(num, 1, 1)
    targets = {
        "boxes": gt,
        "labels": torch.tensor([[0, 2, 0]]).repeat(num, 1),
        "valid": torch.tensor([[True, True, False]]).repeat(num, 1),
        "size": torch.tensor([content] * num),
    }
    if not boxes:
        for key in ("boxes", "labels", "valid"):
            targets[key] = targets[key][:, :0]
    return images, targets


def assert_same(found, expected, atol=1e-3):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() == {"boxes", "scores", "labels"}
        assert torch.equal(one["labels"], other["labels"])
        assert torch.allclose(one["scores"], other["scores"], atol=1e-5)
        assert torch.allclose(one["boxes"], other["boxes"], atol=atol)


def test_a_smallest_model_is_named_for_each_family():
    assert SMALLEST.keys() == models.DETECTORS.keys()
    assert {RECIPES[name].detector for name in SMALLEST.values()} == SMALLEST.keys()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_counts_and_shapes(name):
    with torch.device("meta"):
        model = models.build_model(RECIPES[name], [str(index) for index in range(80)])
        assert count(model) == COUNTS[name][0]
        assert len(model.state_dict()) == COUNTS[name][1]
        assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == COUNTS[name][2]
        assert count(model.backbone) == COUNTS[name][3]
        boxes, scores = model.eval().decode(torch.empty(2, 3, 64, 96))
    assert boxes.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 4)
    assert scores.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 80)


@pytest.mark.parametrize("name", sorted(models.BACKBONES))
def test_backbone_interface(name):
    with torch.device("meta"):
        backbone = models.BACKBONES[name]()
        maps = backbone(torch.empty(1, 3, 64, 96))
    assert [x.shape[1] for x in maps] == list(backbone.channels)
    assert [(64 // x.shape[2], 96 // x.shape[3]) for x in maps] == [
        (s, s) for s in backbone.strides
    ]
    assert backbone.pixels.order in ("bgr", "rgb")


def test_batch_norm_is_yoloxs_and_predictions_begin_at_the_prior():
    model = build("yolox-nano")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    for conv in (*model.head.cls_preds, *model.head.obj_preds):
        assert conv.bias.sigmoid().tolist() == pytest.approx([0.01] * len(conv.bias))


# ---- the battery ----


@pytest.mark.parametrize("weights", [{}, {"l1": 1.0}])
def test_loss_is_finite_and_reaches_every_parameter(model, weights):
    losses, state = model.train()(*batch(), weights=weights)
    assert state is None
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not any(value.requires_grad for name, value in losses.items() if name != "loss")
    terms = sum(losses[name] for name in ("iou", "obj", "cls", "l1"))
    assert losses["loss"].item() == pytest.approx(terms.item(), rel=1e-5)
    assert (losses["l1"] > 0) == bool(weights)
    assert losses["per_object"] == losses["positives"] / 4


def test_images_without_objects(model):
    losses, _ = model.train()(*batch(boxes=False), weights={"l1": 1.0})
    losses["loss"].backward()
    assert losses["loss"].isfinite() and losses["loss"] == losses["obj"]
    assert losses["positives"] == losses["per_object"] == 0
    assert all(p.grad is not None for p in model.parameters())
    images, targets = batch()
    targets["valid"] = torch.tensor([[False] * 3, [True, False, False]])
    losses, _ = model(images, targets)
    assert losses["loss"].isfinite() and losses["positives"] > 0


def test_padding_slots_of_boxes_change_nothing(model):
    images, targets = batch()
    one, _ = model.train()(images, targets)
    padded = {**targets, "boxes": torch.cat((targets["boxes"], torch.full((2, 5, 4), 1e9)), 1)}
    padded["labels"] = F.pad(targets["labels"], (0, 5))
    padded["valid"] = F.pad(targets["valid"], (0, 5))
    other, _ = model(images, padded)
    assert torch.allclose(one["loss"], other["loss"])


@torch.no_grad()
def test_no_box_ends_in_the_padding(model):
    images, targets = batch(content=(40, 52))
    found = model.eval().predict(images, targets["size"])
    assert sum(len(image["boxes"]) for image in found) > 0
    for image in found:
        assert (image["boxes"] >= 0).all() and (image["boxes"][:, [0, 2]] <= 52).all()
        assert (image["boxes"][:, [1, 3]] <= 40).all()
        assert (image["scores"].diff() <= 0).all() and (image["scores"] >= model.conf).all()
        assert len(image["scores"]) <= model.max_dets


@torch.no_grad()
def test_what_lies_in_the_padding_does_not_matter(model):
    images, targets = batch()
    other = images.clone()
    other[..., SIZE - 12 :] = 7
    sizes = targets["size"]
    assert_same(model.eval().predict(images, sizes), model.predict(other, sizes))
    assert (model.fill_padding(images, sizes)[..., SIZE - 12 :] == 114).all()


@torch.no_grad()
def test_alone_and_batched_are_alike(model):
    images, targets = batch(3)
    sizes = targets["size"]
    together = model.eval().predict(images, sizes)
    alone = [model.predict(images[i : i + 1], sizes[i : i + 1])[0] for i in range(3)]
    assert_same(together, alone)
    assert_same(model.predict(images.float(), sizes), together)


@torch.no_grad()
def test_interleaved_videos_equal_separate_ones(model):
    model.eval()
    frames = [batch(2) for _ in range(3)]
    together = list(model.predict_video((x, t["size"]) for x, t in frames))
    for video in range(2):
        rows = slice(video, video + 1)
        alone = model.predict_video((x[rows], t["size"][rows]) for x, t in frames)
        for at, found in enumerate(alone):
            assert_same(found, together[at][rows])


def test_state_dict_round_trip(model):
    other = build(SMALLEST["yolox"])
    other.load_state_dict(model.state_dict())
    images, targets = batch()
    other.conf = model.conf
    with torch.no_grad():
        found = model.eval().predict(images, targets["size"])
        assert_same(other.eval().predict(images, targets["size"]), found, atol=0)


def test_seeds_repeat():
    def run():
        torch.manual_seed(3)
        model = build("yolox-nano").train()
        losses, _ = model(*batch())
        losses["loss"].backward()
        return losses["loss"], model.head.reg_preds[0].weight.grad

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)


def test_detect_gives_boxes_in_the_images_own_pixels(model):
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    found = model.eval().detect(image)
    assert found.keys() == {"boxes", "scores", "labels"}
    assert len(found["boxes"]) > 0 and found["boxes"][:, 2].max() > SIZE
    assert (found["boxes"][:, [0, 2]] <= 150).all() and (found["boxes"][:, [1, 3]] <= 100).all()


def test_positives_are_what_the_loss_counts(model):
    images, targets = batch()
    before = copy.deepcopy(model.state_dict())
    shown = model.train().positives(images, targets)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    losses = model.eval().loss(images, targets)
    assert sum(len(image["gt"]) for image in shown) == losses["positives"] > 0
    for image in shown:
        gt = targets["boxes"][0][image["gt"]]
        center = (gt[:, :2] + gt[:, 2:]) / 2
        assert (image["points"] - center).abs().max() < 1.5 * 32


def test_fused_equals_unfused(model):
    images, targets = batch()
    images = model.eval().fill_padding(images, targets["size"])
    fused = fuse(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with torch.no_grad():
        for one, other in zip(model.decode(images), fused.decode(images), strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def test_loss_does_not_wait_for_the_device():
    with FakeTensorMode():
        model = build("yolox-nano").train()
        images = torch.empty(2, 3, SIZE, SIZE, dtype=torch.uint8)
        targets = {
            "boxes": torch.empty(2, 7, 4),
            "labels": torch.empty(2, 7, dtype=torch.long),
            "valid": torch.empty(2, 7, dtype=torch.bool),
            "size": torch.empty(2, 2, dtype=torch.long),
        }
        losses, _ = model(images, targets, weights={"l1": 1.0})
        losses["loss"].backward()
    assert losses["loss"].shape == ()


# ---- YOLOX's own ----


def test_channels_last_and_contiguous_agree():
    images, targets = batch()
    model = build("yolox-nano").eval()
    one = model.loss(images, targets)["loss"]
    other = model.to(memory_format=torch.channels_last).loss(images, targets)["loss"]
    assert torch.allclose(one, other, rtol=1e-4)


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
    targets["valid"] = torch.tensor([[False] * 3] * 2)
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
    with pytest.raises(UserError, match="no backbone 'resnet'"):
        models.build_model(replace(RECIPES["yolox-nano"], backbone="resnet"), CLASSES)
