"""C2f blocks (YOLOv8's, as YOLOFT uses them, arXiv 2407.18137) and the backbone made of them.

A C2f keeps every step: both halves of its input and what each block adds to the second half. With
`deform` every second block samples where it wants to (DCNv3, arXiv 2211.05778). Leaf names (cv1,
cv2, m) are those of the published checkpoints.
"""

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops.dcnv3 import DCNv3
from models.layers import BN_EPS, BN_MOMENTUM, ConvBNAct, Pixels

# RGB divided by 255. Padding is black: what convolutions themselves pad with, so that an image
# padded to the size of its batch sees its border as one that is not.
UNIT_PIXELS = Pixels("rgb", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0), (0.0, 0.0, 0.0))

# Channels of the stem and the stages, bottlenecks of the stages, before scaling: of YOLOFT's
# release with state maps, and of YOLOv8, whose backbone its first release has.
WIDTHS, BLOCKS = (64, 128, 196, 384, 768), (2, 5, 5, 3)
V8_WIDTHS, V8_BLOCKS = (64, 128, 256, 512, 1024), (3, 6, 6, 3)


def scaled_width(channels: int, width: float) -> int:
    """`channels` times `width`, as a multiple of 8."""
    return math.ceil(channels * width / 8) * 8


def scaled_depth(blocks: int, depth: float) -> int:
    """`blocks` times `depth`, at least 1."""
    return max(round(blocks * depth), 1)


def conv(cin: int, cout: int, k: int = 1, s: int = 1) -> ConvBNAct:
    return ConvBNAct(cin, cout, k, s, act="silu")


def deformable(channels: int, **options) -> DCNv3:
    """DCNv3 of a width that the published networks have, without a word on faster ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "DCNv3: .* no power of two")
        return DCNv3(channels, **options)


class DeformConv(nn.Module):
    """3 x 3, then DCNv3 with the same points for all channels, norm and activation."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.dcnv3 = deformable(channels, group=1, act_layer="SiLU", norm_layer="BN")
        self.bn = nn.BatchNorm2d(channels)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = BN_EPS, BN_MOMENTUM

    def forward(self, x: Tensor) -> Tensor:
        x = self.dcnv3(self.conv(x).permute(0, 2, 3, 1))  # [B, H, W, C]
        return F.silu(self.bn(x.permute(0, 3, 1, 2)))


class Bottleneck(nn.Module):
    """Two 3 x 3 of the same width, the second deformable or not, with the input added where
    `shortcut` says so."""

    def __init__(self, channels: int, *, shortcut: bool, deform: bool = False):
        super().__init__()
        self.cv1 = conv(channels, channels, 3)
        self.cv2 = DeformConv(channels) if deform else conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """1 x 1; n bottlenecks, one after the other, on the second half; all of it through 1 x 1."""

    def __init__(self, cin: int, cout: int, n: int, *, shortcut: bool, deform: bool = False):
        super().__init__()
        hidden = cout // 2
        self.cv1 = conv(cin, 2 * hidden)
        self.cv2 = conv((2 + n) * hidden, cout)
        self.m = nn.ModuleList(
            Bottleneck(hidden, shortcut=shortcut, deform=deform and k % 2 == 1) for k in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, dim=1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))


class SPPF(nn.Module):
    """Maxima over 5, 9 and 13 pixels beside the map itself, each made from the one before."""

    def __init__(self, channels: int):
        super().__init__()
        self.cv1 = conv(channels, channels // 2)
        self.cv2 = conv(channels // 2 * 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        pools = [self.cv1(x)]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, stride=1, padding=2))
        return self.cv2(torch.cat(pools, dim=1))


class C2fNet(nn.Module):
    """Five steps of stride 2: maps of strides 8, 16, 32, with `p2` also 4.

    `widths` are the channels of the stem and of four stages, `blocks` the stages' bottlenecks;
    with `dcn` those of strides 8 to 32 are deformable where C2f has them so.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int, int, int],
        blocks: tuple[int, int, int, int],
        dcn: bool = False,
        p2: bool = False,
    ):
        super().__init__()

        def stage(number: int) -> nn.Sequential:
            cin, cout = widths[number : number + 2]
            deform = dcn and number > 0
            c2f = C2f(cout, cout, blocks[number], shortcut=True, deform=deform)
            return nn.Sequential(conv(cin, cout, 3, 2), c2f)

        self.stem = conv(3, widths[0], 3, 2)
        self.stages = nn.ModuleList(stage(number) for number in range(4))
        self.stages[-1].append(SPPF(widths[-1]))
        self.first = 0 if p2 else 1  # of the stages whose maps are given
        self.channels = tuple(widths[1 + self.first :])
        self.strides = (4, 8, 16, 32)[self.first :]
        self.pixels = UNIT_PIXELS

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[self.first :]


def _sized(width: float, depth: float, widest: int, dcn: bool, p2: bool) -> C2fNet:
    """`widest` limits the channels before they are scaled."""
    return C2fNet(
        widths=tuple(scaled_width(min(channels, widest), width) for channels in WIDTHS),
        blocks=tuple(scaled_depth(count, depth) for count in BLOCKS),
        dcn=dcn,
        p2=p2,
    )


def c2f_nano(dcn: bool = False, p2: bool = False) -> C2fNet:
    return _sized(0.25, 0.33, 1024, dcn, p2)


def c2f_s(dcn: bool = False, p2: bool = False) -> C2fNet:
    return _sized(0.50, 0.33, 1024, dcn, p2)


def c2f_m(dcn: bool = False, p2: bool = False) -> C2fNet:
    return _sized(0.75, 0.67, 768, dcn, p2)


def c2f_l(dcn: bool = False, p2: bool = False) -> C2fNet:
    return _sized(1.0, 1.0, 512, dcn, p2)


def c2f_v8_s() -> C2fNet:
    return _v8(0.50, 0.33, 1024)


def c2f_v8_l() -> C2fNet:
    return _v8(1.0, 1.0, 512)


def _v8(width: float, depth: float, widest: int) -> C2fNet:
    return C2fNet(
        widths=tuple(scaled_width(min(channels, widest), width) for channels in V8_WIDTHS),
        blocks=tuple(scaled_depth(count, depth) for count in V8_BLOCKS),
    )
