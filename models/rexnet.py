"""ReXNet (arXiv 2007.00992): inverted residuals whose channels grow from block to block by the same
number. The names of its weights are timm's.
"""

from functools import partial

import torch
from torch import Tensor, nn

from models.borrowed import freeze
from models.layers import RGB_PIXELS, ConvBNAct, FrozenBN
from models.names import renamed as by_rules
from models.names import rules

DEPTHS, STRIDES = (1, 2, 2, 3, 3, 5), (1, 2, 2, 2, 1, 2)  # of each group; the first block strides
BLOCKS = sum(DEPTHS)
STEM, FIRST, GROWTH, LAST = 32, 16, 180, 1280  # channels; those of block i: FIRST + i GROWTH / 16
EXPANSION = 6
EXCITED = 3  # the first block with squeeze and excitation
EARLY = 3  # blocks down to stride 4
REDUCTION = 12
TAPS = (4, 10, 15)  # the last blocks of strides 8, 16 and 32
BN_EPS, BN_MOMENTUM = 1e-5, 0.1

conv = partial(ConvBNAct, eps=BN_EPS, momentum=BN_MOMENTUM)


class NormOfMeans(nn.BatchNorm2d):
    """Batch norm of maps of one pixel. The only one of a batch has no variance: its kept statistics
    serve then, and stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or len(x) > 1:
            return super().forward(x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class Excitation(nn.Module):
    """Squeeze and excitation with a norm inside: a factor for each channel."""

    def __init__(self, channels: int, *, norm: type[nn.BatchNorm2d]):
        super().__init__()
        hidden = channels // REDUCTION
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.bn = norm(hidden, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        return x * self.fc2(self.act(self.bn(self.fc1(means)))).sigmoid()


class Block(nn.Module):
    """1 x 1 to `expansion` x the channels, 3 x 3 on each channel, 1 x 1. Where nothing strides the
    input is added to as many of the channels as it has; the rest are new."""

    def __init__(self, cin: int, cout: int, stride: int, *, expansion: int, excitation, act: str):
        super().__init__()
        inner = expansion * cin
        self.conv_exp = nn.Identity() if expansion == 1 else conv(cin, inner, 1, act=act)
        self.conv_dw = conv(inner, inner, 3, stride, groups=inner, act="none")
        self.se = excitation(inner)
        self.act = nn.ReLU6(inplace=True)
        self.conv_pwl = conv(inner, cout, 1, act="none")
        self.added = cin if stride == 1 and cin <= cout else 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_pwl(self.act(self.se(self.conv_dw(self.conv_exp(x)))))
        if not self.added:
            return y
        return torch.cat((y[:, : self.added] + x, y[:, self.added :]), dim=1)


class ReXNet(nn.Module):
    """`width` multiplies all channels; `act` is that of the 1 x 1 that widen. With `last_conv` the
    last map is what the classifier's 1 x 1 makes of it. Frozen, no norm learns, nor do the layers
    down to stride 4."""

    def __init__(
        self, width: float, *, frozen: bool = False, act: str = "silu", last_conv: bool = False
    ):
        super().__init__()
        norm = FrozenBN if frozen else NormOfMeans
        strides = [
            s if k == 0 else 1 for n, s in zip(DEPTHS, STRIDES, strict=True) for k in range(n)
        ]
        cin = round(STEM * width)
        self.stem = conv(3, cin, 3, 2, act=act)
        layers = []
        for index, stride in enumerate(strides):
            cout = round((FIRST + index * GROWTH / BLOCKS) * width)
            layers.append(
                Block(
                    cin,
                    cout,
                    stride,
                    expansion=EXPANSION if index else 1,
                    excitation=partial(Excitation, norm=norm) if index >= EXCITED else nn.Identity,
                    act=act,
                )
            )
            cin = cout
        widths = [layers[tap].conv_pwl.conv.out_channels for tap in TAPS]
        if last_conv:
            widths[-1] = int(LAST * width)
            layers.append(conv(cin, widths[-1], 1, act=act))
        self.features = nn.Sequential(*layers)
        self.channels = tuple(widths)
        self.strides = (8, 16, 32)
        self.pixels = RGB_PIXELS
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if frozen:
            freeze(self, self.stem, self.features[:EARLY])

    def forward(self, x: Tensor) -> list[Tensor]:
        c3_end, c4_end = TAPS[0] + 1, TAPS[1] + 1
        c3 = self.features[:c3_end](self.stem(x))
        c4 = self.features[c3_end:c4_end](c3)
        c5 = self.features[c4_end:](c4)
        return [c3, c4, c5]


# All of them take the keywords of ReXNet.
rexnet_1_0 = partial(ReXNet, 1.0)
rexnet_1_3 = partial(ReXNet, 1.3)
rexnet_1_5 = partial(ReXNet, 1.5)
rexnet_2_0 = partial(ReXNet, 2.0)
rexnet_3_0 = partial(ReXNet, 3.0)


# ---- weights of others ----


def _original_names():
    """(theirs, ours) for the original repository, which numbers all layers of a block."""
    yield from (("features.0.", "stem.conv."), ("features.1.", "stem.bn."))
    for index in range(BLOCKS):
        layers = ["conv_dw", "conv_pwl"] if index == 0 else ["conv_exp", "conv_dw", "conv_pwl"]
        numbers = [0, 3, 6]
        if index >= EXCITED:
            numbers = [0, 3, 7]
            for number, ours in ((0, "fc1"), (1, "bn"), (3, "fc2")):
                yield f"features.{index + 3}.out.5.fc.{number}.", f"features.{index}.se.{ours}."
        for number, ours in zip(numbers, layers, strict=False):
            theirs = f"features.{index + 3}.out."
            yield f"{theirs}{number}.", f"features.{index}.{ours}.conv."
            yield f"{theirs}{number + 1}.", f"features.{index}.{ours}.bn."
    yield from (
        (f"features.{BLOCKS + 3}.", f"features.{BLOCKS}.conv."),
        (f"features.{BLOCKS + 4}.", f"features.{BLOCKS}.bn."),
    )


ORIGINAL = rules(_original_names())


def renamed(state: dict[str, Tensor], *, last_conv: bool = False) -> dict[str, Tensor] | None:
    """A backbone's weights out of a file under timm's names or those of the original repository;
    None of a file that holds no ReXNet."""
    if f"features.{EXCITED + 3}.out.5.fc.3.weight" in state:
        state = {by_rules(name, ORIGINAL): value for name, value in state.items()}
    elif f"features.{EXCITED}.conv_exp.conv.weight" not in state:
        return None
    unused = ("head.", "output.") + (() if last_conv else (f"features.{BLOCKS}.",))
    return {name: value for name, value in state.items() if not name.startswith(unused)}
