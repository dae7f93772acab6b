"""The classifier of patches and its center loss."""

import pytest
import torch
from torch.nn import functional as F

from models.backbones import build_backbone
from models.classifier import CenterClassifier, CenterLoss
from models.patches import pooled
from utils import optim
from utils.errors import UserError

LABELS = torch.tensor([0, 1, 1, 2, 0, 1])


def features(seed=0, count=6, width=5):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def all_valid(count=6):
    return torch.ones(count, dtype=torch.bool)


@pytest.mark.parametrize("update", ["ema", "sgd"])
def test_center_loss_is_half_the_squared_distance(update):
    loss = CenterLoss(3, 5, weight=0.3, update=update, normalize=False).eval()
    x = features()
    centers = loss.centers.detach().view(3, 5)
    valid = torch.tensor([True, True, False, True, True, True])
    expected = 0.5 * sum(float((x[i] - centers[LABELS[i]]).square().sum()) for i in (0, 1, 3, 4, 5))
    share = 1.3 if update == "sgd" else 0.3  # the centers' own part does not know the weight
    total, _ = loss(x, LABELS, valid)
    assert total.item() == pytest.approx(share * expected, rel=1e-5)


def test_gradients_are_those_of_the_formula():
    loss = CenterLoss(3, 5, weight=0.3, update="sgd", normalize=False)
    x = features().requires_grad_()
    loss(x, LABELS, all_valid())[0].backward()
    centers = loss.centers.detach().view(3, 5)
    away = x.detach() - centers[LABELS]
    assert torch.allclose(x.grad, 0.3 * away, atol=1e-6)
    own = F.one_hot(LABELS, 3).float()
    assert torch.allclose(loss.centers.grad.view(3, 5), -own.T @ away, atol=1e-5)


def test_one_move_of_ema_is_the_papers():
    loss = CenterLoss(2, 1, rate=0.5, normalize=False).train()
    loss.centers.copy_(torch.tensor([1.0, -1.0]))
    x, labels = torch.tensor([[3.0], [5.0], [9.0]]), torch.tensor([0, 0, 1])
    valid = torch.tensor([True, True, False])
    loss(x, labels, valid)
    # By hand: 1 - 0.5 * ((1 - 3) + (1 - 5)) / (1 + 2) = 2; class 1 saw nothing.
    assert loss.centers.tolist() == [2.0, -1.0]
    loss.eval()(x, labels, valid)
    assert loss.centers.tolist() == [2.0, -1.0]  # judging moves nothing


@pytest.mark.parametrize("update", ["ema", "sgd"])
def test_centers_come_to_the_means_of_their_classes(update):
    loss = CenterLoss(3, 5, update=update, normalize=False).train()
    x = features()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.2) if update == "sgd" else None
    for _ in range(200):
        total, numbers = loss(x, LABELS, all_valid())
        if optimizer:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    means = torch.stack([x[kind == LABELS].mean(dim=0) for kind in range(3)])
    assert torch.allclose(loss.centers.detach().view(3, 5), means, atol=1e-3)
    assert float(numbers["between"]) == pytest.approx(float(torch.pdist(means).mean()), rel=1e-2)


def test_normalized_features_cost_the_same_at_any_length():
    loss = CenterLoss(3, 5).eval()
    x = features()
    one, hundred = (loss(x * scale, LABELS, all_valid())[0] for scale in (1.0, 100.0))
    assert torch.allclose(one, hundred)


def test_an_unknown_update_is_refused():
    with pytest.raises(UserError, match="ema, sgd"):
        CenterLoss(2, 3, update="mean")


def build(name="cspdarknet-nano", **options):
    torch.manual_seed(0)
    return CenterClassifier(
        build_backbone(name, {"attention": "none"}), classes=("background", "a", "b"), **options
    )


def batch(images=2, patches=4, side=32):
    rng = torch.Generator().manual_seed(0)
    shape = (images, patches, 3, side, side)
    pixels = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    labels = torch.arange(patches).repeat(images, 1) % 3
    regions = torch.tensor([4.0, 0, side, side - 6]).repeat(images, patches, 1)
    valid = torch.ones(images, patches, dtype=torch.bool)
    return pixels, {"labels": labels, "valid": valid, "regions": regions}


@pytest.mark.parametrize("update", ["ema", "sgd"])
def test_the_loss_reaches_every_weight(update):
    model = build(center_update=update).train()
    losses, state = model(*batch())
    losses["loss"].backward()
    assert state is None and losses["loss"].isfinite() and float(losses["divisor"]) == 8
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    total = losses["entropy"] + losses["center"]
    assert torch.allclose(losses["loss"].detach(), total)


def test_patches_that_are_not_there_cost_nothing():
    model = build().eval()
    images, targets = batch()
    whole = model(images, targets)[0]
    more = torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
    lacking = {name: F.pad(column, (0, 1)) for name, column in targets.items() if name != "regions"}
    lacking["regions"] = F.pad(targets["regions"], (0, 0, 0, 1))
    padded = model(more, lacking)[0]
    assert torch.allclose(whole["loss"], padded["loss"], atol=1e-6)
    none = {**targets, "valid": torch.zeros_like(targets["valid"])}
    assert model(images, none)[0]["loss"].item() == 0


def test_a_region_alone_decides_what_a_patch_is():
    model = build().eval()
    maps = [torch.randn(2, c, 4, 4) for c in model.backbone.channels]
    left = torch.tensor([[0.0, 0, 16, 32]]).repeat(2, 1)
    before = model.features(maps, left, 32)
    for x in maps:
        x[..., 2:] += 1  # the right half
    assert torch.equal(model.features(maps, left, 32), before)
    assert not torch.equal(model.features(maps, left + 8, 32), before)


def test_means_over_regions_are_those_of_the_cells_written_large():
    # A map of 4 cells a side over patches of 20 pixels: each cell stands for 5 x 5 of them.
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([[[0, 0, 20, 20], [3, 7, 9, 8]], [[5, 10, 10, 15], [19, 0, 20, 20]]])
    found = pooled(x, regions.float(), 20)
    large = x.repeat_interleave(5, dim=2).repeat_interleave(5, dim=3)
    for patch, row in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x1, y1, x2, y2 = regions[patch, row].tolist()
        expected = large[patch, :, y1:y2, x1:x2].mean(dim=(1, 2))
        assert torch.allclose(found[patch, row], expected, atol=1e-6)
    assert not pooled(x, torch.zeros(2, 1, 4), 20).any()  # a patch that is not there
    within = torch.tensor([[[6.0, 6, 8, 9]], [[0.5, 0.5, 1, 1]]])  # smaller than a cell
    assert torch.allclose(pooled(x, within, 20)[:, 0], torch.stack([x[0, :, 1, 1], x[1, :, 0, 0]]))


def test_pixels_reach_the_backbone_as_a_detector_gives_them():
    raw, rgb = build(), build("resnet18")
    images, _ = batch()
    seen = []
    for model in (raw, rgb):
        model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.eval().maps(images)
    flat = images.flatten(0, 1).float()
    assert torch.equal(seen[0], flat)
    mean = torch.tensor((123.675, 116.28, 103.53)).view(1, 3, 1, 1)
    std = torch.tensor((58.395, 57.12, 57.375)).view(1, 3, 1, 1)
    assert torch.allclose(seen[1], (flat.flip(1) - mean) / std, atol=1e-5)
    assert len(seen) == 2  # all patches in one pass


def test_centers_do_not_decay():
    model = build(center_update="sgd")
    groups = {group["name"]: group for group in optim.param_groups(model, 0.1)}
    decaying = {
        id(p) for group in groups.values() if group["weight_decay"] for p in group["params"]
    }
    assert id(model.center.centers) not in decaying and id(model.linear.weight) in decaying
