"""Necks: maps of strides 8, 16, 32 in, mixed maps of the same strides out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import ConvBNAct, CSPLayer, conv_type


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class PAFPN(nn.Module):
    """YOLOX's path aggregation: top-down, then bottom-up."""

    def __init__(self, channels, *, depth: float, width: float, depthwise: bool, act: str):
        super().__init__()
        c3, c4, c5 = channels
        a, b, c = int(256 * width), int(512 * width), int(1024 * width)
        conv = conv_type(depthwise)

        def csp(cin: int, cout: int) -> CSPLayer:
            n = round(3 * depth)
            return CSPLayer(cin, cout, n, shortcut=False, depthwise=depthwise, act=act)

        self.lateral_conv0 = ConvBNAct(c5, b, 1, act=act)
        self.C3_p4 = csp(b + c4, b)
        self.reduce_conv1 = ConvBNAct(b, a, 1, act=act)
        self.C3_p3 = csp(a + c3, a)
        self.bu_conv2 = conv(a, a, 3, 2, act=act)
        self.C3_n3 = csp(2 * a, b)
        self.bu_conv1 = conv(b, b, 3, 2, act=act)
        self.C3_n4 = csp(2 * b, c)
        self.channels = (a, b, c)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        c3, c4, c5 = maps
        f5 = self.lateral_conv0(c5)
        f4 = self.reduce_conv1(self.C3_p4(torch.cat((upsample(f5), c4), dim=1)))
        p3 = self.C3_p3(torch.cat((upsample(f4), c3), dim=1))
        p4 = self.C3_n3(torch.cat((self.bu_conv2(p3), f4), dim=1))
        p5 = self.C3_n4(torch.cat((self.bu_conv1(p4), f5), dim=1))
        return [p3, p4, p5]


class FPN(nn.Module):
    """Top-down only, of plain convolutions: the neck of YOLOX on Darknet-53."""

    def __init__(self, channels, *, act: str):
        super().__init__()
        c3, c4, c5 = channels

        def five(cin: int, c: int) -> nn.Sequential:
            ends = (cin, c), (c, 2 * c), (2 * c, c), (c, 2 * c), (2 * c, c)
            sizes = (1, 3, 1, 3, 1)
            convs = (ConvBNAct(*end, k, act=act) for end, k in zip(ends, sizes, strict=True))
            return nn.Sequential(*convs)

        self.out1_cbl = ConvBNAct(c5, 256, 1, act=act)
        self.out1 = five(256 + c4, 256)
        self.out2_cbl = ConvBNAct(256, 128, 1, act=act)
        self.out2 = five(128 + c3, 128)
        self.channels = (128, 256, c5)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        c3, c4, c5 = maps
        p4 = self.out1(torch.cat((upsample(self.out1_cbl(c5)), c4), dim=1))
        p3 = self.out2(torch.cat((upsample(self.out2_cbl(p4)), c3), dim=1))
        return [p3, p4, c5]
