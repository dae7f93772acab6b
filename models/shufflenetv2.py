"""ShuffleNetV2 (arXiv 1807.11164): half of the channels go around each unit, then both halves are
shuffled. torchvision's network under torchvision's names, without its classifier.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torchvision
from torch import Tensor, nn

from models.acon import REDUCTION, Acon, MetaAcon
from models.borrowed import freeze, own_strided_depthwise
from models.layers import RGB_PIXELS

State = dict[str, Tensor]


class ShuffleNetV2(nn.Module):
    """Its maps have the first three of `widths` channels; with `last_conv` the last map is what
    the classifier's 1 x 1 convolution makes of it, of the fourth.

    `act` "acon" or "meta_acon" takes the place of every ReLU, as in the paper of ACON. Frozen, no
    norm learns, nor does a convolution of the stem and stage 2.
    """

    def __init__(
        self,
        build: Callable[[], torchvision.models.ShuffleNetV2],
        widths: tuple[int, int, int, int],
        *,
        frozen: bool = False,
        act: str = "relu",
        reduction: int = REDUCTION,
        last_conv: bool = False,
    ):
        super().__init__()
        network = build()
        self.conv1, self.maxpool = network.conv1, network.maxpool
        self.stage2, self.stage3, self.stage4 = network.stage2, network.stage3, network.stage4
        self.conv5 = network.conv5 if last_conv else nn.Identity()
        c3, c4, c5, last = widths
        self.channels = (c3, c4, last if last_conv else c5)
        self.strides = (8, 16, 32)
        self.pixels = RGB_PIXELS
        own_strided_depthwise(self)
        if frozen:
            freeze(self, self.conv1, self.stage2)
        if act != "relu":
            learnt = {"acon": Acon, "meta_acon": partial(MetaAcon, reduction=reduction)}
            _exchange_relus(self, learnt[act])

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.maxpool(self.conv1(x))
        c3 = self.stage2(c2)
        c4 = self.stage3(c3)
        c5 = self.conv5(self.stage4(c4))
        return [c3, c4, c5]


def _exchange_relus(network: nn.Module, make: Callable[[int], nn.Module]):
    """Every ReLU becomes make(channels), under the name `act`, which weight decay leaves alone."""
    for parts in list(network.modules()):
        for name, part in list(parts.named_children()):
            if isinstance(part, nn.BatchNorm2d):
                channels = part.num_features
            elif isinstance(part, nn.ReLU):
                parts.add_module(name, nn.Sequential(OrderedDict(act=make(channels))))


def renamed(state: State, *, last_conv: bool = False) -> State | None:
    """A backbone's weights out of torchvision's file of ShuffleNetV2; None of any other."""
    if "stage2.0.branch1.0.weight" not in state:
        return None
    unused = ("fc.",) if last_conv else ("fc.", "conv5.")
    return {name: value for name, value in state.items() if not name.startswith(unused)}


_LIBRARY = torchvision.models
# All of them take the keywords of ShuffleNetV2. In x0.5 the paper of ACON reduces by 8 only.
shufflenetv2_x0_5 = partial(
    ShuffleNetV2, _LIBRARY.shufflenet_v2_x0_5, (48, 96, 192, 1024), reduction=8
)
shufflenetv2_x1_0 = partial(ShuffleNetV2, _LIBRARY.shufflenet_v2_x1_0, (116, 232, 464, 1024))
shufflenetv2_x1_5 = partial(ShuffleNetV2, _LIBRARY.shufflenet_v2_x1_5, (176, 352, 704, 1024))
shufflenetv2_x2_0 = partial(ShuffleNetV2, _LIBRARY.shufflenet_v2_x2_0, (244, 488, 976, 2048))
