import pytest
import torch

from models import losses
from utils.boxes import cxcywh_to_xyxy

# prediction, target (cx, cy, w, h), 1 - IoU^2, 1 - GIoU, 1 - CIoU, gradient of 1 - CIoU
TABLE = [
    ((50, 50, 8, 8), (62, 50, 6, 6), 1.0, 1.34211, 1.33882, (-0.02618, 0, -0.01515, -0.01276)),
    (
        (50, 50, 8, 8),
        (70, 66, 6, 6),
        1.0,
        1.83897,
        1.52146,
        (-0.00941, -0.00637, -0.01119, -0.00953),
    ),
    ((50, 50, 8, 8), (52, 50, 6, 6), 0.81633, 0.59921, 0.59901, (-0.14661, 0, -0.01396, 0.04594)),
    (
        (50, 50, 20, 20),
        (52, 51, 6, 6),
        0.9919,
        0.91,
        0.91625,
        (-0.005, -0.0025, 0.00419, 0.00419),
    ),
    ((50, 50, 20, 10), (50, 50, 10, 20), 0.88889, 0.91667, 0.70042, (0, 0, 0.01321, -0.02642)),
]


@pytest.mark.parametrize("pred, gt, iou, giou, ciou, gradient", TABLE)
def test_box_loss_table(pred, gt, iou, giou, ciou, gradient):
    gt = cxcywh_to_xyxy(torch.tensor(gt, dtype=torch.float32))
    for kind, expected in (("iou", iou), ("giou", giou), ("ciou", ciou)):
        leaf = torch.tensor(pred, dtype=torch.float32, requires_grad=True)
        loss = losses.box_loss(cxcywh_to_xyxy(leaf), gt, kind)
        assert loss.item() == pytest.approx(expected, abs=2e-5)
        loss.backward()
        if kind == "ciou":
            assert leaf.grad.tolist() == pytest.approx(gradient, abs=2e-5)
        if kind == "iou" and expected == 1.0:
            assert leaf.grad.abs().sum() == 0  # what CIoU is for


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_box_loss_vanishes_for_a_perfect_box(kind):
    boxes = torch.tensor([[3.0, 4, 10, 20], [500, 500, 504, 504]])
    assert losses.box_loss(boxes, boxes, kind).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_disjoint_boxes_are_pulled_together(kind):
    pred = torch.tensor([0.0, 0, 4, 4], requires_grad=True)
    losses.box_loss(pred, torch.tensor([20.0, 0, 24, 4]), kind).backward()
    assert pred.grad[[0, 2]].sum() < 0  # to the right


def test_binary_cross_entropy_by_hand():
    logits, targets = torch.tensor([0.0, 2.0, -2.0]), torch.tensor([0.5, 1.0, 0.25])
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log())
    assert torch.allclose(losses.binary_cross_entropy(logits, targets), expected)


def test_soft_one_hot():
    soft = losses.soft_one_hot(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]]), 3)
    assert soft.tolist() == [[[0, 0, 0.5], [0.25, 0, 0]]]
