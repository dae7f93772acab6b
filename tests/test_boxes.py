import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from utils import boxes as box_ops


def random_boxes(*shape, low=1.0, high=60.0):
    center, size = torch.rand(*shape, 2) * 100, low + torch.rand(*shape, 2) * (high - low)
    return torch.cat((center - size / 2, center + size / 2), dim=-1)


def test_forms_round_trip():
    boxes = random_boxes(3, 20)
    assert torch.allclose(box_ops.cxcywh_to_xyxy(box_ops.xyxy_to_cxcywh(boxes)), boxes, atol=1e-4)
    assert box_ops.cxcywh_to_xyxy(torch.tensor([10.0, 20, 4, 6])).tolist() == [8, 17, 12, 23]
    assert box_ops.area(torch.tensor([8.0, 17, 12, 23])).item() == 24


def test_pairwise_covered_by_hand():
    a = torch.tensor([[0.0, 0, 10, 10], [20, 20, 24, 22]])
    b = torch.tensor([[5.0, 0, 15, 10], [0, 0, 100, 100]])
    expected = torch.tensor([[0.5, 1.0], [0.0, 1.0]])
    assert torch.allclose(box_ops.pairwise_covered(a, b), expected, atol=1e-5)


def test_pairwise_iou_is_torchvisions_in_any_batch():
    a, b = random_boxes(2, 7), random_boxes(2, 11)
    expected = torch.stack([box_iou(a[i], b[i]) for i in range(2)])
    assert torch.allclose(box_ops.pairwise_iou(a, b), expected, atol=1e-6)
    assert box_ops.pairwise_iou(a[:, :0], b).shape == (2, 0, 11)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_overlaps_are_one_for_equal_boxes_and_symmetric(kind):
    a, b = random_boxes(50).double(), random_boxes(50).double()
    assert torch.allclose(box_ops.iou(a, a, kind), torch.ones(50).double(), atol=1e-6)
    assert torch.allclose(box_ops.iou(a, b, kind), box_ops.iou(b, a, kind), atol=1e-6)
    assert (box_ops.iou(a, b, kind) <= box_ops.iou(a, b) + 1e-6).all()


def test_aligned_overlap_is_the_diagonal_of_pairwise():
    a, b = random_boxes(30), random_boxes(30)
    expected = box_ops.pairwise_iou(a, b).diagonal()
    assert torch.allclose(box_ops.iou(a, b, eps=0.0), expected, atol=1e-6)


def test_pairwise_ciou_is_the_aligned_one_of_every_pair():
    a, b = random_boxes(2, 5), random_boxes(2, 7)
    b[:, 0] = a[:, 0]
    expected = box_ops.iou(a[:, :, None], b[:, None], "ciou")
    torch.testing.assert_close(box_ops.pairwise_ciou(a, b), expected, rtol=0, atol=1e-6)
    assert expected.min() < 0 and expected.max() > 0.99


def test_unknown_overlap_is_refused():
    with pytest.raises(ValueError, match="siou"):
        box_ops.iou(torch.rand(1, 4), torch.rand(1, 4), "siou")


def test_clip_keeps_boxes_inside_h_and_w():
    boxes = torch.tensor([[-5.0, -6, 300, 400], [10, 20, 30, 40]])
    clipped = box_ops.clip(boxes, torch.tensor([100, 200]))
    assert clipped.tolist() == [[0, 0, 200, 100], [10, 20, 30, 40]]


def test_nms_of_a_batch_is_that_of_each_group():
    boxes, scores = random_boxes(600), torch.rand(600)
    groups = torch.randint(0, 9, (600,))
    keep = box_ops.nms(boxes, scores, groups, 0.5)
    assert (scores[keep].diff() <= 0).all()
    apart = set()
    for group in range(9):
        rows = (groups == group).nonzero().squeeze(1)
        kept = batched_nms(boxes[rows], scores[rows], torch.zeros_like(rows), 0.5)
        apart |= set(rows[kept].tolist())
    assert set(keep.tolist()) == apart


def test_nms_is_exact_in_far_groups():
    pair = torch.tensor([[700.3, 700.3, 704.3, 704.3], [702.5, 700.3, 706.5, 704.3]])  # IoU 0.29
    for group in (0, 639, 80 * 64):
        groups = torch.tensor([group, group, 0])
        boxes = torch.cat((pair, torch.tensor([[0.0, 0, 3000, 3000]])))
        for threshold, count in ((0.28, 2), (0.30, 3)):
            kept = box_ops.nms(boxes, torch.tensor([0.9, 0.8, 0.1]), groups, threshold)
            assert len(kept) == count


def test_nms_survives_infinite_boxes_and_none():
    boxes = torch.tensor([[0.0, 0, 10, 10], [-torch.inf, 0, torch.inf, 10], [0, 0, 10, 10.5]])
    kept = box_ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]), 0.5)
    assert kept.tolist() == [0, 1]
    nothing = torch.zeros(0)
    assert box_ops.nms(nothing.view(0, 4), nothing, nothing.long(), 0.5).tolist() == []
