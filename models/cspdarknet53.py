"""CSPDarknet-53, YOLOv4's backbone (arXiv 2004.10934) as YOLOF uses it: maps of strides 8, 16 and
32, or 16, 16 for the last two where the last stage is dilated (DC5)."""

from functools import partial

import torch
from torch import Tensor, nn

from models.layers import CAFFE_PIXELS, ConvBNAct

BN_EPS, BN_MOMENTUM = 1e-4, 0.03

conv = partial(ConvBNAct, eps=BN_EPS, momentum=BN_MOMENTUM, act="mish")


class Residual(nn.Module):
    """1 x 1, then 3 x 3, added to the input."""

    def __init__(self, channels: int, inner: int, dilation: int):
        super().__init__()
        self.conv1 = conv(channels, inner, 1)
        self.conv2 = conv(inner, channels, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class CSPStage(nn.Module):
    """A 3 x 3 to `cout` channels; `hidden` of them pass the residual blocks, as many go around."""

    def __init__(self, cin, cout, hidden, inner, count: int, *, stride: int, dilation: int):
        super().__init__()
        self.base = conv(cin, cout, 3, stride, dilation=dilation)
        self.side = conv(cout, hidden, 1)
        self.down = conv(cout, hidden, 1)
        self.blocks = nn.Sequential(*(Residual(hidden, inner, dilation) for _ in range(count)))
        self.post = conv(hidden, hidden, 1)
        self.fuse = conv(2 * hidden, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.base(x)
        y = self.post(self.blocks(self.down(x)))
        return self.fuse(torch.cat((y, self.side(x)), dim=1))


class CSPDarknet53(nn.Module):
    """Frozen, the parameters of the stem and of stages 1 and 2 do not learn; their norms still
    gather statistics, as in the official code."""

    def __init__(self, *, dc5: bool, frozen: bool):
        super().__init__()
        last = {"stride": 1, "dilation": 2} if dc5 else {"stride": 2, "dilation": 1}
        strided = {"stride": 2, "dilation": 1}
        self.stem = conv(3, 32, 3)
        self.stage1 = CSPStage(32, 64, 64, 32, 1, **strided)
        self.stage2 = CSPStage(64, 128, 64, 64, 2, **strided)
        self.stage3 = CSPStage(128, 256, 128, 128, 8, **strided)
        self.stage4 = CSPStage(256, 512, 256, 256, 8, **strided)
        self.stage5 = CSPStage(512, 1024, 512, 512, 4, **last)
        self.channels = (256, 512, 1024)
        self.strides = (8, 16, 16 if dc5 else 32)
        self.pixels = CAFFE_PIXELS
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if frozen:
            for module in self.stem, self.stage1, self.stage2:
                module.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.stage2(self.stage1(self.stem(x)))
        c3 = self.stage3(c2)
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        return [c3, c4, c5]


def cspdarknet53(*, dc5: bool = False, frozen: bool = False) -> CSPDarknet53:
    return CSPDarknet53(dc5=dc5, frozen=frozen)
