"""RepVGG (arXiv 2101.03697): blocks of three branches in training that are one 3 x 3 convolution
for inference; `fuse` makes them so. The names of its weights are timm's.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.borrowed import freeze
from models.layers import RGB_PIXELS, ConvBNAct, Folds, folded_weights, with_weights
from models.names import renamed as by_rules
from models.names import rules
from utils.errors import UserError

A_DEPTHS, B_DEPTHS = (2, 4, 14, 1), (4, 6, 16, 1)
BN_EPS, BN_MOMENTUM = 1e-5, 0.1

branch = partial(ConvBNAct, eps=BN_EPS, momentum=BN_MOMENTUM, act="none")


class Block(Folds):
    """The sum of a 3 x 3, a 1 x 1 and, where the shapes agree, the input itself; each has a norm of
    its own."""

    def __init__(self, cin: int, cout: int, stride: int, groups: int):
        super().__init__()
        self.stride = stride
        self.conv_kxk = branch(cin, cout, 3, stride, groups=groups)
        self.conv_1x1 = branch(cin, cout, 1, groups=groups)
        same = (cin, stride) == (cout, 1)
        self.identity = nn.BatchNorm2d(cin, eps=BN_EPS, momentum=BN_MOMENTUM) if same else None

    def forward(self, x: Tensor) -> Tensor:
        # The pixels are chosen here, not by the stride of the 1 x 1: oneDNN crashes in the gradient
        # of such a convolution of few channels, as the image's 3.
        y = self.conv_kxk(x) + self.conv_1x1(x[..., :: self.stride, :: self.stride])
        if self.identity is not None:
            y += self.identity(x)
        return F.relu(y, inplace=True)

    def folded(self) -> tuple[nn.Conv2d, nn.Module]:
        wide = self.conv_kxk.conv
        weight, bias = folded_weights(wide.weight, None, self.conv_kxk.bn)
        point, shift = folded_weights(self.conv_1x1.conv.weight, None, self.conv_1x1.bn)
        weight[:, :, 1:2, 1:2] += point
        bias += shift
        if self.identity is not None:
            point, shift = folded_weights(_unit(wide), None, self.identity)
            weight[:, :, 1:2, 1:2] += point
            bias += shift
        conv = with_weights(wide, weight.to(wide.weight), bias.to(wide.weight))
        return conv, nn.ReLU(inplace=True)


def _unit(conv: nn.Conv2d) -> Tensor:
    """The 1 x 1 weight [C, C / g, 1, 1] that gives a convolution's input, in its groups."""
    inner = conv.in_channels // conv.groups
    unit = torch.eye(inner, device=conv.weight.device).repeat(conv.groups, 1)
    return unit[:, :, None, None]


class RepVGG(nn.Module):
    """`width` multiplies the channels of the stem and of stages 1 to 3, `last` those of stage 4;
    every second block has so many groups. Frozen, no norm learns, nor do the stem and stage 1."""

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        width: float,
        last: float,
        *,
        groups: int = 1,
        frozen: bool = False,
    ):
        super().__init__()
        widths = [int(64 * width), int(128 * width), int(256 * width), int(512 * last)]
        cin = min(64, widths[0])
        self.stem = Block(3, cin, 2, 1)
        self.stages = nn.ModuleList()
        number = 0  # of the block, from the stem on
        for depth, cout in zip(depths, widths, strict=True):
            blocks = []
            for index in range(depth):
                number += 1
                stride, grouped = (1 if index else 2), (1 if number % 2 else groups)
                blocks.append(Block(cin, cout, stride, grouped))
                cin = cout
            self.stages.append(nn.Sequential(*blocks))
        self.channels = tuple(widths[1:])
        self.strides = (8, 16, 32)
        self.pixels = RGB_PIXELS
        if frozen:
            freeze(self, self.stem, self.stages[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.stages[0](self.stem(x))
        c3 = self.stages[1](c2)
        c4 = self.stages[2](c3)
        c5 = self.stages[3](c4)
        return [c3, c4, c5]


# All of them take frozen.
repvgg_a0 = partial(RepVGG, A_DEPTHS, 0.75, 2.5)
repvgg_a1 = partial(RepVGG, A_DEPTHS, 1, 2.5)
repvgg_a2 = partial(RepVGG, A_DEPTHS, 1.5, 2.75)
repvgg_b0 = partial(RepVGG, B_DEPTHS, 1, 2.5)
repvgg_b1 = partial(RepVGG, B_DEPTHS, 2, 4)
repvgg_b1g4 = partial(RepVGG, B_DEPTHS, 2, 4, groups=4)
repvgg_b2 = partial(RepVGG, B_DEPTHS, 2.5, 5)
repvgg_b3 = partial(RepVGG, B_DEPTHS, 3, 5)


# ---- weights of others ----

ORIGINAL = rules(
    (f"{theirs}.{theirs_in}.", f"{ours}.{ours_in}.")
    for theirs, ours in (
        ("stage0", "stem"),
        *((f"stage{k + 1}.#", f"stages.{k}.#") for k in range(4)),
    )
    for theirs_in, ours_in in (
        ("rbr_dense", "conv_kxk"),
        ("rbr_1x1", "conv_1x1"),
        ("rbr_identity", "identity"),
    )
)
FUSED = {"stem.reparam_conv.bias", "stage0.rbr_reparam.bias", "stem.conv.bias"}  # the last: ours
CLASSIFIERS = ("head.", "linear.")


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """A backbone's weights out of a file under timm's names or those of the original repository;
    None of a file that holds no RepVGG."""
    stages = any(name.startswith(("stages.0.0.", "stage1.0.")) for name in state)
    if stages and FUSED & state.keys():
        raise UserError(
            "this file holds a RepVGG whose branches are fused, which can only detect; give the "
            "file of its train form, which is fused after loading"
        )
    if not {"stages.0.0.conv_1x1.conv.weight", "stage1.0.rbr_1x1.conv.weight"} & state.keys():
        return None
    return {
        by_rules(name, ORIGINAL): value
        for name, value in state.items()
        if not name.startswith(CLASSIFIERS)
    }
