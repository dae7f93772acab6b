"""YOLOX (arXiv 2107.08430): every cell of three maps predicts one box, whether there is an object,
and its class; SimOTA decides in each step which cells learn which object.

B images, G ground-truth slots, N locations (strides 8, 16, 32; 3549 at 416 pixels), P positive
slots, C classes. Differs from the reference where that fails: see matchers.simota.
"""

import math

import torch
from torch import Tensor, nn

from models import losses, matchers
from models.anchors import Level, cells
from models.detector import Detector, check_one_of, without_covered
from models.layers import ConvBNAct, conv_type
from models.necks import FPN, PAFPN
from utils.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.errors import UserError

PRIOR = 0.01  # objectness and class scores of an untrained head
LOSS_WEIGHTS = {"iou": 5.0, "obj": 1.0, "cls": 1.0, "l1": 0.0}  # a stage may change them
BOX_LOSSES = ("iou", "giou", "diou", "ciou")
ASSIGN_COSTS = ("iou", "ciou")


class Head(nn.Module):
    """Two towers on each level: one for classes, one for boxes and objectness."""

    def __init__(self, channels, *, num_classes: int, width: float, depthwise: bool, act: str):
        super().__init__()
        hidden = int(256 * width)
        conv = conv_type(depthwise)

        def tower() -> nn.Sequential:
            return nn.Sequential(*(conv(hidden, hidden, 3, act=act) for _ in range(2)))

        def predictor(outputs: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(hidden, outputs, 1) for _ in channels)

        self.stems = nn.ModuleList(ConvBNAct(c, hidden, 1, act=act) for c in channels)
        self.cls_convs = nn.ModuleList(tower() for _ in channels)
        self.reg_convs = nn.ModuleList(tower() for _ in channels)
        self.cls_preds = predictor(num_classes)
        self.reg_preds = predictor(4)
        self.obj_preds = predictor(1)
        for layer in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Raw boxes [B, N, 4], objectness [B, N] and classes [B, N, C]."""
        raw, obj, cls = [], [], []
        for k, x in enumerate(maps):
            x = self.stems[k](x)
            reg = self.reg_convs[k](x)
            raw.append(_flat(self.reg_preds[k](reg)))
            obj.append(_flat(self.obj_preds[k](reg)))
            cls.append(_flat(self.cls_preds[k](self.cls_convs[k](x))))
        return torch.cat(raw, dim=1), torch.cat(obj, dim=1).squeeze(2), torch.cat(cls, dim=1)


def _flat(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, C, h, w] -> [B, h * w, C]


class YOLOX(Detector):
    """The detector on any backbone with maps of strides 8, 16, 32.

    `depth` and `width` are those of neck and head. `iou_loss` iou, giou, diou or ciou;
    `assign_cost` iou or ciou; `center_radius` in strides.
    """

    class_layers = ("head.cls_preds.",)

    def __init__(
        self,
        backbone: nn.Module,
        *,
        classes: tuple[str, ...],
        depth: float,
        width: float,
        depthwise: bool = False,
        act: str = "silu",
        neck: str = "pafpn",
        iou_loss: str = "iou",
        assign_cost: str = "iou",
        center_radius: float = 1.5,
        sides: tuple[int, int] = (640, 640),
        conf: float = 0.001,
        nms: float = 0.65,
        max_dets: int = 1000,
    ):
        super().__init__(
            classes=classes,
            pixels=backbone.pixels,
            sides=sides,
            conf=conf,
            nms=nms,
            max_dets=max_dets,
        )
        check_one_of("yolox: iou_loss", iou_loss, BOX_LOSSES)
        check_one_of("yolox: assign_cost", assign_cost, ASSIGN_COSTS)
        check_one_of("yolox: neck", neck, ("pafpn", "fpn"))
        if tuple(backbone.strides) != (8, 16, 32):
            raise UserError(f"YOLOX needs maps of strides 8, 16, 32, not {backbone.strides}")
        self.iou_loss, self.assign_cost, self.center_radius = iou_loss, assign_cost, center_radius
        self.strides = backbone.strides
        self.backbone = backbone
        if neck == "pafpn":
            self.neck = PAFPN(
                backbone.channels, depth=depth, width=width, depthwise=depthwise, act=act
            )
        else:
            self.neck = FPN(backbone.channels, act=act)
        self.head = Head(
            self.neck.channels, num_classes=len(classes), width=width, depthwise=depthwise, act=act
        )

    def network(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw boxes [B, N, 4], objectness [B, N], classes [B, N, C] of filled-up images."""
        height, width = images.shape[-2:]
        if height % 32 or width % 32:
            raise UserError(f"YOLOX needs image sides that 32 divides, not {height} x {width}")
        return self.head(self.neck(self.backbone(self.normalize(images))))

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `network` returns, in float32: over 256 bfloat16 counts pixels in twos."""
        raw, obj, cls = self.network(images)
        return raw.float(), obj.float(), cls.float()

    def levels(self, images: Tensor) -> list[Level]:
        height, width = images.shape[-2:]
        return [(height // stride, width // stride, stride) for stride in self.strides]

    # ---- inference ----

    def decode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw, obj, cls = self.outputs(images)
        boxes = cxcywh_to_xyxy(decode_cxcywh(raw, *cells(self.levels(images), raw.device)))
        return boxes, obj.sigmoid()[..., None] * cls.sigmoid()

    def detections(self, outputs: tuple[Tensor, Tensor, Tensor], images: Tensor) -> list[dict]:
        raw, obj, cls = outputs
        obj = obj.float().sigmoid()
        # No class scores higher than the objectness: most locations need no more than that.
        image, at = torch.nonzero(obj >= self.conf, as_tuple=True)
        scores = obj[image, at, None] * cls[image, at].float().sigmoid()  # [M, C]
        scores, labels = scores.max(dim=1)
        chosen = torch.nonzero(scores >= self.conf).squeeze(1)
        image, at = image[chosen], at[chosen]
        cell, stride = (table[at] for table in cells(self.levels(images), raw.device))
        boxes = cxcywh_to_xyxy(decode_cxcywh(raw[image, at].float(), cell, stride))
        found = {"boxes": boxes, "scores": scores[chosen], "labels": labels[chosen]}
        return without_covered(found, image, len(obj), nms=self.nms, max_dets=self.max_dets)

    # ---- training ----

    def loss(self, images: Tensor, targets: dict, weights: dict | None = None) -> dict:
        for name in weights or {}:
            check_one_of("yolox: the loss that a stage weighs", name, LOSS_WEIGHTS)
        weights = LOSS_WEIGHTS | (weights or {})
        images = self.fill_padding(images, targets["size"])
        raw, obj, cls = self.outputs(images)
        with torch.autocast(raw.device.type, enabled=False):
            levels = self.levels(images)
            match = self.match(raw, obj, cls, targets, levels)
            terms = self.terms(raw, obj, cls, targets, levels, match, with_l1=weights["l1"] > 0)
            positives, objects = match.valid.sum().float(), targets["valid"].sum()
            terms = {
                name: term * (weights[name] / positives.clamp(min=1))
                for name, term in terms.items()
            }
            total = torch.stack(tuple(terms.values())).sum()
        return {
            "loss": total,
            **{name: term.detach() for name, term in terms.items()},
            "divisor": positives,
            "positives": positives,
            # Positives whose prediction misses their box: where the plain IoU loss has no gradient.
            "disjoint": ((match.iou <= 0) & match.valid).sum() / positives.clamp(min=1),
            "per_object": positives / objects.clamp(min=1),
            "unmatched": (objects - matchers.matched(match, targets["valid"]).sum()).float(),
        }

    @torch.no_grad()
    def match(self, raw, obj, cls, targets: dict, levels: list[Level]) -> matchers.Match:
        return matchers.simota(
            cxcywh_to_xyxy(decode_cxcywh(raw, *cells(levels, raw.device))),
            cls,
            obj,
            targets["boxes"],
            targets["labels"],
            targets["valid"],
            levels=levels,
            center_radius=self.center_radius,
            cost_kind=self.assign_cost,
        )

    def terms(self, raw, obj, cls, targets, levels, match: matchers.Match, *, with_l1: bool):
        """Sums over the batch, neither weighted nor divided: {"iou", "obj", "cls", "l1"}."""
        num_classes, valid = cls.shape[2], match.valid
        location = match.location[..., None]  # [B, P, 1]
        gt_at = match.gt[..., None].expand(-1, -1, 4)
        gt = targets["boxes"].gather(1, gt_at)  # [B, P, 4]
        labels = targets["labels"].gather(1, match.gt)  # [B, P]
        cell, stride = (table[match.location] for table in cells(levels, raw.device))
        # Slots without a match must be harmless before exp and division, not only after:
        # a gradient of 0 * infinity is not a number.
        own_raw = raw.gather(1, location.expand(-1, -1, 4))
        own_raw = torch.where(valid[..., None], own_raw, 0.0)
        pred = cxcywh_to_xyxy(decode_cxcywh(own_raw, cell, stride))
        gt = torch.where(valid[..., None], gt, pred.detach())
        iou = losses.box_loss(pred, gt, self.iou_loss)

        spare = match.location.masked_fill(~valid, obj.shape[1])
        is_object = torch.zeros(len(obj), obj.shape[1] + 1, device=obj.device)
        is_object = is_object.scatter_(1, spare, 1.0)[:, :-1]  # [B, N]
        own_cls = cls.gather(1, location.expand(-1, -1, num_classes))  # [B, P, C]
        soft = losses.soft_one_hot(labels, match.iou, num_classes)
        cls_loss = losses.binary_cross_entropy(own_cls, soft).sum(2)
        l1 = raw.new_zeros(())
        if with_l1:
            l1 = (own_raw - encode_cxcywh(xyxy_to_cxcywh(gt), cell, stride)).abs().sum(2)
            l1 = torch.where(valid, l1, 0.0).sum()
        return {
            "iou": torch.where(valid, iou, 0.0).sum(),
            "obj": losses.binary_cross_entropy(obj, is_object).sum(),
            "cls": torch.where(valid, cls_loss, 0.0).sum(),
            "l1": l1,
        }

    @torch.no_grad()
    def positives(self, images: Tensor, targets: dict) -> list[dict]:
        training = self.training
        images = self.eval().fill_padding(images, targets["size"])
        raw, obj, cls = self.outputs(images)
        self.train(training)
        levels = self.levels(images)
        match = self.match(raw, obj, cls, targets, levels)
        cell, stride = cells(levels, raw.device)
        points = ((cell + 0.5) * stride)[match.location]  # [B, P, 2]
        strides = stride.squeeze(1).long()[match.location]  # [B, P]
        return [
            {"points": points[b][valid], "gt": match.gt[b][valid], "strides": strides[b][valid]}
            for b, valid in enumerate(match.valid)
        ]


def decode_cxcywh(raw: Tensor, cell: Tensor, stride: Tensor) -> Tensor:
    """Raw outputs [..., 4] of the cells [..., 2] -> boxes (cx, cy, w, h) in pixels.

    An offset of 0 is the cell's upper left corner, not its centre, as in the published weights.
    """
    return torch.cat(((raw[..., :2] + cell) * stride, raw[..., 2:].exp() * stride), dim=-1)


def encode_cxcywh(boxes_cxcywh: Tensor, cell: Tensor, stride: Tensor) -> Tensor:
    """The raw outputs that would be decoded to these boxes."""
    scaled = boxes_cxcywh / stride
    return torch.cat((scaled[..., :2] - cell, (scaled[..., 2:] + 1e-8).log()), dim=-1)
