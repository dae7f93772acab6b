"""How much it costs: element by element; the caller sums, and divides in sight."""

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.boxes import iou


def box_loss(pred: Tensor, gt: Tensor, kind: str = "iou") -> Tensor:
    """Boxes [..., 4] -> [...]: 1 - IoU^2 for "iou" (YOLOX), else 1 - GIoU, 1 - DIoU, 1 - CIoU.

    The plain one is constant, without gradient, for boxes that do not touch.
    """
    if kind == "iou":
        return 1 - iou(pred, gt, "iou", eps=1e-16).square()
    return 1 - iou(pred, gt, kind)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Elementwise, of the sigmoid of `logits`."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def soft_one_hot(labels: Tensor, values: Tensor, num_classes: int) -> Tensor:
    """labels [...], values [...] -> [..., C]: the value at the label, 0 elsewhere."""
    targets = torch.zeros(*labels.shape, num_classes, dtype=values.dtype, device=values.device)
    return targets.scatter_(-1, labels[..., None], values[..., None])
