"""YOLOFT (arXiv 2407.18137): a detector of small moving objects, whose maps remember.

Each frame's maps meet the memory of the frames before (models.temporal; models.mstf, that of the
first release); a neck and a head as YOLOv8's see what comes of both. Every location predicts the
distances to four sides as distributions, and its classes; task-aligned assignment decides in each
step which locations learn which object.

B videos, T frames, G ground-truth slots, N locations, P positive slots, C classes, K bins. The
published networks keep the state channels-last; here it is [B, C, H, W] as every map.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import losses, matchers
from models.anchors import Level, cells
from models.c2f import C2f, conv, scaled_depth, scaled_width
from models.detector import BEFORE_NMS, Detector, check_one_of, without_covered
from models.mstf import MSTF
from models.temporal import Memory
from utils.errors import UserError

BINS = 16  # of a side's distribution: 0 to 15 strides
LONGEST = BINS - 1.01  # strides that a side can learn: there is a bin on either side
# Of the neck's maps from the finest on, before scaling: in the release with state maps, and in the
# first one, whose memory is MSTF.
WIDTHS, FIRST_WIDTHS = (128, 196, 384, 768), (256, 512, 1024)
REMEMBERING = 3  # levels with a memory, from the finest on
MEMORIES = ("gru", "deform", "mstf")
# By which a side's bins are less likely, one after the other, at first: boxes begin two cells wide.
# With equal bins they would be 15 cells wide, and the sixth power of their overlap with a small
# object, which the assignment takes, so near to 0 that they would never learn.
STEP = 0.7
LOSS_WEIGHTS = {"cls": 0.5, "box": 7.5, "dfl": 1.5}  # a stage may change them


class DySample(nn.Module):
    """Twice the size: every new pixel reads where it learns to (arXiv 2308.15085), each of four
    groups of channels its own places, near to where bilinear enlarging would read."""

    def __init__(self, channels: int, groups: int = 4):
        super().__init__()
        self.groups = groups
        self.offset = nn.Conv2d(channels, 2 * groups * 4, 1)
        near = torch.tensor([-0.25, 0.25])  # of sub-pixel rows and columns, in pixels of the input
        y, x = torch.meshgrid(near, near, indexing="ij")
        start = torch.stack((x, y))[:, None].expand(-1, groups, -1, -1)  # [2, groups, 2, 2]
        self.register_buffer("start", start.reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        offset = self.offset(x).float() * 0.25 + self.start.float()  # [B, 2 * groups * 4, H, W]
        offset = F.pixel_shuffle(offset, 2).unflatten(1, (2, self.groups))  # [B, 2, groups, 2H, 2W]
        row = (torch.arange(2 * height, device=x.device) // 2 + 0.5)[:, None]
        column = torch.arange(2 * width, device=x.device) // 2 + 0.5
        x_at = (column + offset[:, 0]) * (2 / width) - 1  # as grid_sample counts
        y_at = (row + offset[:, 1]) * (2 / height) - 1
        grid = torch.stack((x_at, y_at), dim=-1).flatten(0, 1)  # [B * groups, 2H, 2W, 2]
        parts = x.float().reshape(batch * self.groups, -1, height, width)
        parts = F.grid_sample(parts, grid, padding_mode="border", align_corners=False)
        return parts.view(batch, channels, 2 * height, 2 * width).to(x.dtype)


class Neck(nn.Module):
    """Down from the coarsest map and up again, with the fused map of each level on the way; from
    maps of `channels` to as many of `out`."""

    def __init__(self, channels: tuple[int, ...], out: tuple[int, ...], n: int, enlarge=DySample):
        super().__init__()
        levels = len(channels)
        self.channels = out
        # What goes down begins as one of the given maps.
        going = (*out[:-1], channels[-1])
        finer, coarser = range(levels - 2, -1, -1), range(1, levels)
        self.enlarge = nn.ModuleList(enlarge(going[k + 1]) for k in finer)
        self.down = nn.ModuleList(
            C2f(going[k + 1] + channels[k], out[k], n, shortcut=False) for k in finer
        )
        self.shrink = nn.ModuleList(conv(out[k - 1], out[k - 1], 3, 2) for k in coarser)
        self.up = nn.ModuleList(
            C2f(out[k - 1] + going[k], out[k], n, shortcut=False) for k in coarser
        )

    def forward(self, last: Tensor, fused: list[Tensor]) -> list[Tensor]:
        """`last` is the backbone's coarsest map before the memory, from which the way down starts:
        what the memory adds to that level is used on the way up only, as published."""
        *fused, coarsest = fused
        passed, x = [coarsest], last
        for enlarge, block, own in zip(self.enlarge, self.down, reversed(fused), strict=True):
            x = block(torch.cat((enlarge(x), own), dim=1))
            passed.insert(0, x)
        maps = [x]
        for shrink, block, own in zip(self.shrink, self.up, passed[1:], strict=True):
            x = block(torch.cat((shrink(x), own), dim=1))
            maps.append(x)
        return maps


class FirstNeck(Neck):
    """The first release's: enlarges by repetition, and starts from the fused map."""

    def __init__(self, channels: tuple[int, ...], out: tuple[int, ...], n: int):
        super().__init__(channels, out, n, lambda _: nn.Upsample(scale_factor=2.0))

    def forward(self, last: Tensor, fused: list[Tensor]) -> list[Tensor]:
        return super().forward(fused[-1], fused)


class Head(nn.Module):
    """Two towers on each level: one for boxes, one for classes."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], *, num_classes: int):
        super().__init__()
        box_width = max(64, channels[0] // 4)
        cls_width = max(channels[0], min(num_classes, 100))

        def towers(width: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(conv(c, width, 3), conv(width, width, 3)) for c in channels
            )

        def predictors(width: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(width, outputs, 1) for _ in channels)

        self.box_convs, self.cls_convs = towers(box_width), towers(cls_width)
        self.box_preds = predictors(box_width, 4 * BINS)
        self.cls_preds = predictors(cls_width, num_classes)
        for box, cls, stride in zip(self.box_preds, self.cls_preds, strides, strict=True):
            with torch.no_grad():
                box.bias.copy_((-STEP * torch.arange(BINS)).repeat(4))
            # As if five objects of any class lay in an image of 640 x 640 pixels.
            nn.init.constant_(cls.bias, math.log(5 / num_classes / (640 / stride) ** 2))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Sides' distributions [B, N, 4 * K] and classes [B, N, C], as logits."""
        sides, cls = [], []
        for k, x in enumerate(maps):
            sides.append(_flat(self.box_preds[k](self.box_convs[k](x))))
            cls.append(_flat(self.cls_preds[k](self.cls_convs[k](x))))
        return torch.cat(sides, dim=1), torch.cat(cls, dim=1)


def _flat(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, C, h, w] -> [B, h * w, C]


class YOLOFT(Detector):
    """The detector on any backbone with maps of strides 8, 16, 32, or 4 to 32.

    `depth` and `width` are those of the neck. `memory` is gru or deform (models.temporal), or mstf
    (models.mstf, which has hidden, radius and as_released). With `mask_ignored` locations centred
    in ignored regions learn no class. In training the gradient goes back through `bptt` frames of a
    clip, 0 being all. With `forget` each frame is a video's first, for comparison.
    """

    class_layers = ("head.cls_",)  # the towers too: they are wider for many classes
    remembers = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        classes: tuple[str, ...],
        depth: float,
        width: float,
        memory: str = "gru",
        mask_ignored: bool = True,
        hidden: int = 64,
        radius: int = 4,
        as_released: bool = False,
        bptt: int = 0,
        forget: bool = False,
        sides: tuple[int, int] = (1024, 1024),
        conf: float = 0.001,
        nms: float = 0.7,
        max_dets: int = 300,
    ):
        super().__init__(
            classes=classes,
            pixels=backbone.pixels,
            sides=sides,
            conf=conf,
            nms=nms,
            max_dets=max_dets,
        )
        check_one_of("yoloft: memory", memory, MEMORIES)
        strides = tuple(backbone.strides)
        if strides[-3:] != (8, 16, 32) or (memory == "mstf" and len(strides) > 3):
            raise UserError(
                f"YOLOFT with the memory {memory} needs maps of strides 8, 16, 32, not {strides}"
            )
        self.mask_ignored, self.bptt, self.forget = mask_ignored, bptt, forget
        self.strides = strides
        self.backbone = backbone
        channels, n = tuple(backbone.channels), scaled_depth(3, depth)
        widths = FIRST_WIDTHS if memory == "mstf" else WIDTHS
        # No wider than the backbone's last map, as the published limits of both have it.
        out = tuple(min(scaled_width(c, width), channels[-1]) for c in widths[: len(channels)])
        if memory == "mstf":
            self.memory = MSTF(channels, hidden=hidden, radius=radius, as_released=as_released)
            self.neck = FirstNeck(channels, out, n)
        else:
            self.memory = Memory(channels[:REMEMBERING], strides[:REMEMBERING], memory)
            self.neck = Neck(channels, out, n)
        self.head = Head(self.neck.channels, self.strides, num_classes=len(classes))

    def network(self, images: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Sides [B, N, 4 * K], classes [B, N, C] and the new state, of filled-up images and the
        state of the frames before (none: zeros)."""
        height, width = images.shape[-2:]
        if height % 32 or width % 32:
            raise UserError(f"YOLOFT needs image sides that 32 divides, not {height} x {width}")
        state = () if self.forget else state
        maps = self.backbone(self.normalize(images))
        fused, state = self.memory(maps[:REMEMBERING], state)
        sides, cls = self.head(self.neck(maps[-1], fused + maps[REMEMBERING:]))
        return sides, cls, *state

    def outputs(self, images: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """What `network` returns, in float32: over 256 bfloat16 counts pixels in twos."""
        return tuple(output.float() for output in self.network(images, *state))

    def levels(self, images: Tensor) -> list[Level]:
        height, width = images.shape[-2:]
        return [(height // stride, width // stride, stride) for stride in self.strides]

    # ---- state ----

    def example_state(self, batch: int, size_hw: tuple[int, int]) -> tuple[Tensor, ...]:
        """Zeros, the state of videos that begin."""
        return self.memory.example_state(batch, size_hw, self.pixel_mean.device)

    def continued(self, state, images: Tensor, new_video: Tensor | None) -> tuple[Tensor, ...]:
        """The state that these images meet, of fewer images the first rows: zeros in the rows of
        `new_video` [B]; none, which means zeros in all, for more images or another size."""
        if state is None:
            return ()
        state = tuple(x[: len(images)] for x in state)
        # Of the shapes alone: zeros for every frame would be written for nothing.
        fit = self.memory.example_state(len(images), images.shape[-2:], torch.device("meta"))
        if any(a.shape != b.shape for a, b in zip(state, fit, strict=True)):
            return ()
        if new_video is None:
            return state
        begins = new_video.to(images.device)[:, None, None, None]
        return tuple(torch.where(begins, 0.0, x) for x in state)

    # ---- inference ----

    def step(self, images: Tensor, sizes: Tensor, state=None, new_video=None):
        filled = self.fill_padding(images, sizes)
        sides, cls, *state = self.network(filled, *self.continued(state, filled, new_video))
        return self.detections((sides, cls), filled), tuple(state)

    def decode(self, images: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        sides, cls, *state = self.outputs(images, *state)
        return self.boxes(sides, images), cls.sigmoid(), *state

    def boxes(self, sides: Tensor, images: Tensor) -> Tensor:
        """[B, N, 4] of all locations."""
        return decode_sides(sides, *cells(self.levels(images), sides.device))

    def detections(self, outputs: tuple[Tensor, ...], images: Tensor) -> list[dict]:
        sides, cls, *_ = outputs
        batch, count, num_classes = cls.shape
        # A location may give several classes.
        best, place = cls.flatten(1).topk(min(BEFORE_NMS, count * num_classes), dim=1)
        scores = best.float().sigmoid()
        image, chosen = torch.nonzero(scores >= self.conf, as_tuple=True)
        place, scores = place[image, chosen], scores[image, chosen]
        at = place // num_classes
        cell, stride = (table[at] for table in cells(self.levels(images), sides.device))
        boxes = decode_sides(sides[image, at].float(), cell, stride)
        found = {"boxes": boxes, "scores": scores, "labels": place % num_classes}
        return without_covered(found, image, batch, nms=self.nms, max_dets=self.max_dets)

    # ---- training ----

    def forward(self, images: Tensor, targets: dict, state=None, weights: dict | None = None):
        """(losses, state after the last frame) of images [B, 3, H, W] or of clips [B, T, 3, H, W]:
        one pass a frame, means over the frames. The gradient goes back through the clip, or `bptt`
        frames of it, not into the step that the state came from, whose graph is gone."""
        for name in weights or {}:
            check_one_of("yoloft: the loss that a stage weighs", name, LOSS_WEIGHTS)
        weights = LOSS_WEIGHTS | (weights or {})
        each = []
        for t, (frame_images, frame_targets) in enumerate(frames_of(images, targets)):
            if state and (t == 0 or (self.bptt and t % self.bptt == 0)):
                state = tuple(x.detach() for x in state)
            found, state = self.frame_loss(frame_images, frame_targets, state, weights)
            each.append(found)
        means = {name: torch.stack([found[name] for found in each]).mean(0) for name in each[0]}
        return means, state

    def loss(self, images: Tensor, targets: dict, weights: dict | None = None) -> dict:
        return self.forward(images, targets, None, weights)[0]

    def frame_loss(self, images: Tensor, targets: dict, state, weights: dict):
        """(losses, new state) of one frame of each video."""
        images = self.fill_padding(images, targets["size"])
        state = self.continued(state, images, targets.get("new_video"))
        sides, cls, *state = self.outputs(images, *state)
        with torch.autocast(sides.device.type, enabled=False):
            match = self.match(sides, cls, targets, images)
            sums = self.terms(sides, cls, targets, images, match)
            divisor = match.score.sum()
            terms = {
                name: term * (weights[name] / divisor.clamp(min=1)) for name, term in sums.items()
            }
            total = torch.stack(tuple(terms.values())).sum()
        positives, objects = match.valid.sum().float(), targets["valid"].sum()
        found = {
            "loss": total,
            **{name: term.detach() for name, term in terms.items()},
            "divisor": divisor,
            "positives": positives,
            "per_object": positives / objects.clamp(min=1),
            "unmatched": (objects - matchers.matched(match, targets["valid"]).sum()).float(),
        }
        return found, tuple(state)

    @torch.no_grad()
    def match(self, sides, cls, targets: dict, images: Tensor) -> matchers.TaskMatch:
        return matchers.task_aligned(
            self.boxes(sides, images),
            cls,
            self.points(images),
            targets["boxes"],
            targets["labels"],
            targets["valid"],
        )

    def points(self, images: Tensor) -> Tensor:
        """The locations' centres [N, 2], pixels."""
        cell, stride = cells(self.levels(images), images.device)
        return (cell + 0.5) * stride

    def terms(self, sides, cls, targets: dict, images: Tensor, match: matchers.TaskMatch) -> dict:
        """Sums over the batch, neither weighted nor divided: {"cls", "box", "dfl"}."""
        location, valid = match.location, match.valid
        gt = targets["boxes"].gather(1, match.gt[..., None].expand(-1, -1, 4))  # [B, P, 4]
        cell, stride = (table[location] for table in cells(self.levels(images), images.device))
        # Slots without a match must be harmless before exp and division, not only after:
        # a gradient of 0 * infinity is not a number.
        own = sides.gather(1, location[..., None].expand(-1, -1, 4 * BINS))
        own = torch.where(valid[..., None], own, 0.0)
        pred = decode_sides(own, cell, stride)
        gt = torch.where(valid[..., None], gt, pred.detach())
        box = losses.box_loss(pred, gt, "ciou")
        wanted = encode_sides(gt, cell, stride)  # [B, P, 4]
        dfl = losses.distribution(own.unflatten(2, (4, BINS)), wanted).mean(2)

        # Binary cross entropy of all locations and classes, as if there were no object; what the
        # few targets above 0 take off it is one product each.
        background = torch.where(self.learns(targets, images, match), F.softplus(cls).sum(2), 0.0)
        labels = targets["labels"].gather(1, match.gt)
        logits = cls.flatten(1).gather(1, location * cls.shape[2] + labels)  # [B, P]
        return {
            "cls": background.sum() - (logits * match.score).sum(),
            "box": (box * match.score).sum(),
            "dfl": (dfl * match.score).sum(),
        }

    def learns(self, targets: dict, images: Tensor, match: matchers.TaskMatch) -> Tensor:
        """Which locations have a class loss, bool [B or 1, N]: all; with `mask_ignored` not those
        that are centred in an ignored region and are no positives."""
        points = self.points(images)
        if not self.mask_ignored or "ignore_boxes" not in targets:
            return points.new_ones(1, len(points), dtype=torch.bool)
        region = matchers.contains(targets["ignore_boxes"], points)  # [B, I, N]
        ignored = (region & targets["ignore_valid"][..., None]).any(1)  # [B, N]
        spare = match.location.masked_fill(~match.valid, ignored.shape[1])
        positive = F.pad(torch.zeros_like(ignored), (0, 1)).scatter(1, spare, True)[:, :-1]
        return ~ignored | positive

    @torch.no_grad()
    def positives(self, images: Tensor, targets: dict) -> list[dict]:
        training = self.training
        images = self.eval().fill_padding(images, targets["size"])
        sides, cls, *_ = self.outputs(images)
        self.train(training)
        match = self.match(sides, cls, targets, images)
        points = self.points(images)[match.location]  # [B, P, 2]
        _, stride = cells(self.levels(images), images.device)
        strides = stride.squeeze(1).long()[match.location]  # [B, P]
        return [
            {"points": points[b][valid], "gt": match.gt[b][valid], "strides": strides[b][valid]}
            for b, valid in enumerate(match.valid)
        ]


def frames_of(images: Tensor, targets: dict):
    """(images [B, 3, H, W], targets) of each frame of clips [B, T, 3, H, W]; of images as given."""
    if images.ndim == 4:
        return [(images, targets)]
    tensors = {name: value for name, value in targets.items() if isinstance(value, Tensor)}
    return [
        (images[:, t], {name: value[:, t] for name, value in tensors.items()})
        for t in range(images.shape[1])
    ]


def decode_sides(sides: Tensor, cell: Tensor, stride: Tensor) -> Tensor:
    """Distributions [..., 4 * K] of the distances left, up, right and down, in strides, from the
    centres of cells [..., 2] -> boxes xyxy."""
    numbers = torch.arange(BINS, dtype=sides.dtype, device=sides.device)
    distance = sides.unflatten(-1, (4, BINS)).softmax(dim=-1) @ numbers  # [..., 4]
    center = cell + 0.5
    low, high = center - distance[..., :2], center + distance[..., 2:]
    return torch.cat((low, high), dim=-1) * stride


def encode_sides(boxes: Tensor, cell: Tensor, stride: Tensor) -> Tensor:
    """Distances [..., 4] in strides, as far as the distributions reach."""
    center, boxes = cell + 0.5, boxes / stride
    distance = torch.cat((center - boxes[..., :2], boxes[..., 2:] - center), dim=-1)
    return distance.clamp(0, LONGEST)
