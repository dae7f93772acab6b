"""Task-aligned assignment against a readable form in loops, and what must hold of it."""

import math

import pytest
import torch

from models import matchers
from utils.boxes import iou

SIDE, STRIDE = 96, 8


def locations() -> torch.Tensor:
    at = torch.arange(SIDE // STRIDE) * STRIDE + STRIDE / 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1).float()


def case(seed: int, batch: int = 2, num_gt: int = 7, num_classes: int = 3):
    """(pred, logits, points, gt, labels, valid): predictions that overlap some of the boxes."""
    rng = torch.Generator().manual_seed(seed)
    points = locations()
    reach = torch.rand(batch, len(points), 4, generator=rng) * 30
    pred = torch.cat((points - reach[..., :2], points + reach[..., 2:]), dim=2)
    logits = torch.randn(batch, len(points), num_classes, generator=rng) * 2
    center = torch.rand(batch, num_gt, 2, generator=rng) * SIDE
    half = 2 + torch.rand(batch, num_gt, 2, generator=rng) * 25
    gt = torch.cat((center - half, center + half), dim=2).clamp(0, SIDE)
    labels = torch.randint(num_classes, (batch, num_gt), generator=rng)
    valid = torch.rand(batch, num_gt, generator=rng) < 0.8
    return pred, logits, points, gt, labels, valid


def in_loops(pred, logits, points, gt, labels, valid) -> dict[int, tuple[int, float]]:
    """{location: (box, score)} of one image."""
    overlap, alignment, claims = {}, {}, {}
    boxes = [g for g in range(len(gt)) if valid[g]]
    for g in boxes:
        x1, y1, x2, y2 = gt[g].tolist()
        for n, (x, y) in enumerate(points.tolist()):
            if not (x1 < x < x2 and y1 < y < y2):
                continue
            overlap[g, n] = max(iou(gt[g], pred[n], "ciou").item(), 0.0)
            score = 1 / (1 + math.exp(-logits[n, labels[g]].item()))
            alignment[g, n] = score**0.5 * overlap[g, n] ** 6
        own = sorted((-value, n) for (box, n), value in alignment.items() if box == g)
        for _, n in own[:10]:
            claims.setdefault(n, []).append(g)
    owner = {}
    for n, claimers in claims.items():
        rivals = [(-overlap[g, n], g) for g in boxes if (g, n) in overlap]
        owner[n] = claimers[0] if len(claimers) == 1 else min(rivals)[1]
    scores = {}
    for n, g in owner.items():
        mine = [m for m in owner if owner[m] == g]
        most = max(overlap[g, m] for m in mine), max(alignment[g, m] for m in mine)
        scores[n] = g, alignment[g, n] * most[0] / (most[1] + 1e-9)
    return scores


def found(match: matchers.TaskMatch, image: int) -> dict[int, tuple[int, float]]:
    valid = match.valid[image]
    rows = (match.location, match.gt, match.score)
    location, gt, score = (row[image][valid].tolist() for row in rows)
    assert len(set(location)) == len(location)
    return {n: (g, s) for n, g, s in zip(location, gt, score, strict=True)}


@pytest.mark.parametrize("seed", range(6))
def test_as_in_loops(seed):
    given = case(seed)
    match = matchers.task_aligned(*given)
    for image in range(2):
        row = [x if x.ndim == 2 and len(x) > 2 else x[image] for x in given]
        expected, actual = in_loops(*row), found(match, image)
        assert actual.keys() == expected.keys() and len(actual) > 10
        for n, (g, score) in expected.items():
            assert actual[n][0] == g
            assert actual[n][1] == pytest.approx(score, rel=1e-3, abs=1e-6)


def test_in_parts_as_at_once(monkeypatch):
    given = case(0, num_gt=9)
    whole = matchers.task_aligned(*given)
    monkeypatch.setattr(matchers, "CHUNK", 600)  # two boxes at a time
    for one, other in zip(whole, matchers.task_aligned(*given), strict=True):
        assert torch.equal(one, other)


def test_batched_as_alone():
    pred, logits, points, gt, labels, valid = case(1)
    together = matchers.task_aligned(pred, logits, points, gt, labels, valid)
    for image in range(2):
        rows = slice(image, image + 1)
        rest = gt[rows], labels[rows], valid[rows]
        alone = matchers.task_aligned(pred[rows], logits[rows], points, *rest)
        assert found(alone, 0) == found(together, image)


def test_no_box_and_no_valid_box():
    pred, logits, points, gt, labels, valid = case(2)
    nothing = matchers.task_aligned(pred, logits, points, gt[:, :0], labels[:, :0], valid[:, :0])
    assert nothing.valid.shape == (2, 0)
    none = matchers.task_aligned(pred, logits, points, gt, labels, torch.zeros_like(valid))
    assert not none.valid.any() and not none.score.any()


def test_ties_go_to_the_lower_index():
    points = locations()
    pred = torch.tensor([10.0, 10, 90, 90]).expand(1, len(points), 4)
    logits = torch.zeros(1, len(points), 2)
    gt = torch.tensor([[[10.0, 10, 90, 90], [10, 10, 90, 90]]])
    match = matchers.task_aligned(
        pred, logits, points, gt, torch.zeros(1, 2).long(), torch.ones(1, 2).bool()
    )
    inside = matchers.contains(gt, points)[0, 0].nonzero().squeeze(1)
    assert found(match, 0).keys() == set(inside[:10].tolist())
    assert {g for g, _ in found(match, 0).values()} == {0}
    assert match.score[match.valid].tolist() == pytest.approx([1.0] * 10)


def test_fewer_locations_inside_than_claims():
    """A box that holds four centres takes four, also where no prediction overlaps it; one that
    holds none takes none."""
    points = locations()
    pred = torch.zeros(1, len(points), 4)
    gt = torch.tensor([[[8.0, 8, 24, 24], [5, 5, 11, 11]]])
    match = matchers.task_aligned(
        pred,
        torch.zeros(1, len(points), 1),
        points,
        gt,
        torch.zeros(1, 2).long(),
        torch.ones(1, 2).bool(),
    )
    assert sorted(found(match, 0)) == [13, 14, 25, 26]
    assert not match.score.any()


def test_a_centre_on_a_side_is_outside():
    points = torch.tensor([[4.0, 4.0], [8.0, 8.0]])
    boxes = torch.tensor([[[4.0, 0, 10, 10], [0, 0, 8, 8]]])
    assert matchers.contains(boxes, points).tolist() == [[[False, True], [True, False]]]
