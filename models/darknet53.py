"""Darknet-53 (YOLOv3, arXiv 1804.02767) with the pooled last stage that YOLOX puts on it."""

from torch import Tensor, nn

from models.layers import RAW_PIXELS, ConvBNAct, ResLayer, SPPBottleneck


class Darknet53(nn.Module):
    """Maps of strides 8, 16, 32 with 256, 512, 512 channels."""

    def __init__(self, *, blocks: tuple[int, int, int, int] = (2, 8, 8, 4), act: str = "lrelu"):
        super().__init__()

        def stage(cin: int, n: int) -> list[nn.Module]:
            down = ConvBNAct(cin, 2 * cin, 3, 2, act=act)
            return [down, *(ResLayer(2 * cin, act=act) for _ in range(n))]

        self.stem = nn.Sequential(ConvBNAct(3, 32, 3, act=act), *stage(32, 1))
        self.dark2 = nn.Sequential(*stage(64, blocks[0]))
        self.dark3 = nn.Sequential(*stage(128, blocks[1]))
        self.dark4 = nn.Sequential(*stage(256, blocks[2]))
        self.dark5 = nn.Sequential(
            *stage(512, blocks[3]),
            ConvBNAct(1024, 512, 1, act=act),
            ConvBNAct(512, 1024, 3, act=act),
            SPPBottleneck(1024, 512, act=act),
            ConvBNAct(512, 1024, 3, act=act),
            ConvBNAct(1024, 512, 1, act=act),
        )
        self.channels = (256, 512, 512)
        self.strides = (8, 16, 32)
        self.pixels = RAW_PIXELS

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.dark3(self.dark2(self.stem(x)))
        c4 = self.dark4(c3)
        c5 = self.dark5(c4)
        return [c3, c4, c5]


def darknet53(act: str = "lrelu") -> Darknet53:
    return Darknet53(act=act)
