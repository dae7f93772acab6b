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


def distribution(logits: Tensor, targets: Tensor) -> Tensor:
    """Distribution focal loss (arXiv 2006.04388): logits [..., K] of the whole numbers from 0 on,
    targets [...] from 0 to less than K - 1 -> [...]: cross entropy of the two beside a target."""
    below = targets.floor()
    share = (targets - below)[..., None]  # of the number above
    below = below.long()[..., None]
    log_prob = logits.log_softmax(dim=-1)
    entropy = log_prob.gather(-1, below) * (1 - share) + log_prob.gather(-1, below + 1) * share
    return -entropy.squeeze(-1)


class _SigmoidFocal(torch.autograd.Function):
    """Keeps two tensors for the gradient, one of them bool, where autograd would keep eight."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.alpha, ctx.gamma = alpha, gamma
        weight, wrong, entropy = _focal_parts(logits, targets, alpha)
        return entropy.mul_(wrong.pow_(gamma)).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        logits, targets = ctx.saved_tensors
        weight, wrong, entropy = _focal_parts(logits, targets, ctx.alpha)
        slope = entropy.mul_(ctx.gamma).mul_(1 - wrong).add_(wrong)
        slope.mul_(wrong.pow_(ctx.gamma)).mul_(weight)
        return torch.where(targets, -slope, slope).mul_(grad), None, None, None


def _focal_parts(logits: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """(weight of its kind, probability of being wrong, cross entropy), elementwise."""
    against = torch.where(targets, -logits, logits)
    weight = torch.where(targets, alpha, 1 - alpha)
    return weight, against.sigmoid(), F.softplus(against)


def sigmoid_focal(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Elementwise focal loss (arXiv 1708.02002); `targets` is bool."""
    return _SigmoidFocal.apply(logits, targets, alpha, gamma)
