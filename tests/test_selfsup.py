"""The objectives without labels: by hand, by their gradients, and by what makes them collapse."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.backbones import build_backbone
from models.selfsup import (
    PatchContrast,
    closeness,
    cosine_loss,
    grid,
    info_nce,
    simsiam_loss,
)
from utils.errors import UserError
from utils.patch_scores import spread

ROLES = ("anchor", "view", "near", "far")


def unit(seed=0, images=3, patches=4, width=6):
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(images, patches, width, generator=rng), dim=2)


def valid_of(z):
    return torch.ones(z.shape[:2], dtype=torch.bool)


def test_info_nce_equals_its_sum_written_out():
    z, t = unit(), 0.2
    valid = valid_of(z)
    valid[1, 3] = valid[2, 2] = False
    expected = []
    for b in range(3):
        right, others = 0.0, 0.0
        for c in range(3):
            for k in range(4):
                if not valid[c, k] or (b, 0) == (c, k):
                    continue
                value = math.exp(float(z[b, 0] @ z[c, k]) / t)
                if b == c and ROLES[k] in ("view", "near"):
                    right += value
                else:
                    others += value
        expected.append(-math.log(right / (right + others)))
    assert float(info_nce(z, valid, ROLES, t)) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_info_nce_is_nearly_nothing_when_only_what_belongs_together_is_alike():
    z = torch.eye(6)[:3, None].repeat(1, 4, 1)
    z[:, 3] = torch.eye(6)[3:]  # far ones are like nothing else
    assert float(info_nce(z, valid_of(z), ROLES, 0.05)) < 1e-3
    same = z[:1].repeat(3, 1, 1)[:, :1].repeat(1, 4, 1)  # collapsed
    count = 3 * 4 - 1
    assert float(info_nce(same, valid_of(same), ROLES, 0.2)) == pytest.approx(math.log(count / 2))


def test_the_published_cosine_loss_by_hand():
    z = torch.tensor([[[1.0, 0], [1, 0], [0.6, 0.8], [0, 1]]])
    assert float(cosine_loss(z, valid_of(z), ROLES)) == pytest.approx(0.0 - 0.6)
    lacking = torch.tensor([[True, True, True, False]])
    assert float(cosine_loss(z, lacking, ROLES)) == pytest.approx(-0.6)


def test_no_gradient_flows_through_what_simsiam_predicts():
    told, z = unit(1).requires_grad_(), unit(2).requires_grad_()
    loss = simsiam_loss(told, z, valid_of(z), ROLES)
    loss.backward()
    assert z.grad is None and told.grad[:, :3].abs().sum() > 0
    assert (told.grad[:, 3] == 0).all()  # far ones play no part
    alike = unit(3)[:, :1].repeat(1, 4, 1)
    assert float(simsiam_loss(alike, alike, valid_of(alike), ROLES)) == pytest.approx(-1.0)


def test_spread_is_one_on_the_sphere_and_nothing_in_a_point():
    rng = torch.Generator().manual_seed(0)
    even = F.normalize(torch.randn(4000, 64, generator=rng), dim=1)
    assert float(spread(even)) == pytest.approx(1.0, abs=0.02)
    assert float(spread(even[:1].repeat(50, 1))) == pytest.approx(0.0, abs=1e-6)


def test_closeness_means_over_the_patches_that_are_there():
    z = torch.tensor([[[1.0, 0], [0.6, 0.8], [0, 1], [1, 0]], [[0, 1.0], [0, 1], [0, 1], [0, 1]]])
    valid = torch.tensor([[True, True, True, False], [True, True, True, True]])
    numbers = closeness(z, valid, ROLES)
    assert float(numbers["view"]) == pytest.approx(0.8)
    assert float(numbers["near"]) == pytest.approx(0.5)
    assert float(numbers["far"]) == pytest.approx(1.0)


def build(name="cspdarknet-nano", **options):
    torch.manual_seed(0)
    backbone = build_backbone(name, {"attention": options.pop("attention", "none")})
    return PatchContrast(backbone, roles=ROLES, **options)


def batch(images=2, side=32, **more):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 4, 3, side, side), generator=rng, dtype=torch.uint8)
    shared = torch.tensor([0.0, 0, side, side]).repeat(images, 2, 1)
    valid = torch.ones(images, 4, dtype=torch.bool)
    return pixels, {"valid": valid, "shared": shared, **more}


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "infonce"},
        {"objective": "infonce", "attention": "coord"},
        {"objective": "infonce", "dense": 0.0},
        {"objective": "simsiam"},
        {"objective": "cosine"},
    ],
    ids=str,
)
def test_the_loss_reaches_every_weight_of_the_backbone_that_it_uses(options):
    model = build(**options).train()
    losses, state = model(*batch())
    losses["loss"].backward()
    assert state is None and losses["loss"].isfinite() and float(losses["divisor"]) == 2
    lacking = [name for name, p in model.named_parameters() if p.grad is None]
    assert lacking == []


def test_no_label_is_looked_at():
    model = build().eval()
    images, targets = batch()
    labels = {"labels": torch.randint(0, 3, (2, 4))}
    assert torch.equal(
        model(images, targets)[0]["loss"], model(images, {**targets, **labels})[0]["loss"]
    )


def test_a_region_is_cut_into_rows_of_places():
    places = grid(torch.tensor([[10.0, 0, 30, 8], [0, 0, 4, 4]]), 2)
    rows = [[10, 0, 20, 4], [20, 0, 30, 4], [10, 4, 20, 8], [20, 4, 30, 8]]
    assert places.shape == (2, 4, 4) and places[0].tolist() == rows
    assert grid(places[0, :1], 1).tolist() == [[rows[0]]]


def test_places_that_anchor_and_view_share_are_alike_wherever_they_lie():
    # A view that shows the right half of the anchor on its left.
    model = build().eval()
    images, targets = batch(side=64)
    wide = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    images[:, 0], images[:, 1] = wide[..., :64], wide[..., 32:]
    right, left = torch.tensor([32.0, 0, 64, 64]), torch.tensor([0.0, 0, 32, 64])
    true = {**targets, "shared": torch.stack([right, left]).repeat(2, 1, 1)}
    false = {**targets, "shared": torch.stack([left, right]).repeat(2, 1, 1)}
    assert model(images, true)[0]["dense"] < model(images, false)[0]["dense"]


def test_anchor_and_view_of_one_place_have_the_same_cells():
    # The dense term is least where the places of the view stand in the order of the anchor's.
    model = build().eval()
    images, targets = batch(side=64)
    images[:, 1] = images[:, 0]
    same = model(images, targets)[0]["dense"]
    turned = images.clone()
    turned[:, 1] = images[:, 0].flip(-1)
    assert same < model(turned, targets)[0]["dense"]


def test_an_unknown_objective_is_refused():
    with pytest.raises(UserError, match="infonce, simsiam, cosine"):
        build(objective="triplet")


def test_mixed_precision_compares_in_float32():
    model = build().eval()
    maps = [torch.randn(8, c, 4, 4) for c in model.backbone.channels]
    model.maps = lambda images: maps
    images, targets = batch()
    plain = model(images, targets)[0]["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(images, targets)[0]["loss"], plain)
