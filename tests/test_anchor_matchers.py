import pytest
import torch
from torch._subclasses import FakeTensorMode

from models import matchers
from models.anchors import square_anchors
from models.matchers import BACKGROUND, IGNORED, Rules, iou_topk, l1_topk, uniform
from utils.boxes import pairwise_iou, xyxy_to_cxcywh

ANCHORS = square_anchors((3, 4, 32), torch.tensor([32.0, 64, 128]), 0.0)
RULES = Rules(topk=4, pos_thresh=0.15, ignore_thresh=0.7, ignore_on="predictions")
TOPK = {"iou": iou_topk, "l1": l1_topk}
BATTERY = [uniform, iou_topk, l1_topk]


# ---- the rules as their papers and codes tell them, one image, with loops ----


def nearest(boxes, gt, k):
    """Per object the indices of the k nearest, by distances in whole 1/1024 pixel."""
    boxes, gt = ((1024 * part).round().long().tolist() for part in (boxes, gt))
    chosen = []
    for wanted in gt:
        cost = [sum(abs(x - y) for x, y in zip(box, wanted, strict=True)) for box in boxes]
        chosen.append(sorted(range(len(boxes)), key=lambda m: (cost[m], m))[:k])  # noqa: B023
    return chosen


def reference_uniform(pred, anchors, gt, rules):
    """([(anchor, object, kept, predicted)], [what each anchor learns])."""
    gt_cxcywh = xyxy_to_cxcywh(gt)
    near = [nearest(xyxy_to_cxcywh(boxes), gt_cxcywh, rules.topk) for boxes in (pred, anchors)]
    watched = pred if rules.ignore_on == "predictions" else anchors
    owner, pairs = [BACKGROUND] * len(anchors), []
    overlaps = pairwise_iou(watched, gt)
    for m in range(len(anchors)):
        if rules.ignore_thresh and len(gt) and overlaps[m].max() > rules.ignore_thresh:
            owner[m] = IGNORED
    own = pairwise_iou(anchors, gt)
    for rank in range(min(rules.topk, len(anchors))):
        for kind, predicted in zip(near, (True, False), strict=True):
            for j in range(len(gt)):
                m = kind[j][rank]
                kept = not own[m, j] < rules.pos_thresh
                pairs.append((m, j, kept, predicted))
                owner[m] = j if kept else IGNORED
    return pairs, owner


def reference_topk(kind, pred, anchors, gt, rules):
    own = pairwise_iou(anchors, gt)
    owner = [BACKGROUND] * len(anchors)
    if rules.ignore_on == "predictions" and rules.ignore_thresh:
        for m, overlaps in enumerate(pairwise_iou(pred, gt)):
            if len(gt) and overlaps.max() > rules.ignore_thresh:
                owner[m] = IGNORED
    for j in range(len(gt)):
        if kind == "iou":
            units = (own[:, j] * 2**20).round().tolist()
            order = sorted(range(len(anchors)), key=lambda m: (-units[m], m))  # noqa: B023
            chosen = order[: rules.topk]
        else:
            chosen = nearest(anchors, gt[j : j + 1], rules.topk)[0]
        taken = [m for m in chosen if own[m, j] > rules.pos_thresh]
        for m in taken:
            owner[m] = j
        if rules.ignore_on == "anchors" and rules.ignore_thresh:
            for m in range(len(anchors)):
                if own[m, j] > rules.ignore_thresh and m not in taken:
                    owner[m] = IGNORED
    return owner


# ---- scenes ----


def scene(seed, num_gt=6, num_images=2, on_grid=False):
    """Boxes in random slots of which some are empty, predictions of which some are good."""
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=rng)

    center, side = rand(num_images, num_gt, 2) * 110, 10 + 110 * rand(num_images, num_gt, 2)
    if on_grid:  # multiples of 16: costs and overlaps that are exactly equal
        center, side = (center / 16).round() * 16, (side / 32).ceil() * 32
    gt = torch.cat((center - side / 2, center + side / 2), dim=-1)
    valid = rand(num_images, num_gt) < 0.7
    gt[~valid] = 1e9
    pred = ANCHORS + (16 * rand(num_images, len(ANCHORS), 4) - 8) * (not on_grid)
    copied = gt[:, torch.randint(0, num_gt, (len(ANCHORS),), generator=rng)]
    good = (rand(num_images, len(ANCHORS)) < 0.2)[..., None] & (copied < 1e6)
    return torch.where(good, copied + 4 * rand(*pred.shape), pred), gt, valid


def unpadded(match, image, valid):
    """The pairs (anchor, object, kept, predicted) and owners of an image with its objects counted
    without empty slots."""
    number = (valid.cumsum(1) - 1)[image].tolist()
    real = valid[image][match.gt[image]]
    *pair_parts, _ = match
    pairs = [
        (anchor, number[gt], *facts)
        for anchor, gt, *facts in zip(
            *(part[image][real].tolist() for part in pair_parts), strict=True
        )
    ]
    assert not match.valid[image][~real].any()
    return pairs, [at if at < 0 else number[at] for at in match.owner[image].tolist()]


def compare(function, pred, gt, valid, rules):
    match = function(pred, ANCHORS, gt, valid, rules)
    for image in range(len(pred)):
        pairs, owner = unpadded(match, image, valid)
        inputs = pred[image], ANCHORS, gt[image][valid[image]]
        if function is uniform:
            expected, owners = reference_uniform(*inputs, rules)
            assert pairs == expected
            assert owner == owners
            continue
        kind = "iou" if function is iou_topk else "l1"
        assert owner == reference_topk(kind, *inputs, rules)
        assert not any(predicted for *_, predicted in pairs)
        kept = sorted((anchor, gt) for anchor, gt, kept, _ in pairs if kept)
        assert kept == [(m, j) for m, j in enumerate(owner) if j >= 0]
    return match


@pytest.mark.parametrize("on_grid", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize("ignore", [("predictions", 0.7), ("anchors", 0.3), ("anchors", 0.0)])
@pytest.mark.parametrize("function", BATTERY)
def test_equals_the_reference(function, ignore, on_grid):
    rules = RULES._replace(ignore_on=ignore[0], ignore_thresh=ignore[1])
    owners = []
    for seed in range(8):
        owners.append(compare(function, *scene(seed, on_grid=on_grid), rules).owner)
    owners = torch.cat(owners)
    assert (owners >= 0).any() and (owners == BACKGROUND).any()
    assert (owners == IGNORED).any() or ignore[1] == 0


@pytest.mark.parametrize("function", BATTERY)
def test_more_objects_than_anchors_and_more_wanted_than_there_are(function):
    pred, gt, valid = scene(3, num_gt=3 * len(ANCHORS))
    for topk in (1, 8, len(ANCHORS) + 5):
        compare(function, pred, gt, valid, RULES._replace(topk=topk))


@pytest.mark.parametrize("function", BATTERY)
def test_no_boxes(function):
    pred, gt, valid = scene(1)
    match = function(pred, ANCHORS, gt[:, :0], valid[:, :0], RULES)
    assert all(part.shape == (2, 0) for part in match[:-1])
    assert (match.owner == BACKGROUND).all() and match.owner.shape == (2, len(ANCHORS))
    match = function(pred, ANCHORS, gt, torch.zeros_like(valid), RULES)
    assert not match.valid.any() and (match.owner == BACKGROUND).all()


@pytest.mark.parametrize("function", BATTERY)
def test_batch_equals_single_images_and_chunks_change_nothing(function, monkeypatch):
    inputs = scene(5, num_images=3)
    pred, gt, valid = inputs
    together = function(pred, ANCHORS, gt, valid, RULES)
    for image in range(3):
        part = slice(image, image + 1)
        alone = function(pred[part], ANCHORS, gt[part], valid[part], RULES)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other[part])
    monkeypatch.setattr(matchers, "CHUNK", 1)
    for one, other in zip(function(pred, ANCHORS, gt, valid, RULES), together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("function", BATTERY)
def test_predictions_that_are_not_finite_are_far_away(function):
    pred, gt, valid = scene(2)
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = pred.clone()
        bad[:, ::2] = value
        match = function(bad, ANCHORS, gt, valid, RULES)
        far = pred.clone()
        far[:, ::2] = 1e7
        expected = function(far, ANCHORS, gt, valid, RULES)
        for image in range(2):
            assert unpadded(match, image, valid) == unpadded(expected, image, valid)


def test_of_equally_near_anchors_the_lowest_index_is_taken():
    anchors = square_anchors((3, 3, 32), torch.tensor([64.0]), 0.5)
    middle = torch.tensor([[[16.0, 16, 80, 80]]])  # of the grid: 4 are 32 px away, 4 are 64
    valid, rules = torch.ones(1, 1, dtype=torch.bool), RULES._replace(topk=3)
    for function, expected in ((uniform, [4, 4, 1, 1, 3, 3]), (l1_topk, [4, 1, 3])):
        match = function(anchors[None], anchors, middle, valid, rules)
        assert match.anchor[0].tolist() == expected
    # Seen from the IoU the four beside it are alike too.
    assert iou_topk(anchors[None], anchors, middle, valid, rules).anchor[0].tolist() == [4, 1, 3]
    moved = (middle + 3000.7, anchors + 3000.7)  # where float32 would tell equal distances apart
    match = uniform(moved[1][None], moved[1], moved[0], valid, rules)
    assert match.anchor[0].tolist() == [4, 4, 1, 1, 3, 3]


def test_an_objects_last_pair_decides_what_an_anchor_learns():
    anchors = torch.tensor([[0.0, 0, 32, 32], [500, 500, 532, 532]])
    gt = torch.tensor([[[0.0, 0, 32, 32], [0, 0, 10, 10]]])  # the second overlaps by 0.098
    valid = torch.ones(1, 2, dtype=torch.bool)
    match = uniform(anchors[None], anchors, gt, valid, RULES._replace(topk=1, ignore_thresh=0))
    assert match.owner[0].tolist() == [IGNORED, BACKGROUND]
    assert match.anchor[0][match.valid[0]].tolist() == [0, 0]  # both pairs of the first: box losses


def test_a_later_objects_ignore_erases_what_an_earlier_one_took():
    anchors = torch.tensor([[0.0, 0, 32, 32], [2, 0, 34, 32]])
    gt = torch.tensor([[[0.0, 0, 32, 32], [2.0, 0, 34, 32]]])
    valid, rules = torch.ones(1, 2, dtype=torch.bool), RULES._replace(topk=1)
    match = l1_topk(anchors[None], anchors, gt, valid, rules._replace(ignore_on="anchors"))
    assert match.owner[0].tolist() == [IGNORED, 1] and match.valid[0].tolist() == [False, True]
    match = l1_topk(anchors[None], anchors, gt, valid, rules)
    assert match.owner[0].tolist() == [0, 1] and match.valid[0].all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("function", BATTERY)
def test_a_gpu_matches_alike(function):
    for seed in range(8):
        pred, gt, valid = scene(seed, num_gt=20, on_grid=seed % 2 == 0)
        expected = function(pred, ANCHORS, gt, valid, RULES)
        found = function(pred.cuda(), ANCHORS.cuda(), gt.cuda(), valid.cuda(), RULES)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("ignore_on", ["predictions", "anchors"])
@pytest.mark.parametrize("function", BATTERY)
def test_nothing_waits_for_the_device(function, ignore_on):
    with FakeTensorMode():
        match = function(
            torch.empty(2, 36, 4),
            torch.empty(36, 4),
            torch.empty(2, 6, 4),
            torch.empty(2, 6, dtype=torch.bool),
            RULES._replace(ignore_on=ignore_on),
        )
    assert match.owner.shape == (2, 36)
    assert match.valid.shape == (2, 4 * 6 * (1 + (function is uniform)))
