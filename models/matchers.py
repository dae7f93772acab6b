"""Who matches whom: pure functions on fixed slots, no gradient, no waiting for the device.

B images, G ground-truth slots, N locations, K union-candidate slots, S own-candidate slots of one
box, P positive slots, C classes; of anchors: M anchors, k the number that one box takes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.anchors import Level
from utils.boxes import iou, pairwise_ciou, pairwise_iou, xyxy_to_cxcywh

TOP_K = 10  # most locations one box may get (YOLOX)
IOU_WEIGHT = 3.0  # of the overlap term beside the class term of the cost
CLAIMS = 10  # locations that one box asks for (task-aligned)
SCORE_POWER, OVERLAP_POWER = 0.5, 6  # of the class score and of the overlap in an alignment
BACKGROUND, IGNORED = -1, -2  # anchors that learn that nothing is there, and that learn no class
PIXEL = 2**10  # units of a distance: on a grid many are equal, and rounding must not part them
WHOLE = 2**20  # units of an IoU of 1
FARTHEST = 2**17  # pixels; no coordinate counts as farther (so that sums of four fit into int32)
CHUNK = 2**21  # entries of (boxes, anchors) that are looked at together: 60 MB and more


class Match(NamedTuple):
    """One row per positive slot; what a slot holds where it is not valid means nothing."""

    location: Tensor  # int64 [B, P]
    gt: Tensor  # int64 [B, P]
    valid: Tensor  # bool [B, P]
    iou: Tensor  # float32 [B, P] of the prediction with its box


class TaskMatch(NamedTuple):
    """One row per positive slot; what a slot holds where it is not valid means nothing, but for
    `score`, which is 0 there."""

    location: Tensor  # int64 [B, P]
    gt: Tensor  # int64 [B, P]
    valid: Tensor  # bool [B, P]
    score: Tensor  # float32 [B, P], what the location's class score should be: 0..1


class AnchorMatch(NamedTuple):
    """Pairs of anchors and boxes; what a pair holds where it is not valid means nothing."""

    anchor: Tensor  # int64 [B, P]
    gt: Tensor  # int64 [B, P]
    valid: Tensor  # bool [B, P], the pairs with a box loss
    predicted: Tensor  # bool [B, P], found through a prediction, not through the anchor itself
    owner: Tensor  # int64 [B, M], the box whose class an anchor learns, BACKGROUND or IGNORED


class Rules(NamedTuple):
    """How a matcher of anchors chooses."""

    topk: int  # anchors that one box takes; `uniform`: and as many predictions
    pos_thresh: float  # IoU of an anchor with its box, below which the pair does not count
    ignore_thresh: float  # IoU with a box above which an anchor may be ignored; 0: none is
    ignore_on: str  # whose IoU that is: that of "predictions" or "anchors"


@torch.no_grad()
def simota(
    pred: Tensor,
    cls_logits: Tensor,
    obj_logits: Tensor,
    gt: Tensor,
    labels: Tensor,
    valid: Tensor,
    *,
    levels: list[Level],
    center_radius: float = 1.5,
    cost_kind: str = "iou",
) -> Match:
    """SimOTA (YOLOX, arXiv 2107.08430): each box takes its k cheapest locations near its centre,
    k being the sum of the best overlaps; a location wanted by several goes to the cheapest.

    pred [B, N, 4], cls_logits [B, N, C], obj_logits [B, N], all float32; gt [B, G, 4],
    labels [B, G], valid [B, G]. Differs from the reference where that fails: a box never takes a
    location outside its own centre region, nor more than there are. Ties go to the lower index.
    """
    batch, num_gt = valid.shape
    if num_gt == 0:
        nothing = labels.new_zeros(batch, 0)
        return Match(nothing, nothing, valid, gt.new_zeros(batch, 0))
    num_locations = pred.shape[1]

    own, own_valid = center_cells(gt, valid, levels, center_radius)  # [B, G, S]
    union, place, union_valid = _union(own, own_valid, num_locations)  # [B, K], [B, N], [B, K]
    own_place = place.gather(1, own.flatten(1)).view_as(own)  # [B, G, S] slots in the union

    union_pred = pred.gather(1, union[..., None].expand(-1, -1, 4))  # [B, K, 4]
    overlaps = pairwise_iou(gt, union_pred)  # [B, G, K]
    overlaps.masked_fill_(~(valid[..., None] & union_valid[:, None]), 0.0)
    own_iou = overlaps.gather(2, own_place)  # [B, G, S]

    cost = _class_cost(cls_logits, obj_logits, labels, union, own_place)
    cost = cost + IOU_WEIGHT * _overlap_cost(own_iou, pred, gt, own, cost_kind)
    cost = cost.masked_fill(~own_valid, math.inf)  # [B, G, S]

    best = overlaps.topk(min(TOP_K, overlaps.shape[2]), dim=2).values
    k = best.sum(2).to(torch.int64).clamp(min=1)  # [B, G]
    k = torch.minimum(k, own_valid.sum(2))

    order = cost.argsort(dim=2, stable=True)[..., :TOP_K]  # own slots ascend by location
    claimed = own.gather(2, order)  # [B, G, min(10, S)]
    claims = torch.arange(order.shape[2], device=k.device) < k[..., None]
    keep, winner = _settle(claimed, claims, own, own_valid, cost, num_locations)

    location = claimed.flatten(1)  # [B, P]
    matched_iou = overlaps.flatten(1).gather(
        1, winner * overlaps.shape[2] + place.gather(1, location)
    )
    return Match(location, winner, keep, matched_iou)


def center_cells(gt: Tensor, valid: Tensor, levels: list[Level], radius: float):
    """The locations whose centre lies within `radius` strides of a box's centre, in x and in y.

    (location [B, G, S], valid [B, G, S]); S = cells per level * levels, locations ascend in S.
    Centre regions never hold more than (2 * ceil(radius - 0.5) + 1)^2 cells of a level.
    """
    center = (gt[..., :2] + gt[..., 2:]) / 2  # [B, G, 2]
    locations, inside, first = [], [], 0
    for rows, columns, stride in levels:
        column, near_x = _near(center[..., 0], columns, stride, radius)  # [B, G, D]
        row, near_y = _near(center[..., 1], rows, stride, radius)
        location = first + row[..., :, None] * columns + column[..., None, :]  # [B, G, D, D]
        near = near_y[..., :, None] & near_x[..., None, :] & valid[..., None, None]
        locations.append(location.flatten(2))
        inside.append(near.flatten(2))
        first += rows * columns
    inside = torch.cat(inside, dim=2)
    return torch.cat(locations, dim=2).masked_fill(~inside, 0), inside


def _near(center: Tensor, count: int, stride: int, radius: float) -> tuple[Tensor, Tensor]:
    """The cells around `center` [B, G] on an axis of `count`, and which are near: [B, G, D]."""
    half = math.ceil(radius - 0.5)
    offsets = torch.arange(-half, half + 1, device=center.device)
    cell = torch.floor(center / stride).to(torch.int64)[..., None] + offsets
    point, center, reach = (cell + 0.5) * stride, center[..., None], radius * stride
    # The reference's own comparison, so that centres on the rim fall on the same side.
    near = torch.minimum(point - (center - reach), (center + reach) - point) > 0
    return cell, near & (cell >= 0) & (cell < count)


def _union(own: Tensor, own_valid: Tensor, num_locations: int):
    """All boxes' candidates of an image, each once, ascending: (location [B, K], place [B, N] of a
    location in K, valid [B, K]). K is the most there can be, known without asking the device."""
    batch, slots = own.shape[0], min(own[0].numel(), num_locations)
    spare = own.masked_fill(~own_valid, num_locations).flatten(1)
    candidate = torch.zeros(batch, num_locations + 1, dtype=torch.bool, device=own.device)
    candidate = candidate.scatter_(1, spare, True)[:, :num_locations]
    count = candidate.cumsum(1)
    place = (count - 1).clamp(min=0)
    location = own.new_zeros(batch, slots + 1)
    every = torch.arange(num_locations, device=own.device).expand(batch, -1)
    location.scatter_(1, place.masked_fill(~candidate, slots), every)
    valid = torch.arange(slots, device=own.device) < count[:, -1:]
    return location[:, :slots].masked_fill(~valid, 0), place, valid


def _class_cost(cls_logits, obj_logits, labels, union, own_place) -> Tensor:
    """Binary cross entropy of sqrt(p_cls * p_obj) against the box's class: [B, G, S].

    The sum over classes is made once per location as if no class were right, then corrected for
    the right one. Logarithms are cut at -100 as torch's binary_cross_entropy does.
    """
    batch, num_locations, num_classes = cls_logits.shape
    first = torch.arange(batch, device=union.device)[:, None] * num_locations
    rows = (first + union).flatten()  # [B * K]
    cls = cls_logits.reshape(-1, num_classes).index_select(0, rows).sigmoid_()
    obj = obj_logits.reshape(-1, 1).index_select(0, rows).sigmoid_()
    prob = cls.mul_(obj).sqrt_().view(batch, -1, num_classes)  # [B, K, C]
    label = labels[..., None].expand_as(own_place)
    own_prob = prob.flatten(1).gather(1, (own_place * num_classes + label).flatten(1))
    own_prob = own_prob.view_as(own_place)  # [B, G, S]
    none_right = prob.neg_().log1p_().clamp_(min=-100).sum(2).neg_()  # [B, K]
    cost = none_right.gather(1, own_place.flatten(1)).view_as(own_place)
    wrong, right = torch.log1p(-own_prob).clamp(min=-100), own_prob.log().clamp(min=-100)
    return cost + (wrong - right)


def _overlap_cost(own_iou: Tensor, pred: Tensor, gt: Tensor, own: Tensor, kind: str) -> Tensor:
    """-log of the overlap, [B, G, S]; "ciou" still ranks boxes that do not touch."""
    if kind == "iou":
        return -torch.log(own_iou + 1e-8)
    own_pred = pred.gather(1, own.flatten(1)[..., None].expand(-1, -1, 4))
    own_pred = own_pred.view(*own.shape, 4)  # [B, G, S, 4]
    overlap = iou(own_pred, gt[:, :, None], kind)
    return -torch.log(((1 + overlap) / 2).clamp(min=1e-8))


def _settle(claimed, claims, own, own_valid, cost, num_locations: int) -> tuple[Tensor, Tensor]:
    """One box for each claimed location: (keep [B, P], winner [B, P]).

    A location claimed more than once goes to the box of least cost among all that have it in their
    centre region, also to one that did not claim it. One of its slots is kept.
    """
    batch, num_gt, per_box = claimed.shape
    size = (batch, num_locations + 1)  # the last column takes what is not valid
    gt = torch.arange(num_gt, device=own.device)[:, None]
    slot = torch.arange(num_gt * per_box, device=own.device).expand(batch, -1)
    claimed, claims = claimed.flatten(1), claims.flatten(1)  # [B, P]
    target = claimed.masked_fill(~claims, num_locations)
    none = torch.full(size, num_gt * per_box, device=own.device)
    first = none.scatter_reduce(1, target, slot, "amin")
    last = (none - none - 1).scatter_reduce(1, target, slot, "amax")

    spare = own.masked_fill(~own_valid, num_locations).flatten(1)  # [B, G * S]
    least = cost.new_full(size, math.inf)
    least = least.scatter_reduce(1, spare, cost.flatten(1), "amin")
    is_least = cost.flatten(1) == least.gather(1, spare)
    rival = gt.expand_as(own).flatten(1).masked_fill(~is_least, num_gt - 1)
    cheapest = torch.full(size, num_gt - 1, device=own.device)
    cheapest = cheapest.scatter_reduce(1, spare, rival, "amin")

    claimer = gt.expand(-1, per_box).flatten().expand(batch, -1)
    disputed = first.gather(1, claimed) < last.gather(1, claimed)
    winner = torch.where(disputed, cheapest.gather(1, claimed), claimer)
    keep = claims & (first.gather(1, claimed) == slot)
    return keep, winner


@torch.no_grad()
def uniform(pred: Tensor, anchors: Tensor, gt: Tensor, valid: Tensor, rules: Rules) -> AnchorMatch:
    """YOLOF's (arXiv 2103.09460): each box takes the k nearest predictions and the k nearest
    anchors, by the L1 distance of (cx, cy, w, h); ties go to the lower index.

    pred [B, M, 4], anchors [M, 4], gt [B, G, 4], valid [B, G]. Pairs stand by rank, first those of
    the predictions, then those of the anchors, box by box. Those whose anchor overlaps its box by
    less than `pos_thresh` are not valid. An anchor's last pair decides what it learns: the class,
    or nothing if that pair is not valid. Anchors without a pair are ignored where they, or their
    predictions (`ignore_on`), overlap a box by more than `ignore_thresh` (0: none are).
    """
    num_gt, num_anchors = valid.shape[1], len(anchors)
    if num_gt == 0:
        return _no_match(valid, num_anchors)
    pred = _finite(pred)
    gt_units = _units(xyxy_to_cxcywh(gt))
    near = [
        _least(_distances, _units(xyxy_to_cxcywh(boxes)), gt_units, rules.topk)
        for boxes in (pred, anchors[None])
    ]
    anchor = torch.stack(near, dim=-1).permute(0, 2, 3, 1).flatten(1)  # [B, G, k, 2] -> [B, P]
    pair = torch.arange(anchor.shape[1], device=gt.device)  # rank, then kind, then box
    slot = (pair % num_gt).expand_as(anchor)
    predicted = (pair // num_gt % 2 == 0).expand_as(anchor)
    real = valid.gather(1, slot)
    close = _overlaps(anchor, slot, anchors, gt) >= rules.pos_thresh
    last = _last(pair, anchor, real, num_anchors)  # [B, M]
    learned = torch.where(close, slot, IGNORED).gather(1, last.clamp(min=0))
    watched = pred if rules.ignore_on == "predictions" else anchors[None]
    over = _last_overlapping(watched, gt, valid, rules.ignore_thresh) >= 0
    rest = torch.where(over, IGNORED, BACKGROUND)
    owner = torch.where(last >= 0, learned, rest)
    return AnchorMatch(anchor, slot, real & close, predicted, owner)


@torch.no_grad()
def iou_topk(pred: Tensor, anchors: Tensor, gt: Tensor, valid: Tensor, rules: Rules) -> AnchorMatch:
    """Each box takes, of the k anchors of largest IoU, those above `pos_thresh`; see `_settled`."""
    if valid.shape[1] == 0:
        return _no_match(valid, len(anchors))
    near = _least(_negative_overlaps, anchors[None], gt, rules.topk)
    return _settled(near, pred, anchors, gt, valid, rules)


@torch.no_grad()
def l1_topk(pred: Tensor, anchors: Tensor, gt: Tensor, valid: Tensor, rules: Rules) -> AnchorMatch:
    """Each box takes, of the k anchors whose corners are nearest by L1 distance, those that overlap
    it by more than `pos_thresh`; see `_settled`."""
    if valid.shape[1] == 0:
        return _no_match(valid, len(anchors))
    near = _least(_distances, _units(anchors[None]), _units(gt), rules.topk)
    return _settled(near, pred, anchors, gt, valid, rules)


def _settled(near, pred, anchors, gt, valid, rules: Rules) -> AnchorMatch:
    """One box for each anchor, the last that took it, of the candidates `near` [B, G, k].

    What overlaps a box by more than `ignore_thresh` (0: nothing) is ignored: anchors box by box, so
    that a later box erases what an earlier one took, or else predictions, before boxes take any.
    """
    num_gt, num_anchors = valid.shape[1], len(anchors)
    anchor = near.transpose(1, 2).flatten(1)  # [B, P]: rank, then box
    slot = (torch.arange(anchor.shape[1], device=gt.device) % num_gt).expand_as(anchor)
    taken = valid.gather(1, slot) & (_overlaps(anchor, slot, anchors, gt) > rules.pos_thresh)
    taker = _last(slot, anchor, taken, num_anchors)  # [B, M]
    if rules.ignore_on == "predictions":
        over = _last_overlapping(_finite(pred), gt, valid, rules.ignore_thresh) >= 0
        owner = torch.where(over & (taker < 0), IGNORED, taker)
    else:
        last_over = _last_overlapping(anchors[None], gt, valid, rules.ignore_thresh)
        owner = torch.where(last_over > taker, IGNORED, taker)
    kept = taken & (owner.gather(1, anchor) == slot)
    return AnchorMatch(anchor, slot, kept, torch.zeros_like(kept), owner)


def _no_match(valid: Tensor, num_anchors: int) -> AnchorMatch:
    """No pair, all background: valid [B, 0]."""
    nothing = valid.long()
    owner = nothing.new_full((len(valid), num_anchors), BACKGROUND)
    return AnchorMatch(nothing, nothing, valid, valid, owner)


def _finite(boxes: Tensor) -> Tensor:
    """Predictions of which nothing is infinite: an untrained network's may be."""
    return boxes.nan_to_num(nan=FARTHEST).clamp(-FARTHEST, FARTHEST)


def _units(boxes: Tensor) -> Tensor:
    """Whole units of 1 / PIXEL, int32."""
    return (_finite(boxes) * PIXEL).round().int()


def _least(cost, boxes: Tensor, gt: Tensor, topk: int) -> Tensor:
    """The `topk` boxes [B or 1, M, 4] of least cost for each of gt [B, G, 4], least first, ties by
    index: int64 [B, G, k]. `cost` gives whole numbers, int32 [B, g, M]."""
    index = torch.arange(boxes.shape[1], device=gt.device)
    # Room for all results first: small ones left between large ones would keep a CPU's allocator
    # from using the place of a part again for the next.
    chosen = index.new_empty(*gt.shape[:2], min(topk, len(index)))
    for part, rows in zip(_parts(gt, boxes), _parts(chosen, boxes), strict=True):
        key = cost(boxes, part).long().mul_(2**32).add_(index)
        rows.copy_(key.topk(rows.shape[2], dim=2, largest=False).values)
    return chosen % 2**32


def _parts(gt: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
    """gt [B, G, ...] cut along G, so that no more than CHUNK pairs with boxes are alive at once."""
    return gt.split(max(1, CHUNK // (len(gt) * boxes.shape[1])), dim=1)


def _distances(boxes: Tensor, gt: Tensor) -> Tensor:
    """L1 distances [B, g, M] of int32 vectors."""
    boxes = boxes.mT.contiguous()  # [B or 1, 4, M]: twice as fast
    first, *rest = zip(boxes.unbind(1), gt.unbind(-1), strict=True)
    total = (first[0][:, None] - first[1][..., None]).abs_()
    for values, wanted in rest:
        total += (values[:, None] - wanted[..., None]).abs_()
    return total


def _negative_overlaps(boxes: Tensor, gt: Tensor) -> Tensor:
    """IoU in whole units of 1 / WHOLE, below 0: int32 [B, g, M]."""
    return pairwise_iou(gt, boxes, eps=1e-7).mul_(-WHOLE).round_().int()


def _overlaps(anchor: Tensor, slot: Tensor, anchors: Tensor, gt: Tensor) -> Tensor:
    """IoU of each pair's anchor with its box, [B, P]."""
    return iou(anchors[anchor], gt.gather(1, slot[..., None].expand(-1, -1, 4)))


def _last(value: Tensor, anchor: Tensor, counts: Tensor, num_anchors: int) -> Tensor:
    """For each anchor the greatest value [P] or [B, P] of the pairs that count, else -1: [B, M]."""
    spare = anchor.masked_fill(~counts, num_anchors)  # the last column takes those that do not
    none = anchor.new_full((len(anchor), num_anchors + 1), -1)
    return none.scatter_reduce(1, spare, value.expand_as(anchor), "amax")[:, :-1]


def _last_overlapping(boxes: Tensor, gt: Tensor, valid: Tensor, thresh: float) -> Tensor:
    """For each of boxes [B or 1, M, 4] the last of gt whose IoU with it is above `thresh`, else -1;
    a `thresh` of 0 means none: int64 [B, M]."""
    last = torch.full((len(gt), boxes.shape[1]), -1, device=gt.device)
    if thresh == 0:
        return last
    slots = torch.arange(gt.shape[1], device=gt.device)
    slots = torch.where(valid, slots, -1)[..., None]  # [B, G, 1]
    for part, slot in zip(_parts(gt, boxes), _parts(slots, boxes), strict=True):
        over = pairwise_iou(part, boxes, eps=1e-7) > thresh  # [B, g, M]
        torch.maximum(last, torch.where(over, slot, -1).amax(1), out=last)
    return last


@torch.no_grad()
def task_aligned(
    pred: Tensor, logits: Tensor, points: Tensor, gt: Tensor, labels: Tensor, valid: Tensor
) -> TaskMatch:
    """Task-aligned assignment (arXiv 2108.07755, as in YOLOv8): each box claims the ten locations
    inside it that are best aligned, by class score and overlap (CIoU) of their predictions; a
    location claimed by several goes to the box of largest overlap that contains it.

    pred [B, N, 4], logits [B, N, C], points [N, 2] the locations' centres, all float32;
    gt [B, G, 4], labels [B, G], valid [B, G]. A location's score is its alignment, scaled so that
    the best of a box has the box's largest overlap. Ties go to the lower index.
    """
    batch, num_gt = valid.shape
    if num_gt == 0:
        nothing = labels.new_zeros(batch, 0)
        return TaskMatch(nothing, nothing, valid, gt.new_zeros(batch, 0))
    claimed, claims, owner = _claims(pred, logits, points, gt, labels, valid)
    location, keep, winner = _one_each(claimed, claims, owner)
    alignment, overlap = _alignments(pred, logits, gt, labels, location, winner)
    alignment, overlap = (torch.where(keep, x, 0.0) for x in (alignment, overlap))
    none = gt.new_zeros(batch, num_gt)
    best_alignment = none.scatter_reduce(1, winner, alignment, "amax").gather(1, winner)
    best_overlap = none.scatter_reduce(1, winner, overlap, "amax").gather(1, winner)
    return TaskMatch(location, winner, keep, alignment * best_overlap / (best_alignment + 1e-9))


def _claims(pred, logits, points, gt, labels, valid) -> tuple[Tensor, Tensor, Tensor]:
    """(location [B, G, k], whether it is claimed [B, G, k], the box of largest overlap of those
    that contain a location, if one does [B, N])."""
    count = pred.shape[1]
    number = torch.arange(count, device=gt.device)
    slot = torch.arange(valid.shape[1], device=gt.device)
    claimed, claims = [], []
    most = pred.new_full(pred.shape[:2], -1.0)  # [B, N]
    owner = torch.zeros_like(most, dtype=torch.int64)
    parts = (_parts(x, pred) for x in (gt, labels, valid, slot.expand_as(labels)))
    for boxes, kinds, real, slots in zip(*parts, strict=True):
        inside = contains(boxes, points) & real[..., None]  # [B, g, N]
        overlap = pairwise_ciou(boxes, pred).clamp_(min=0)
        own = logits.mT.gather(1, kinds[..., None].expand(-1, -1, count)).sigmoid_()
        alignment = own.pow_(SCORE_POWER).mul_(overlap.pow(OVERLAP_POWER))
        # Bits of floats from 0 on rise as the floats do: above the number, one order of both.
        key = (alignment.view(torch.int32).long() * 2**32).sub_(number)
        best = key.masked_fill_(~inside, -(2**62)).topk(min(CLAIMS, count), dim=2)
        claimed.append(best.indices)
        claims.append(best.values > -(2**62))
        overlap.masked_fill_(~inside, -1.0)
        largest = overlap.amax(1)  # [B, N]
        first = torch.where(overlap == largest[:, None], slots[..., None], len(slot)).amin(1)
        owner = torch.where(largest > most, first, owner)
        most = torch.maximum(most, largest)
    return torch.cat(claimed, dim=1), torch.cat(claims, dim=1), owner


def matched(match: Match | AnchorMatch | TaskMatch, valid: Tensor) -> Tensor:
    """Which of the boxes [B, G] have a location: bool [B, G]."""
    spare = match.gt.masked_fill(~match.valid, valid.shape[1])
    found = F.pad(torch.zeros_like(valid), (0, 1))
    return found.scatter(1, spare, True)[:, :-1]


def contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Which points [N, 2] lie inside boxes [B, G, 4], not on their sides: bool [B, G, N]."""
    x, y = points.unbind(1)
    x1, y1, x2, y2 = boxes[..., None].unbind(2)  # [B, G, 1]
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def _one_each(claimed, claims, owner) -> tuple[Tensor, Tensor, Tensor]:
    """(location, keep, winner), [B, P] each: a location claimed twice goes to its owner, and one
    of its slots is kept."""
    batch, num_gt, per_box = claimed.shape
    slot = torch.arange(num_gt * per_box, device=owner.device).expand(batch, -1)
    claimed, claims = claimed.flatten(1), claims.flatten(1)  # [B, P]
    spare = claimed.masked_fill(~claims, owner.shape[1])
    none = slot.new_full((batch, owner.shape[1] + 1), num_gt * per_box)
    first = none.scatter_reduce(1, spare, slot, "amin").gather(1, claimed)
    last = (none - none - 1).scatter_reduce(1, spare, slot, "amax").gather(1, claimed)
    winner = torch.where(first < last, owner.gather(1, claimed), slot // per_box)
    return claimed, claims & (first == slot), winner


def _alignments(pred, logits, gt, labels, location, winner) -> tuple[Tensor, Tensor]:
    """(alignment, overlap) of each slot's location with its box, [B, P]."""
    own = pred.gather(1, location[..., None].expand(-1, -1, 4))
    boxes = gt.gather(1, winner[..., None].expand(-1, -1, 4))
    overlap = iou(boxes, own, "ciou").clamp(min=0)
    at = location * logits.shape[2] + labels.gather(1, winner)
    score = logits.flatten(1).gather(1, at).sigmoid()
    return score.pow(SCORE_POWER) * overlap.pow(OVERLAP_POWER), overlap
