"""ResNet (arXiv 1512.03385) and ResNeXt (1611.05431): maps of strides 8, 16 and 32, or 16, 16 for
the last two where the last stage is dilated (DC5). Published weights come in layouts of the same
shapes that do not mix; `LAYOUTS` says what each presumes.
"""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import CAFFE_PIXELS, RGB_PIXELS, ConvBNAct, FrozenConvBNAct, Pixels
from utils.errors import UserError

BN_EPS, BN_MOMENTUM = 1e-5, 0.1


class Layout(NamedTuple):
    """What weights presume: their pixels, and whether a stage's stride is in the first 1 x 1 of
    its first bottleneck or in the 3 x 3."""

    pixels: Pixels
    stride_in_1x1: bool


LAYOUTS = {
    "torchvision": Layout(RGB_PIXELS, stride_in_1x1=False),
    "caffe": Layout(CAFFE_PIXELS, stride_in_1x1=True),
    # Caffe's weights trained on under torchvision's pixels, as some mmdetection configs do.
    "caffe-rgb": Layout(RGB_PIXELS, stride_in_1x1=True),
}


class BasicBlock(nn.Module):
    """Two 3 x 3, the first with the stride; `dilations` are theirs."""

    def __init__(self, cin: int, width: int, stride: int, dilations: tuple[int, int], *, conv):
        super().__init__()
        self.conv1 = conv(cin, width, 3, stride, dilation=dilations[0], act="relu")
        self.conv2 = conv(width, width, 3, dilation=dilations[1], act="none")
        self.downsample = _around(cin, width, stride, conv)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, and 1 x 1 to 4 x `width` channels; of `dilations` the 3 x 3 takes the first.
    `act` follows the 3 x 3: where the paper of ACON puts it."""

    def __init__(
        self,
        cin: int,
        width: int,
        stride: int,
        dilations: tuple[int, int],
        *,
        conv,
        stride_in_1x1: bool,
        groups: int,
        group_width: int,
        act: str,
    ):
        super().__init__()
        inner, cout = groups * (width * group_width // 64), 4 * width
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv(cin, inner, 1, stride1, act="relu")
        self.conv2 = conv(inner, inner, 3, stride2, groups=groups, dilation=dilations[0], act=act)
        self.conv3 = conv(inner, cout, 1, act="none")
        self.downsample = _around(cin, cout, stride, conv)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


def _around(cin: int, cout: int, stride: int, conv) -> nn.Module:
    """The way around a block: the input itself where the shapes agree."""
    if (cin, stride) == (cout, 1):
        return nn.Identity()
    return conv(cin, cout, 1, stride, act="none")


class ResNet(nn.Module):
    """`block` makes a residual block of `expansion` x its width in channels; `counts` are the
    blocks of each stage.

    Frozen, no norm learns, and of the convolutions those of the stem and layer1 do not.
    `dilate_first`: a dilated stage's first block is dilated too. On where the layout strides in
    the first 1 x 1 and off where it strides in the 3 x 3, the dilated stage computes at every
    second place what the strided one does; the other way round it is another function.
    """

    def __init__(
        self,
        block,
        expansion: int,
        counts: tuple[int, int, int, int],
        *,
        pixels: Pixels,
        dc5: bool,
        dilate_first: bool,
        frozen: bool,
    ):
        super().__init__()
        conv_class = FrozenConvBNAct if frozen else ConvBNAct
        conv = partial(conv_class, eps=BN_EPS, momentum=BN_MOMENTUM)
        c2, c3, c4, c5 = (expansion * width for width in (64, 128, 256, 512))

        def stage(cin: int, width: int, count: int, stride: int, *, first=1, dilation=1):
            """`first` is the dilation of the first block's first 3 x 3."""
            blocks = [block(cin, width, stride, (first, dilation), conv=conv)]
            for _ in range(count - 1):
                blocks.append(block(expansion * width, width, 1, (dilation, dilation), conv=conv))
            return nn.Sequential(*blocks)

        if dc5:
            last = {"stride": 1, "first": 2 if dilate_first else 1, "dilation": 2}
        else:
            last = {"stride": 2}
        self.stem = conv(3, 64, 7, 2, act="relu")
        self.layer1 = stage(64, 64, counts[0], stride=1)
        self.layer2 = stage(c2, 128, counts[1], stride=2)
        self.layer3 = stage(c3, 256, counts[2], stride=2)
        self.layer4 = stage(c4, 512, counts[3], **last)
        self.channels = (c3, c4, c5)
        self.strides = (8, 16, 16 if dc5 else 32)
        self.pixels = pixels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if frozen:
            self.stem.requires_grad_(False)
            self.layer1.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.layer1(F.max_pool2d(self.stem(x), 3, stride=2, padding=1))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return [c3, c4, c5]


def layout_named(name: str) -> Layout:
    """A row of LAYOUTS."""
    if name not in LAYOUTS:
        raise UserError(f"no layout {name!r} of ResNet weights; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def resnet18(
    *,
    layout: str = "torchvision",
    dc5: bool = False,
    dilate_first: bool = False,
    frozen: bool = False,
) -> ResNet:
    """Its basic blocks stride in their first 3 x 3, whatever the layout."""
    return ResNet(
        BasicBlock,
        1,
        (2, 2, 2, 2),
        pixels=layout_named(layout).pixels,
        dc5=dc5,
        dilate_first=dilate_first,
        frozen=frozen,
    )


def _bottlenecks(
    counts,
    *,
    layout: str = "torchvision",
    dc5: bool = False,
    dilate_first: bool = False,
    frozen: bool = False,
    act: str = "relu",
    groups: int = 1,
    group_width: int = 64,
) -> ResNet:
    pixels, stride_in_1x1 = layout_named(layout)
    block = partial(
        Bottleneck, stride_in_1x1=stride_in_1x1, groups=groups, group_width=group_width, act=act
    )
    return ResNet(
        block, 4, counts, pixels=pixels, dc5=dc5, dilate_first=dilate_first, frozen=frozen
    )


# All of them take the keywords of resnet18, and act.
resnet50 = partial(_bottlenecks, (3, 4, 6, 3))
resnet101 = partial(_bottlenecks, (3, 4, 23, 3))
resnext101_64x4d = partial(_bottlenecks, (3, 4, 23, 3), groups=64, group_width=4)
