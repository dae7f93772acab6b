"""MobileNetV3 (arXiv 1905.02244), and MobileNetV2 (1801.04381) with coordinate attention
(2103.02907): torchvision's networks under torchvision's names, without their classifiers.
"""

from collections import OrderedDict
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import SqueezeExcitation

from models.attention import COORD, CoordAttention
from models.borrowed import exchange, freeze, own_strided_depthwise
from models.layers import RGB_PIXELS

LARGE_TAPS, SMALL_TAPS, V2_TAPS = (6, 12, 15), (3, 8, 11), (6, 13, 17)
LARGE_EARLY, SMALL_EARLY, V2_EARLY = 4, 2, 4


class MobileNet(nn.Module):
    """Its maps are what the layers `taps` of `features` give, the last of their strides. Frozen,
    no norm learns, nor do the `early` first layers, those down to stride 4; coordinate attention,
    whose weights may be new, learns."""

    def __init__(
        self,
        features: nn.Sequential,
        taps: tuple[int, int, int],
        early: int,
        *,
        frozen: bool,
    ):
        super().__init__()
        self.features, self.taps = features[: taps[-1] + 1], taps
        self.channels = tuple(features[tap].out_channels for tap in taps)
        self.strides = (8, 16, 32)
        self.pixels = RGB_PIXELS
        own_strided_depthwise(self)
        if frozen:
            freeze(self, self.features[:early])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps


def _mobilenetv3(
    build,
    taps: tuple[int, int, int],
    early: int,
    *,
    frozen: bool = False,
    attention: str = "none",
    last_conv: bool = True,
) -> MobileNet:
    """`last_conv`: the last map is what the classifier's 1 x 1 convolution makes of it. With
    `attention` "coord" coordinate attention takes the place of squeeze and excitation."""
    c3, c4, c5 = taps
    network = MobileNet(build().features, (c3, c4, c5 + last_conv), early, frozen=frozen)
    if attention == COORD:
        exchange(network, SqueezeExcitation, _coord_instead)
    return network


def _coord_instead(excitation: SqueezeExcitation) -> nn.Module:
    # Under the name `attention`, which weight decay leaves alone.
    return nn.Sequential(OrderedDict(attention=CoordAttention(excitation.fc1.in_channels)))


# Both take the keywords of _mobilenetv3.
mobilenetv3_small = partial(
    _mobilenetv3, torchvision.models.mobilenet_v3_small, SMALL_TAPS, SMALL_EARLY
)
mobilenetv3_large = partial(
    _mobilenetv3, torchvision.models.mobilenet_v3_large, LARGE_TAPS, LARGE_EARLY
)


def mobilenetv2_ca(*, frozen: bool = False) -> MobileNet:
    """Each block that widens has coordinate attention after its depthwise convolution."""
    features = torchvision.models.mobilenet_v2().features
    network = MobileNet(features, V2_TAPS, V2_EARLY, frozen=frozen)
    for block in network.features:
        if isinstance(block, InvertedResidual) and len(block.conv) == 4:
            depthwise = block.conv[1]
            depthwise.add_module("attention", CoordAttention(depthwise.out_channels))
    return network
