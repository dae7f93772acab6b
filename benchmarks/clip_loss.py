"""The loss of clips as YOLOFT's reference computes it, in plain torch: two passes a frame, dense
targets, boolean indexing. Only the network is ours.

B videos, T frames, G boxes, N locations, C classes, K bins, P positives.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.anchors import cells
from models.yoloft import BINS, YOLOFT
from utils.boxes import iou

TOP, SCORE_POWER, OVERLAP_POWER, EPS = 10, 0.5, 6.0, 1e-9
GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


def reference(model: YOLOFT, images: Tensor, targets: dict, memory_format) -> Tensor:
    """The mean over the frames of clips [B, T, 3, H, W], without its factor of B."""
    total, state = 0.0, model.example_state(len(images), images.shape[-2:])
    for t in range(images.shape[1]):
        frame = images[:, t].float().contiguous(memory_format=memory_format)
        model.network(frame, *state)  # dropped
        sides, cls, *state = model.network(frame, *state)
        cell, stride = cells(model.levels(frame), frame.device)
        own = {name: value[:, t] for name, value in targets.items()}
        with torch.autocast(frame.device.type, enabled=False):
            total = total + frame_loss(sides.float(), cls.float(), cell + 0.5, stride, own)
    return total / images.shape[1]


def frame_loss(sides: Tensor, cls: Tensor, points: Tensor, stride: Tensor, targets: dict) -> Tensor:
    """Of sides [B, N, 4 * K] and classes [B, N, C], points [N, 2] in strides."""
    bins = sides.unflatten(2, (4, BINS))  # [B, N, 4, K]
    reach = bins.softmax(3) @ torch.arange(BINS, device=sides.device).float()  # [B, N, 4]
    pred = torch.cat((points - reach[..., :2], points + reach[..., 2:]), dim=2)  # strides
    given = targets["boxes"], targets["labels"], targets["valid"]
    pixels = pred.detach() * stride, cls.detach().sigmoid(), points * stride
    positive, boxes, scores = assign(*pixels, *given)
    divisor = scores.sum().clamp(min=1)
    loss = GAINS["cls"] * F.binary_cross_entropy_with_logits(cls, scores, reduction="sum") / divisor
    if not positive.any():
        return loss
    weight = scores.sum(2)[positive]  # [P]
    gt = (boxes / stride)[positive]  # [P, 4]
    overlap = iou(pred[positive], gt, "ciou")
    loss = loss + GAINS["box"] * ((1 - overlap) * weight).sum() / divisor
    center = points.expand(len(sides), -1, -1)[positive]
    wanted = torch.cat((center - gt[:, :2], gt[:, 2:] - center), dim=1).clamp(0, BINS - 1.01)
    low = wanted.long()  # [P, 4]
    share, flat = low + 1 - wanted, bins[positive].flatten(0, 1)  # of the lower bin; [P * 4, K]
    below = F.cross_entropy(flat, low.flatten(), reduction="none").view_as(wanted)
    above = F.cross_entropy(flat, low.flatten() + 1, reduction="none").view_as(wanted)
    dfl = (below * share + above * (1 - share)).mean(1)
    return loss + GAINS["dfl"] * (dfl * weight).sum() / divisor


@torch.no_grad()
def assign(
    pred: Tensor, scores: Tensor, points: Tensor, gt: Tensor, labels: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(positive [B, N], boxes [B, N, 4], target scores [B, N, C]) of boxes and points in pixels."""
    batch, count, num_classes = scores.shape
    num_gt = gt.shape[1]
    if num_gt == 0:
        nothing = torch.zeros_like(scores)
        return nothing[..., 0].bool(), torch.zeros_like(pred), nothing
    low, high = gt[:, :, None, :2], gt[:, :, None, 2:]
    inside = torch.cat((points - low, high - points), dim=3).amin(3) > EPS  # [B, G, N]
    inside &= valid[..., None]
    own = scores.mT.gather(1, labels[..., None].expand(-1, -1, count))  # [B, G, N]
    overlap = torch.zeros_like(own)
    every_gt = gt[:, :, None].expand(-1, -1, count, -1)
    every_pred = pred[:, None].expand(-1, num_gt, -1, -1)
    overlap[inside] = iou(every_gt[inside], every_pred[inside], "ciou").clamp(min=0)
    metric = own.where(inside, 0.0) ** SCORE_POWER * overlap**OVERLAP_POWER
    best = metric.topk(min(TOP, count), dim=2).indices
    claims = torch.zeros_like(inside).scatter(2, best, True) & inside
    several = claims.sum(1, keepdim=True) > 1  # [B, 1, N]
    owner = F.one_hot(overlap.argmax(1), num_gt).mT.bool()  # [B, G, N]
    claims = torch.where(several, owner, claims)
    positive, slot = claims.any(1), claims.int().argmax(1)  # [B, N]
    metric, overlap = metric * claims, overlap * claims
    scale = overlap.amax(2, keepdim=True) / (metric.amax(2, keepdim=True) + EPS)  # [B, G, 1]
    score = (metric * scale).amax(1)  # [B, N]
    boxes = gt.gather(1, slot[..., None].expand(-1, -1, 4))
    kind = F.one_hot(labels.gather(1, slot), num_classes)  # [B, N, C]
    return positive, boxes, kind * (score * positive)[..., None]
