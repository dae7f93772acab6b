"""Arithmetic on boxes: xyxy pixels unless a name says otherwise, any leading dimensions."""

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

FARTHEST = 1e6  # pixels; NMS compares no coordinate beyond (an untrained network predicts infinity)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat((center - half, center + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip(boxes: Tensor, size_hw: Tensor) -> Tensor:
    """Boxes [N, 4] cut to an image of size (h, w)."""
    return torch.minimum(boxes.clamp(min=0), size_hw.flip(0).repeat(2).to(boxes))


def clipped(found: dict, size_hw: Tensor) -> dict:
    """Detections cut to an image; those that lie wholly outside are left out."""
    boxes = clip(found["boxes"], size_hw)
    inside = area(boxes) > 0
    return {**{key: value[inside] for key, value in found.items()}, "boxes": boxes[inside]}


def pairwise_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """IoU of every pair: [..., N, 4], [..., M, 4] -> [..., N, M]; `eps` is added to the union."""
    ax1, ay1, ax2, ay2 = a.unsqueeze(-2).unbind(-1)  # [..., N, 1]
    bx1, by1, bx2, by2 = b.unsqueeze(-3).unbind(-1)  # [..., 1, M]
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    shared = width.mul_(height)  # [..., N, M]
    union = (area(a).unsqueeze(-1) + area(b).unsqueeze(-2)).sub_(shared)
    return shared / union.add_(eps)


def pairwise_ciou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """CIoU of every pair, as `iou` has it, in a fifth of the time and without a gradient:
    [..., N, 4], [..., M, 4] -> [..., N, M]."""
    ax1, ay1, ax2, ay2 = a.unsqueeze(-2).unbind(-1)  # [..., N, 1]
    bx1, by1, bx2, by2 = (x.contiguous() for x in b.unsqueeze(-3).unbind(-1))  # [..., 1, M]
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    shared = width.mul_(height)  # [..., N, M]
    union = (area(a).unsqueeze(-1) + area(b).unsqueeze(-2)).sub_(shared)
    overlap = shared.div_(union.add_(eps))
    hull_x = torch.maximum(ax2, bx2).sub_(torch.minimum(ax1, bx1)).square_()
    hull_y = torch.maximum(ay2, by2).sub_(torch.minimum(ay1, by1)).square_()
    apart = ((ax1 + ax2) / 2 - (bx1 + bx2) / 2).square_()  # between the centres
    apart.add_(((ay1 + ay2) / 2 - (by1 + by2) / 2).square_())
    apart.div_(hull_x.add_(hull_y).add_(eps))
    turn = torch.atan2(bx2 - bx1, by2 - by1) - torch.atan2(ax2 - ax1, ay2 - ay1)
    v = turn.square_().mul_(4 / math.pi**2)
    shape = v.square().div_(v.sub_(overlap).add_(1 + eps))
    return overlap.sub_(apart).sub_(shape)


def pairwise_covered(a: Tensor, b: Tensor) -> Tensor:
    """The part of each box of `a` that lies in each of `b`: [N, 4], [M, 4] -> [N, M]."""
    overlap, areas = pairwise_iou(a, b, eps=1e-7), area(a)[:, None]
    return overlap * (areas + area(b)) / (1 + overlap) / areas.clamp(min=1e-7)


def iou(a: Tensor, b: Tensor, kind: str = "iou", eps: float = 1e-7) -> Tensor:
    """Overlap of aligned boxes [..., 4] -> [...]: iou, giou, diou or ciou; `eps` in denominators.

    The last three fall below 0 and have a gradient for boxes that do not touch.
    """
    if kind not in ("iou", "giou", "diou", "ciou"):
        raise ValueError(f"no overlap {kind!r}; there are iou, giou, diou, ciou")
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = area(a) + area(b) - shared
    overlap = shared / (union + eps)
    if kind == "iou":
        return overlap
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if kind == "giou":
        hull_area = hull.prod(-1)
        return overlap - (hull_area - union) / (hull_area + eps)
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2  # between the centres
    overlap_diou = overlap - apart.square().sum(-1) / (hull.square().sum(-1) + eps)
    if kind == "diou":
        return overlap_diou
    a_wh, b_wh = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    turn = torch.atan2(b_wh[..., 0], b_wh[..., 1]) - torch.atan2(a_wh[..., 0], a_wh[..., 1])
    v = (4 / math.pi**2) * turn.square()
    with torch.no_grad():
        alpha = v / (1 - overlap + v + eps)
    return overlap_diou - alpha * v


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes [N, 4] that no better box of their group overlaps by more than
    `threshold`, best first. Groups (class + C * image) let one call serve a whole batch.
    """
    # Float64: torchvision sets groups apart by shifting boxes, and shifting them by hundreds of
    # images in float32 would move their corners by whole pixels. MPS knows no float64.
    exact = torch.float32 if boxes.device.type == "mps" else torch.float64
    near = boxes.to(exact).clamp(-FARTHEST, FARTHEST)
    return batched_nms(near, scores.to(exact), groups, threshold)
