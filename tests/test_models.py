"""The battery that every detector passes, on the smallest model of each family; sizes of all."""

import copy
import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models.fusing import fuse
from recipes import RECIPES
from tests.detectors import (
    CLASSES,
    SIZE,
    assert_finite_gradients,
    batch,
    build,
    count,
    loss_without_values,
    settled,
    trainable,
)
from utils.errors import UserError


class Family(NamedTuple):
    """What the battery must know of a family."""

    smallest: str
    terms: tuple[str, ...]  # that the loss is the sum of
    background: str  # the one that images without objects have
    weights: dict[str, float]  # that a stage may ask for


FAMILIES = {
    "yolof": Family("yolof-r18-c5", ("cls", "box"), "cls", {"box": 2.0}),
    "yoloft": Family("yoloft-nano-p2", ("cls", "box", "dfl"), "cls", {"dfl": 3.0}),
    "yolox": Family("yolox-nano", ("iou", "obj", "cls", "l1"), "obj", {"l1": 1.0}),
}
SMALLEST = {family: known.smallest for family, known in FAMILIES.items()}

# parameters, tensors of the state dict, batch norms, parameters of the backbone; 80 classes
COUNTS = {
    "yolox-nano": (912_159, 642, 104, 459_968),
    "yolox-tiny": (5_055_855, 462, 74, 2_372_304),
    "yolox-s": (8_968_255, 462, 74, 4_212_672),
    "yolox-m": (25_326_495, 606, 98, 12_352_992),
    "yolox-l": (54_208_895, 750, 122, 27_075_968),
    "yolox-x": (99_071_455, 894, 146, 50_301_600),
    "yolox-darknet53": (63_724_767, 528, 85, 52_651_744),
    "yolof-r18-c5": (31_048_169, 266, 40, 11_176_512),
    "yolof-r18-dc5": (31_439_934, 266, 40, 11_176_512),
    "yolof-r50-c5": (44_166_121, 464, 73, 23_508_032),
    "yolof-r50-dc5": (44_557_886, 464, 73, 23_508_032),
    "yolof-r101-c5": (63_158_249, 770, 124, 42_500_160),
    "yolof-r101-dc5": (63_550_014, 770, 124, 42_500_160),
    "yolof-x101-c5": (102_064_361, 770, 124, 81_406_272),
    "yolof-cspdarknet53-c5": (47_874_313, 662, 104, 26_617_184),
    "yolof-cspdarknet53-dc5": (48_266_078, 662, 104, 26_617_184),
    "yoloft-nano": (3_283_436, 388, 60, 744_960),
    "yoloft-nano-p2": (2_764_368, 472, 73, 744_960),
    "yoloft-s": (11_518_924, 388, 60, 2_931_888),
    "yoloft-s-dcn": (12_065_810, 458, 62, 2_961_850),
    "yoloft-s-p2": (8_787_002, 512, 73, 2_931_888),
    "yoloft-m": (29_172_872, 512, 74, 8_752_784),
    "yoloft-l": (37_514_284, 632, 94, 13_154_688),
    "yoloft-mstf-s": (13_049_972, 382, 57, 5_079_712),
    "yoloft-mstf-l": (45_212_564, 622, 97, 19_808_576),
}
YOLO_LOCATIONS = 8 * 12 + 4 * 6 + 2 * 3  # in 64 x 96 pixels, of strides 8, 16, 32
LOCATIONS = {"c5": 2 * 3 * 5, "dc5": 4 * 6 * 6, "p2": 16 * 24 + YOLO_LOCATIONS}


@functools.cache
def kept(name):
    torch.manual_seed(0)
    return settled(name)


@pytest.fixture(params=sorted(models.DETECTORS))
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def model(family):
    """The smallest detector of a family, with statistics of a batch and scores to speak of."""
    return copy.deepcopy(kept(family.smallest))


def assert_same(found, expected, rtol=1e-5, atol=1e-3):
    """Boxes within `atol` pixels and `rtol` of their coordinates; those of an untrained head, whose
    scores are as good as equal, in any order."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() == {"boxes", "scores", "labels"}
        assert torch.allclose(one["scores"], other["scores"], atol=1e-5)
        pairs = [(one[name][:, None], other[name]) for name in ("boxes", "scores", "labels")]
        near = torch.isclose(*pairs[0], rtol=rtol, atol=atol).all(2)  # [K, K]
        near &= torch.isclose(*pairs[1], atol=1e-5) & (pairs[2][0] == pairs[2][1])
        assert near.any(0).all() and near.any(1).all()


# ---- every model ----


def test_a_smallest_model_is_named_for_each_family():
    assert SMALLEST.keys() == models.DETECTORS.keys()
    assert {RECIPES[name].detector for name in SMALLEST.values()} == SMALLEST.keys()
    for family, name in SMALLEST.items():
        of_family = [other for other in COUNTS if RECIPES[other].detector == family]
        assert COUNTS[name] == min(COUNTS[other] for other in of_family)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_counts_and_shapes(name):
    with torch.device("meta"):
        model = models.build_model(RECIPES[name], [str(index) for index in range(80)])
        assert count(model) == COUNTS[name][0]
        assert len(model.state_dict()) == COUNTS[name][1]
        assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == COUNTS[name][2]
        assert count(model.backbone) == COUNTS[name][3]
        boxes, scores, *_ = model.eval().decode(torch.empty(2, 3, 64, 96))
    locations = LOCATIONS.get(name.split("-")[-1], YOLO_LOCATIONS)
    assert boxes.shape == (2, locations, 4) and scores.shape == (2, locations, 80)


def test_as_many_parameters_learn_as_in_the_paper():
    for name, millions in (("yolof-r50-c5", 43.89), ("yolox-s", 8.97)):
        with torch.device("meta"):
            model = models.build_model(RECIPES[name], [str(index) for index in range(80)])
        learnt = sum(p.numel() for p in trainable(model).values())
        assert round(learnt / 1e6, 2) == millions


def test_models_that_cannot_be_built():
    recipe = RECIPES["yolox-nano"]
    with pytest.raises(UserError, match="no backbone 'resnet'; there are c2f-nano, "):
        models.build_model(replace(recipe, backbone="resnet"), CLASSES)
    with pytest.raises(UserError, match="no detector 'yolo'; there are yolof, yoloft, yolox"):
        models.build_model(replace(recipe, detector="yolo"), CLASSES)
    with pytest.raises(UserError, match="darknet53 has no dilated last stage .*--dc5"):
        models.build_model(replace(RECIPES["yolof-r50-dc5"], backbone="darknet53"), CLASSES)
    with pytest.raises(UserError, match="resnet18 has no map of stride 4 .*--p2"):
        models.build_model(replace(RECIPES["yoloft-s-p2"], backbone="resnet18"), CLASSES)
    with pytest.raises(UserError, match="resnet18 has no deformable blocks; leave --dcn out"):
        models.build_model(replace(RECIPES["yoloft-s-dcn"], backbone="resnet18"), CLASSES)


# ---- the battery ----


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_finite_and_reaches_every_parameter(family, model, weighted):
    weights = family.weights if weighted else {}
    losses, state = model.train()(*batch(), weights=weights)
    assert state is None or all(x.isfinite().all() for x in state)
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert_finite_gradients(model)
    assert not any(value.requires_grad for name, value in losses.items() if name != "loss")
    terms = sum(losses[name] for name in family.terms)
    assert losses["loss"].item() == pytest.approx(terms.item(), rel=1e-5)
    assert {"loss", "divisor", "positives", "per_object", *family.terms} <= losses.keys()


@torch.no_grad()
def test_a_stages_weights_count(family, model):
    images, targets = batch()
    (name, weight), *_ = family.weights.items()
    one, two = (model.eval().loss(images, targets, {name: weight * n}) for n in (1, 2))
    assert two[name].item() == pytest.approx(2 * one[name].item(), rel=1e-5)
    assert one[name] > 0
    for term in set(family.terms) - {name}:
        assert one[term] == two[term]
    with pytest.raises(UserError, match=f"'l2'; it can be {', '.join(family.terms)}"):
        model.loss(images, targets, {"l2": 1.0})


def test_images_without_objects(family, model):
    images, targets = batch()
    empty = {**targets, "valid": torch.zeros_like(targets["valid"])}
    for nothing in (batch(boxes=False), (images, empty)):
        model.zero_grad()
        losses, _ = model.train()(*nothing, weights=family.weights)
        losses["loss"].backward()
        assert losses["loss"].isfinite() and losses["loss"] == losses[family.background] > 0
        assert losses["positives"] == losses["per_object"] == losses["divisor"] == 0
        assert_finite_gradients(model)
        assert [len(image["gt"]) for image in model.positives(*nothing)] == [0, 0]
    targets["valid"] = torch.tensor([[False] * 4, [False, True, False, False]])
    losses, _ = model(images, targets)
    assert losses["loss"].isfinite() and losses["positives"] > 0


@torch.no_grad()
def test_empty_slots_change_nothing(model):
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
    filled = model.fill_padding(images, sizes)[..., SIZE - 12 :]
    assert torch.equal(filled, model.pixel_padding.expand_as(filled))
    # Padding is neutral: zero, unless pixels are not normalised.
    assert model.normalize(filled).abs().max() < 1e-5 or not model.normalized


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


@torch.no_grad()
def test_state_dict_round_trip(family, model):
    other = build(family.smallest)
    other.load_state_dict(model.state_dict())
    images, targets = batch()
    other.conf = model.conf
    found = model.eval().predict(images, targets["size"])
    assert_same(other.eval().predict(images, targets["size"]), found, rtol=0, atol=0)


def test_seeds_repeat(family):
    def run():
        torch.manual_seed(3)
        model = build(family.smallest).train()
        losses, _ = model(*batch())
        losses["loss"].backward()
        return [losses["loss"], *(p.grad for p in trainable(model).values())]

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)


def test_detect_gives_boxes_in_the_images_own_pixels(model):
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    for sides in ((SIZE, SIZE), (SIZE, 80)):
        model.sides = sides
        found = model.eval().detect(image)
        assert found.keys() == {"boxes", "scores", "labels"}
        assert len(found["boxes"]) > 0 and found["boxes"][:, 2].max() > max(sides)
        assert (found["boxes"][:, [0, 2]] <= 150).all()
        assert (found["boxes"][:, [1, 3]] <= 100).all()


def test_positives_are_what_the_loss_counts(model):
    images, targets = batch()
    before = copy.deepcopy(model.state_dict())
    shown = model.train().positives(images, targets)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    losses = model.eval().loss(images, targets)
    assert sum(len(image["gt"]) for image in shown) == losses["per_object"] * 6
    assert losses["positives"] > 0
    for image in shown:
        gt = targets["boxes"][0][image["gt"]]
        center = (gt[:, :2] + gt[:, 2:]) / 2
        assert (image["points"] - center).abs().max() < 1.5 * 32
        assert set(image["strides"].tolist()) <= set(model.strides)


@torch.no_grad()
def test_fused_equals_unfused(model):
    images, targets = batch()
    images = model.eval().fill_padding(images, targets["size"])
    fused = fuse(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    for one, other in zip(model.decode(images), fused.decode(images), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_detections_are_some_of_what_decode_gives(model):
    images, targets = batch()
    filled = model.eval().fill_padding(images, targets["size"])
    boxes, scores, *state = model.decode(filled)
    found, left = model.step(images, targets["size"])
    assert len(left or ()) == len(state) == len(model.example_state(2, (SIZE, SIZE)))
    for image, one in enumerate(found):
        assert len(one["boxes"]) > 0
        for box, score, label in zip(*one.values(), strict=True):
            near = (scores[image, :, label] - score).abs() < 1e-6
            assert near.any() and (boxes[image, near] - box).abs().amax(1).min() < 1e-3


@torch.no_grad()
def test_channels_last_and_contiguous_agree(model):
    images, targets = batch()
    one = model.eval().loss(images, targets)["loss"]
    other = model.to(memory_format=torch.channels_last).loss(images, targets)["loss"]
    assert torch.allclose(one, other, rtol=1e-4)


def test_loss_does_not_wait_for_the_device(family):
    loss = loss_without_values(lambda: build(family.smallest), weights=family.weights)
    assert loss.shape == ()
