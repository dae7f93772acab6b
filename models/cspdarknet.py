"""CSPDarknet, the backbone of YOLOX (arXiv 2107.08430): five stages, maps of strides 8, 16, 32."""

from torch import Tensor, nn

from models.layers import RAW_PIXELS, CSPLayer, Focus, SPPBottleneck, conv_type


class CSPDarknet(nn.Module):
    """`depth` and `width` multiply the blocks and channels of the largest published form, l."""

    def __init__(self, *, depth: float, width: float, depthwise: bool = False, act: str = "silu"):
        super().__init__()
        c, n = int(64 * width), max(round(3 * depth), 1)
        conv = conv_type(depthwise)

        def csp(channels: int, blocks: int, shortcut: bool = True) -> CSPLayer:
            return CSPLayer(
                channels, channels, blocks, shortcut=shortcut, depthwise=depthwise, act=act
            )

        self.stem = Focus(c, act=act)
        self.dark2 = nn.Sequential(conv(c, 2 * c, 3, 2, act=act), csp(2 * c, n))
        self.dark3 = nn.Sequential(conv(2 * c, 4 * c, 3, 2, act=act), csp(4 * c, 3 * n))
        self.dark4 = nn.Sequential(conv(4 * c, 8 * c, 3, 2, act=act), csp(8 * c, 3 * n))
        self.dark5 = nn.Sequential(
            conv(8 * c, 16 * c, 3, 2, act=act),
            SPPBottleneck(16 * c, 16 * c, act=act),
            csp(16 * c, n, shortcut=False),
        )
        self.channels = (4 * c, 8 * c, 16 * c)
        self.strides = (8, 16, 32)
        self.pixels = RAW_PIXELS

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.dark3(self.dark2(self.stem(x)))
        c4 = self.dark4(c3)
        c5 = self.dark5(c4)
        return [c3, c4, c5]


def cspdarknet_nano(act: str = "silu") -> CSPDarknet:
    return CSPDarknet(depth=0.33, width=0.25, depthwise=True, act=act)


def cspdarknet_tiny(act: str = "silu") -> CSPDarknet:
    return CSPDarknet(depth=0.33, width=0.375, act=act)


def cspdarknet_s(act: str = "silu") -> CSPDarknet:
    return CSPDarknet(depth=0.33, width=0.50, act=act)


def cspdarknet_m(act: str = "silu") -> CSPDarknet:
    return CSPDarknet(depth=0.67, width=0.75, act=act)


def cspdarknet_l(act: str = "silu") -> CSPDarknet:
    return CSPDarknet(depth=1.0, width=1.0, act=act)


def cspdarknet_x(act: str = "silu") -> CSPDarknet:
    return CSPDarknet(depth=1.33, width=1.25, act=act)
