import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from models.matchers import center_cells, simota
from utils.boxes import iou as aligned_iou
from utils.boxes import pairwise_iou

LEVELS = [(8, 12, 8), (4, 6, 16), (2, 3, 32)]  # of an image of 64 x 96
NUM = sum(rows * columns for rows, columns, _ in LEVELS)
CLASSES = 5


def reference(pred, cls, obj, gt, labels, levels=LEVELS, radius=1.5, kind="iou"):
    """SimOTA of one image as the paper and its code tell it, with loops and dense matrices:
    {location: (gt, IoU)}. Costs outside a box's centre region are infinite."""
    if len(gt) == 0:
        return {}
    points, strides = [], []
    for rows, columns, stride in levels:
        for y in range(rows):
            for x in range(columns):
                points.append(((x + 0.5) * stride, (y + 0.5) * stride))
                strides.append(stride)
    points, reach = gt.new_tensor(points), gt.new_tensor(strides) * radius
    center = (gt[:, :2] + gt[:, 2:]) / 2
    low, high = center[:, None] - reach[:, None], center[:, None] + reach[:, None]
    region = torch.minimum(points - low, high - points).amin(2) > 0  # [G, N]
    candidates = region.any(0).nonzero().squeeze(1)
    if len(candidates) == 0:
        return {}
    pred, cls, obj, region = (
        pred[candidates],
        cls[candidates],
        obj[candidates],
        region[:, candidates],
    )
    iou = pairwise_iou(gt, pred)  # [G, K]
    iou_cost = -torch.log(iou + 1e-8)
    if kind == "ciou":
        iou_cost = -torch.log(
            ((1 + aligned_iou(pred[None], gt[:, None], "ciou")) / 2).clamp(min=1e-8)
        )
    one_hot = F.one_hot(labels, cls.shape[1]).to(cls)[:, None].expand(-1, len(pred), -1)
    prob = (cls.sigmoid() * obj.sigmoid()[:, None]).sqrt()[None].expand_as(one_hot)
    cls_cost = F.binary_cross_entropy(prob, one_hot, reduction="none").sum(2)
    cost = (cls_cost + 3 * iou_cost).masked_fill(~region, math.inf)
    matching = torch.zeros_like(region)
    best = iou.topk(min(10, len(pred)), dim=1).values.sum(1)
    for g in range(len(gt)):
        k = min(max(int(best[g]), 1), int(region[g].sum()))
        cheapest = sorted(range(len(pred)), key=lambda at: (float(cost[g, at]), at))  # noqa: B023
        matching[g, cheapest[:k]] = True
    result = {}
    for at in matching.any(0).nonzero().squeeze(1).tolist():
        claims = matching[:, at].nonzero().squeeze(1).tolist()
        g = claims[0] if len(claims) == 1 else int(cost[:, at].argmin())
        result[int(candidates[at])] = (g, float(iou[g, at]))
    return result


def found(match, image):
    """{location: (gt, IoU)} of one image; every location once."""
    rows = match.valid[image].nonzero().squeeze(1)
    location = match.location[image, rows].tolist()
    assert len(set(location)) == len(location)
    pairs = zip(match.gt[image, rows].tolist(), match.iou[image, rows].tolist(), strict=True)
    return dict(zip(location, pairs, strict=True))


def scene(seed, batch=3, most=9, tiny=False, dtype=torch.float64):
    """Random boxes (some outside, some crowded) and predictions, a part of them good."""
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=rng, dtype=dtype)

    num = int(torch.randint(1, most + 1, (1,), generator=rng))
    side = 4 + 2 * rand(batch, num, 2) if tiny else 4 + 50 * rand(batch, num, 2)
    center = rand(batch, num, 2) * torch.tensor([130.0, 100.0], dtype=dtype) - 17
    if seed % 3 == 0:
        center = center * 0.15 + 30  # a crowd
    gt = torch.cat((center - side / 2, center + side / 2), dim=-1)
    labels = torch.randint(0, CLASSES, (batch, num), generator=rng)
    valid = rand(batch, num) < 0.8
    middle = torch.cat(
        [
            torch.stack(torch.meshgrid(torch.arange(r), torch.arange(c), indexing="ij")[::-1], -1)
            .view(-1, 2)
            .to(dtype)
            .add(0.5)
            .mul(s)
            for r, c, s in LEVELS
        ]
    )
    size = 4 + 40 * rand(batch, NUM, 2)
    pred = torch.cat((middle - size / 2, middle + size / 2), dim=-1)
    nearest = torch.cdist(middle.expand(batch, -1, -1), center).argmin(2)
    good = rand(batch, NUM) < 0.5 * (seed % 2)
    copied = gt.gather(1, nearest[..., None].expand(-1, -1, 4)) + 4 * rand(batch, NUM, 4) - 2
    pred = torch.where(good[..., None], copied, pred)
    cls, obj = 3 * rand(batch, NUM, CLASSES) - 4, 4 * rand(batch, NUM) - 4
    return pred, cls, obj, gt, labels, valid


def compare(inputs, **options):
    pred, cls, obj, gt, labels, valid = inputs
    match = simota(*inputs, levels=LEVELS, **options)
    for image in range(len(pred)):
        slots = valid[image].nonzero().squeeze(1)
        expected = reference(
            pred[image],
            cls[image],
            obj[image],
            gt[image, slots],
            labels[image, slots],
            radius=options.get("center_radius", 1.5),
            kind=options.get("cost_kind", "iou"),
        )
        expected = {at: (int(slots[g]), iou) for at, (g, iou) in expected.items()}
        actual = found(match, image)
        assert {at: g for at, (g, _) in actual.items()} == {
            at: g for at, (g, _) in expected.items()
        }
        for at, (_, iou) in expected.items():
            assert actual[at][1] == pytest.approx(iou, abs=1e-6)
    return match


@pytest.mark.parametrize("seed", range(200))
def test_equals_the_reference(seed):
    compare(scene(seed))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(
    "options", [{"center_radius": 2.5}, {"center_radius": 2.0}, {"cost_kind": "ciou"}], ids=str
)
def test_equals_the_reference_with_options(seed, options):
    compare(scene(seed), **options)


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_reference_on_tiny_crowds(seed):
    compare(scene(3 * seed, most=40, tiny=True))


@pytest.mark.parametrize("seed", range(20))
def test_float32_equals_the_reference(seed):
    compare(scene(seed, dtype=torch.float32))


def test_saturated_scores_equal_the_reference():
    inputs = list(scene(7, dtype=torch.float32))
    inputs[1], inputs[2] = inputs[1] * 40 + 60, inputs[2] * 40 + 60  # sigmoid is 0 or 1 exactly
    compare(inputs)


@pytest.mark.parametrize("seed", [1, 3])
def test_batch_equals_single_images(seed):
    inputs = scene(seed)
    together = simota(*inputs, levels=LEVELS)
    for image in range(3):
        alone = simota(*(tensor[image : image + 1] for tensor in inputs), levels=LEVELS)
        assert found(alone, 0) == found(together, image)


def test_no_boxes():
    pred, cls, obj, gt, labels, valid = scene(1)
    match = simota(pred, cls, obj, gt[:, :0], labels[:, :0], valid[:, :0], levels=LEVELS)
    assert match.valid.shape == match.location.shape == match.iou.shape == (3, 0)
    match = simota(pred, cls, obj, gt, labels, torch.zeros_like(valid), levels=LEVELS)
    assert match.valid.sum() == 0


def test_box_far_outside_gets_nothing_and_takes_nothing():
    pred, cls, obj, gt, labels, valid = scene(2, batch=1, most=1)
    inside, outside = torch.tensor([20.0, 20, 40, 40]), torch.tensor([500.0, 500, 520, 520])
    labels, valid = torch.tensor([[1, 2]]), torch.tensor([[True, True]])
    alone = simota(
        pred, cls, obj, inside.double()[None, None], labels[:, :1], valid[:, :1], levels=LEVELS
    )
    both = torch.stack((inside, outside)).double()[None]
    assert found(simota(pred, cls, obj, both, labels, valid, levels=LEVELS), 0) == found(alone, 0)
    only = simota(pred, cls, obj, both[:, 1:], labels[:, 1:], valid[:, 1:], levels=LEVELS)
    assert only.valid.sum() == 0


def test_two_identical_boxes_share_nothing_and_ties_go_to_the_first():
    pred, cls, obj, gt, labels, valid = scene(4, batch=1, most=1)
    gt = torch.tensor([[[20.0, 20, 44, 44]] * 2]).double()
    labels, valid = torch.tensor([[3, 3]]), torch.tensor([[True, True]])
    match = simota(pred, cls, obj, gt, labels, valid, levels=LEVELS)
    assert {g for g, _ in found(match, 0).values()} == {0}


def test_equal_costs_take_the_lowest_location():
    pred = torch.tensor([20.0, 20, 40, 40]).expand(1, NUM, 4)
    cls, obj = torch.zeros(1, NUM, CLASSES), torch.zeros(1, NUM)
    gt, labels = torch.tensor([[[21.0, 20, 61, 60]]]), torch.zeros(1, 1, dtype=torch.long)
    valid = torch.ones(1, 1, dtype=torch.bool)
    match = simota(pred, cls, obj, gt, labels, valid, levels=LEVELS)
    near, inside = center_cells(gt, valid, LEVELS, 1.5)
    own = near[inside].tolist()
    assert own == sorted(own)
    assert sorted(found(match, 0)) == own[: len(found(match, 0))]
    assert len(found(match, 0)) == 2  # ten overlaps of 0.238


def test_more_boxes_than_locations():
    num = 500
    corner = torch.rand(2, num, 2).double() * torch.tensor([90.0, 60.0])
    gt = torch.cat((corner, corner + 4), dim=-1)
    labels, valid = torch.randint(0, CLASSES, (2, num)), torch.ones(2, num, dtype=torch.bool)
    pred, cls, obj, *_ = scene(5, batch=2)
    match = compare((pred, cls, obj, gt, labels, valid))
    assert 0 < match.valid.sum() <= 2 * NUM


def test_own_cells_of_a_box_on_a_corner_of_cells_are_the_strict_ones():
    gt, valid = torch.tensor([[[28.0, 28, 36, 36], [29, 29, 35.5, 35.5]]]), torch.ones(1, 2).bool()
    _, inside = center_cells(gt, valid, LEVELS, 1.5)
    assert inside.sum(2).tolist() == [[4 + 4 + 4, 9 + 9 + 6]]  # centre (32, 32); (32.25, 32.25)


def test_nothing_waits_for_the_device():
    with FakeTensorMode():
        match = simota(
            torch.empty(2, NUM, 4),
            torch.empty(2, NUM, CLASSES),
            torch.empty(2, NUM),
            torch.empty(2, 6, 4),
            torch.empty(2, 6, dtype=torch.long),
            torch.empty(2, 6, dtype=torch.bool),
            levels=LEVELS,
            cost_kind="ciou",
        )
    assert match.valid.shape == (2, 60)
