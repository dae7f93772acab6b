"""YOLOF (arXiv 2103.09460): one map, seen by an encoder of growing dilations; every cell predicts a
box from each of its square anchors; each object learns through as many anchors as any other.

B images, G ground-truth slots, A anchors in a cell, M in an image, P pairs of an anchor and an
object, C classes. Differs from the reference where that fails: ties of the matcher go to the
lower index, and no class logit, however large, has a gradient that is not finite.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import losses, matchers
from models.anchors import Level, cells, decode_deltas, square_anchors
from models.detector import Detector, check_one_of, without_covered
from models.layers import ConvBNAct

CHANNELS = 512
PRIOR = 0.01  # class scores of an untrained head, before the objectness
LOGIT_CLAMP = math.log(1e8)  # where the exponentials of the objectness end
BEST_SCORES = 1000  # of an image, that NMS looks at (`best_class`: as many as elsewhere)
LOSS_WEIGHTS = {"cls": 1.0, "box": 1.0}  # a stage may change them
MATCHERS = {
    "uniform": matchers.uniform,
    "iou_topk": matchers.iou_topk,
    "l1_topk": matchers.l1_topk,
}
NORM = {"eps": 1e-5, "momentum": 0.1}


class Block(nn.Module):
    """1 x 1, a dilated 3 x 3 and 1 x 1, whose result is added to the input."""

    def __init__(self, dilation: int, *, act: str):
        super().__init__()
        hidden, options = CHANNELS // 4, {"bias": True, "act": act, **NORM}
        self.conv1 = ConvBNAct(CHANNELS, hidden, 1, **options)
        self.conv2 = ConvBNAct(hidden, hidden, 3, dilation=dilation, **options)
        self.conv3 = ConvBNAct(hidden, CHANNELS, 1, **options)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(self.conv2(self.conv1(x)))


class DilatedEncoder(nn.Module):
    """The last map of the backbone, and what lies around each cell at several distances."""

    def __init__(self, cin: int, *, dilations: tuple[int, ...], act: str):
        super().__init__()
        options = {"bias": True, "act": "none", **NORM}
        self.lateral = ConvBNAct(cin, CHANNELS, 1, **options)
        self.fpn = ConvBNAct(CHANNELS, CHANNELS, 3, **options)
        self.blocks = nn.Sequential(*(Block(dilation, act=act) for dilation in dilations))
        for conv in (self.lateral.conv, self.fpn.conv):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)
        _init_normal(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.fpn(self.lateral(x)))


class Head(nn.Module):
    """Two towers: one for classes, one for boxes and what objectness there is in them."""

    def __init__(self, *, num_anchors: int, num_classes: int, kernel: int, act: str):
        super().__init__()
        self.num_anchors = num_anchors
        options = {"bias": True, "act": act, **NORM}

        def tower(depth: int) -> nn.Sequential:
            return nn.Sequential(
                *(ConvBNAct(CHANNELS, CHANNELS, 3, **options) for _ in range(depth))
            )

        def predictor(outputs: int) -> nn.Conv2d:
            return nn.Conv2d(CHANNELS, num_anchors * outputs, kernel, padding=kernel // 2)

        self.cls_convs, self.reg_convs = tower(2), tower(4)
        self.cls_pred, self.reg_pred, self.obj_pred = (
            predictor(outputs) for outputs in (num_classes, 4, 1)
        )
        _init_normal(self)
        nn.init.constant_(self.cls_pred.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Deltas [B, M, 4], objectness [B, M] and classes [B, M, C]."""
        cls, reg = self.cls_convs(x), self.reg_convs(x)
        predictions = self.reg_pred(reg), self.obj_pred(reg), self.cls_pred(cls)
        raw, obj, cls = (flat(x, self.num_anchors) for x in predictions)
        return raw, obj.squeeze(2), cls


def _init_normal(module: nn.Module):
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)


def flat(x: Tensor, num_anchors: int) -> Tensor:
    """[B, A * C, h, w] -> [B, h * w * A, C]."""
    return x.permute(0, 2, 3, 1).unflatten(3, (num_anchors, -1)).flatten(1, 3)


class YOLOF(Detector):
    """The detector on the last map of any backbone. For the options see recipes.YolofOptions."""

    class_layers = ("head.cls_pred.",)
    maps = 1

    def __init__(
        self,
        backbone: nn.Module,
        *,
        classes: tuple[str, ...],
        dilations: tuple[int, ...] = (2, 4, 6, 8),
        anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512),
        matcher: str = "uniform",
        topk: int = 4,
        pos_thresh: float = 0.15,
        ignore_thresh: float = 0.7,
        ignore_on: str = "predictions",
        image_mask: bool = True,
        decode_method: int = 2,
        ctr_clamp: float = 32.0,
        loss_norm: str = "batch",
        head_kernel: int = 3,
        anchor_offset: float = 0.0,
        head_act: str = "relu",
        logit_clamp: float = LOGIT_CLAMP,
        best_class: bool = False,
        sides: tuple[int, int] = (800, 1333),
        conf: float = 0.05,
        nms: float = 0.6,
        max_dets: int = 100,
    ):
        super().__init__(
            classes=classes,
            pixels=backbone.pixels,
            sides=sides,
            conf=conf,
            nms=nms,
            max_dets=max_dets,
        )
        check_one_of("yolof: matcher", matcher, MATCHERS)
        check_one_of("yolof: ignore_on", ignore_on, ("predictions", "anchors"))
        check_one_of("yolof: decode_method", decode_method, (1, 2))
        check_one_of("yolof: loss_norm", loss_norm, ("batch", "image"))
        check_one_of("yolof: head_kernel", head_kernel, (1, 3))
        self.matcher = matcher
        self.rules = matchers.Rules(topk, pos_thresh, ignore_thresh, ignore_on)
        self.image_mask, self.loss_norm, self.best_class = image_mask, loss_norm, best_class
        self.anchor_offset, self.logit_clamp = anchor_offset, logit_clamp
        self.stride = backbone.strides[-1]
        self.strides = (self.stride,)
        self.coder = {"stride": self.stride if decode_method == 1 else None, "ctr_clamp": ctr_clamp}
        sizes = torch.tensor(anchor_sizes, dtype=torch.float32)
        self.register_buffer("anchor_sizes", sizes, persistent=False)
        self.backbone = backbone
        self.neck = DilatedEncoder(backbone.channels[-1], dilations=dilations, act=head_act)
        self.head = Head(
            num_anchors=len(anchor_sizes),
            num_classes=len(classes),
            kernel=head_kernel,
            act=head_act,
        )

    def network(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Deltas [B, M, 4], objectness [B, M], classes [B, M, C] of filled-up images."""
        return self.head(self.neck(self.backbone(self.normalize(images))[-1]))

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `network` returns, in float32: over 256 bfloat16 counts pixels in twos."""
        raw, obj, cls = self.network(images)
        return raw.float(), obj.float(), cls.float()

    def level(self, images: Tensor) -> Level:
        height, width = images.shape[-2:]
        return -(-height // self.stride), -(-width // self.stride), self.stride

    def anchors(self, images: Tensor) -> Tensor:
        """[M, 4]."""
        return square_anchors(self.level(images), self.anchor_sizes, self.anchor_offset)

    # ---- inference ----

    def decode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw, obj, cls = self.outputs(images)
        boxes = decode_deltas(raw, self.anchors(images), **self.coder)
        return boxes, joint_logits(cls, obj, self.logit_clamp).sigmoid()

    def step(self, images: Tensor, sizes: Tensor, state=None, new_video=None):
        filled = self.fill_padding(images, sizes)
        raw, obj, cls = self.network(filled)
        # What had no loss in training has learnt nothing, also not to be silent.
        obj = obj.masked_fill(~self.inside(filled, sizes), -math.inf)
        return self.detections((raw, obj, cls), filled), None

    def detections(self, outputs: tuple[Tensor, Tensor, Tensor], images: Tensor) -> list[dict]:
        raw, obj, cls = outputs
        logits = joint_logits(cls.float(), obj.float(), self.logit_clamp)  # [B, M, C]
        batch, num_anchors, num_classes = logits.shape
        if self.best_class:
            best, labels = logits.max(dim=2)  # [B, M]
            at = torch.arange(num_anchors, device=labels.device).expand_as(labels)
        else:  # an anchor may give several classes
            best, place = logits.flatten(1).topk(min(BEST_SCORES, num_anchors), dim=1)
            at, labels = place // num_classes, place % num_classes
        scores = best.sigmoid()
        image, chosen = torch.nonzero(scores >= self.conf, as_tuple=True)
        at = at[image, chosen]
        boxes = decode_deltas(raw[image, at].float(), self.anchors(images)[at], **self.coder)
        found = {"boxes": boxes, "scores": scores[image, chosen], "labels": labels[image, chosen]}
        return without_covered(found, image, batch, nms=self.nms, max_dets=self.max_dets)

    # ---- training ----

    def loss(self, images: Tensor, targets: dict, weights: dict | None = None) -> dict:
        for name in weights or {}:
            check_one_of("yolof: the loss that a stage weighs", name, LOSS_WEIGHTS)
        weights = LOSS_WEIGHTS | (weights or {})
        images = self.fill_padding(images, targets["size"])
        raw, obj, cls = self.outputs(images)
        with torch.autocast(raw.device.type, enabled=False):
            anchors = self.anchors(images)
            inside = self.inside(images, targets["size"])
            match = self.match(raw, targets, anchors, inside)
            logits = joint_logits(cls, obj, self.logit_clamp)
            sums = self.terms(raw, logits, targets, anchors, match, inside)
            positives = (match.owner >= 0).sum(1).float()  # [B]
            share, divisor = self.share(positives)
            terms = {name: (term * share).sum() * weights[name] for name, term in sums.items()}
            total = torch.stack(tuple(terms.values())).sum()
        objects = targets["valid"].sum()
        return {
            "loss": total,
            **{name: term.detach() for name, term in terms.items()},
            "divisor": divisor,
            "positives": positives.sum(),
            "per_object": match.valid.sum() / objects.clamp(min=1),
            "unmatched": (objects - matchers.matched(match, targets["valid"]).sum()).float(),
        }

    @torch.no_grad()
    def match(self, raw: Tensor, targets: dict, anchors: Tensor, inside: Tensor):
        """The AnchorMatch; pairs of anchors that are not `inside` [B, M] are not valid."""
        match = MATCHERS[self.matcher](
            decode_deltas(raw, anchors, **self.coder),
            anchors,
            targets["boxes"],
            targets["valid"],
            self.rules,
        )
        return match._replace(valid=match.valid & inside.gather(1, match.anchor))

    def inside(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Which anchors have a loss, bool [B, M]: with `image_mask` those of cells whose upper left
        corner lies in the image, not in its padding."""
        cell, stride = cells([self.level(images)], sizes.device)
        corner_yx = (cell * stride).flip(1)  # [cells, 2]
        inside = (corner_yx < sizes[:, None]).all(2) | (not self.image_mask)
        return inside.repeat_interleave(len(self.anchor_sizes), dim=1)

    def silenced(self, scores: Tensor, images: Tensor, sizes: Tensor) -> Tensor:
        # What had no loss has not learnt to be silent.
        return scores * self.inside(images, sizes)[..., None]

    def terms(self, raw, logits, targets, anchors, match: matchers.AnchorMatch, inside: Tensor):
        """Sums over each image [B], neither weighted nor divided: {"cls", "box"}."""
        # One label more, for images without boxes: what background would gather must be there.
        labels = F.pad(targets["labels"], (0, 1)).gather(1, match.owner.clamp(min=0))  # [B, M]
        is_class = torch.zeros_like(logits, dtype=torch.bool)
        is_class.scatter_(2, labels[..., None], (match.owner >= 0)[..., None])  # [B, M, C]
        cls = losses.sigmoid_focal(logits, is_class).sum(2)
        learns = inside & (match.owner != matchers.IGNORED)

        # Slots without a match must be harmless before exp and division, not only after:
        # a gradient of 0 * infinity is not a number.
        valid = match.valid  # [B, P]
        own_raw = raw.gather(1, match.anchor[..., None].expand(-1, -1, 4))
        own_raw = torch.where(valid[..., None], own_raw, 0.0)
        pred = decode_deltas(own_raw, anchors[match.anchor], **self.coder)
        gt = targets["boxes"].gather(1, match.gt[..., None].expand(-1, -1, 4))
        gt = torch.where(valid[..., None], gt, pred.detach())
        box = losses.box_loss(pred, gt, "giou")
        return {
            "cls": torch.where(learns, cls, 0.0).sum(1),
            "box": torch.where(valid, box, 0.0).sum(1),
        }

    def share(self, positives: Tensor) -> tuple[Tensor, Tensor]:
        """(what each image's sums are multiplied by, [B] or scalar, the divisor in it): "batch"
        divides by the positives of the batch, "image" by each image's own and the images."""
        if self.loss_norm == "batch":
            divisor = positives.sum()
            return 1 / divisor.clamp(min=1), divisor
        divisor = positives.new_full((), len(positives))
        return 1 / (positives.clamp(min=1) * divisor), divisor

    @torch.no_grad()
    def positives(self, images: Tensor, targets: dict) -> list[dict]:
        """As in the base, and "predicted" [P], the pairs found through a prediction, and "ignored"
        [I, 4], the anchors that learn no class."""
        training = self.training
        images = self.eval().fill_padding(images, targets["size"])
        raw, _, _ = self.outputs(images)
        self.train(training)
        anchors = self.anchors(images)
        match = self.match(raw, targets, anchors, self.inside(images, targets["size"]))
        shown = []
        for anchor, gt, valid, predicted, owner in zip(*match, strict=True):
            boxes, gt = anchors[anchor[valid]], gt[valid]
            image = {
                "points": (boxes[:, :2] + boxes[:, 2:]) / 2,
                "gt": gt,
                "strides": torch.full_like(gt, self.stride),
                "boxes": boxes,
                "predicted": predicted[valid],
                "ignored": anchors[owner == matchers.IGNORED],
            }
            shown.append(image)
        return shown


def joint_logits(cls: Tensor, obj: Tensor, clamp: float) -> Tensor:
    """The logits [B, M, C] of classes and implicit objectness [B, M] together: without the clamp
    their sigmoid is the product of the sigmoids of both."""
    obj = obj[..., None]
    # Clamped before exp, not after as in the reference: the same value, and a finite gradient.
    total = 1 + cls.clamp(max=clamp).exp() + obj.clamp(max=clamp).exp()
    return cls + obj - total.log()
