"""Blocks of YOLOX and its kin, and what belongs to any network.

Leaf names (conv, bn, dconv, pconv, conv1, m, ...) are those of the published checkpoints.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.acon import Acon, MetaAcon
from utils.errors import UserError

BN_EPS, BN_MOMENTUM = 1e-3, 0.03  # YOLOX's; with torch's 1e-5 the published weights go wrong

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # red, green, blue; 0.485, 0.456, 0.406 of 255
IMAGENET_STD = (58.395, 57.12, 57.375)  # 0.229, 0.224, 0.225 of 255
MEAN_COLOUR = IMAGENET_MEAN[::-1]  # of padding, in BGR: zero once normalised

ACTIVATIONS = {  # of a map of so many channels
    "silu": lambda _: nn.SiLU(),
    "relu": lambda _: nn.ReLU(inplace=True),
    "lrelu": lambda _: nn.LeakyReLU(0.1, inplace=True),
    "mish": lambda _: nn.Mish(),
    "acon": Acon,
    "meta_acon": MetaAcon,
    "none": lambda _: nn.Identity(),
}


class Pixels(NamedTuple):
    """What a backbone's weights expect: channel order, mean and std of that order (0..255), and
    the colour in BGR, before normalising, that padding takes."""

    order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: tuple[float, float, float]


RAW_PIXELS = Pixels("bgr", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (114.0, 114.0, 114.0))
RGB_PIXELS = Pixels("rgb", IMAGENET_MEAN, IMAGENET_STD, MEAN_COLOUR)
CAFFE_PIXELS = Pixels("bgr", IMAGENET_MEAN[::-1], (1.0, 1.0, 1.0), MEAN_COLOUR)


def activation(name: str, channels: int) -> nn.Module:
    if name not in ACTIVATIONS:
        raise UserError(f"no activation {name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](channels)


class StridedDepthwise(nn.Conv2d):
    """A depthwise convolution that stays in float32 under a CPU's autocast: there its gradient
    takes 6 to 15 ms a layer in bfloat16 whatever its size, and less than 1 ms in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if not (x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class Folds(nn.Module):
    """A block that is one convolution and an activation for inference."""

    def folded(self) -> tuple[nn.Conv2d, nn.Module]:
        """Both, in copies; the convolution has a bias."""
        raise NotImplementedError


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution with what the norm does in its weight and its bias."""
    weight, bias = folded_weights(conv.weight, conv.bias, norm)
    return with_weights(conv, weight.to(conv.weight), bias.to(conv.weight))


def folded_weights(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d):
    """(weight, bias) in float64 of a convolution and the norm after it."""
    scale = exact(norm.weight) * torch.rsqrt(exact(norm.running_var) + norm.eps)
    shift = exact(norm.bias) - exact(norm.running_mean) * scale
    weight = exact(weight) * scale[:, None, None, None]
    return weight, shift if bias is None else exact(bias) * scale + shift


def with_weights(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution like this one with other weights."""
    other = copy.deepcopy(conv)
    other.weight = nn.Parameter(weight.detach(), requires_grad=False)
    other.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return other


def exact(x: Tensor) -> Tensor:
    """In float64, which Apple's GPUs do not have."""
    return x.detach().to("cpu" if x.device.type == "mps" else x.device, torch.float64)


class ConvBNAct(Folds):
    """Convolution, batch norm, activation; padding keeps the size at stride 1."""

    def __init__(
        self,
        cin: int,
        cout: int,
        k: int,
        s: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = False,
        eps: float = BN_EPS,
        momentum: float = BN_MOMENTUM,
        act: str,
    ):
        super().__init__()
        conv = StridedDepthwise if 1 < groups == cin and s > 1 else nn.Conv2d
        padding = dilation * ((k - 1) // 2)
        self.conv = conv(cin, cout, k, s, padding, dilation, groups, bias)
        self.bn = nn.BatchNorm2d(cout, eps=eps, momentum=momentum)
        self.act = activation(act, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def folded(self) -> tuple[nn.Conv2d, nn.Module]:
        return fold(self.conv, self.bn), copy.deepcopy(self.act)


class FrozenBN(nn.BatchNorm2d):
    """Batch norm that keeps its statistics in training too, and whose weight and bias do not
    learn; the state dict is that of BatchNorm2d."""

    def __init__(self, channels: int, *, eps: float, momentum: float):
        super().__init__(channels, eps=eps, momentum=momentum)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What each channel is multiplied by, and what is then added: [C], [C]."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class FrozenConvBNAct(ConvBNAct):
    """ConvBNAct with a frozen norm, which is folded into the weight at every pass: no pass over
    the map, and nothing of it kept for the gradient."""

    def __init__(self, *args, **options):
        super().__init__(*args, bias=False, **options)
        self.bn = FrozenBN(self.bn.num_features, eps=self.bn.eps, momentum=self.bn.momentum)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.bn.scale_and_shift()
        conv, weight = self.conv, self.conv.weight * scale[:, None, None, None]
        x = F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
        return self.act(x)


class DWConv(nn.Module):
    """Depthwise separable convolution: k x k per channel, then 1 x 1."""

    def __init__(self, cin: int, cout: int, k: int, s: int = 1, *, act: str):
        super().__init__()
        self.dconv = ConvBNAct(cin, cin, k, s, groups=cin, act=act)
        self.pconv = ConvBNAct(cin, cout, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return self.pconv(self.dconv(x))


def conv_type(depthwise: bool) -> type[nn.Module]:
    """The convolution of everything wider than 1 x 1."""
    return DWConv if depthwise else ConvBNAct


class Bottleneck(nn.Module):
    """1 x 1, then 3 x 3, with the input added where `shortcut` says so."""

    def __init__(self, channels: int, *, shortcut: bool, depthwise: bool, act: str):
        super().__init__()
        self.conv1 = ConvBNAct(channels, channels, 1, act=act)
        self.conv2 = conv_type(depthwise)(channels, channels, 3, act=act)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CSPLayer(nn.Module):
    """Half of the channels pass n bottlenecks, half go around."""

    def __init__(self, cin, cout, n: int, *, shortcut: bool = True, depthwise: bool, act: str):
        super().__init__()
        hidden = int(cout * 0.5)
        self.conv1 = ConvBNAct(cin, hidden, 1, act=act)
        self.conv2 = ConvBNAct(cin, hidden, 1, act=act)
        self.conv3 = ConvBNAct(2 * hidden, cout, 1, act=act)
        self.m = nn.Sequential(
            *(Bottleneck(hidden, shortcut=shortcut, depthwise=depthwise, act=act) for _ in range(n))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), dim=1))


class SPPBottleneck(nn.Module):
    """Maxima over 5, 9 and 13 pixels beside the map itself."""

    def __init__(self, cin: int, cout: int, *, act: str):
        super().__init__()
        hidden = cin // 2
        self.conv1 = ConvBNAct(cin, hidden, 1, act=act)
        self.conv2 = ConvBNAct(4 * hidden, cout, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        pool1 = self.conv1(x)
        pool5 = F.max_pool2d(pool1, 5, stride=1, padding=2)
        pool9 = F.max_pool2d(pool5, 5, stride=1, padding=2)  # 5 of 5 is 9: same, and faster
        pool13 = F.max_pool2d(pool9, 5, stride=1, padding=2)
        return self.conv2(torch.cat((pool1, pool5, pool9, pool13), dim=1))


class Focus(Folds):
    """Four pixels into channels, then 3 x 3: computed as the equal 6 x 6 convolution of stride 2.

    The weight keeps its published shape [cout, 12, 3, 3].
    """

    def __init__(self, cout: int, *, act: str):
        super().__init__()
        self.conv = ConvBNAct(12, cout, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, focus_kernel(self.conv.conv.weight), stride=2, padding=2)
        return self.conv.act(self.conv.bn(x))

    def folded(self) -> tuple[nn.Conv2d, nn.Module]:
        """Laid out as the 6 x 6 convolution."""
        narrow, act = self.conv.folded()
        conv = nn.Conv2d(3, narrow.out_channels, 6, stride=2, padding=2, device="meta")
        return with_weights(conv, focus_kernel(narrow.weight), narrow.bias), act


def focus_kernel(weight: Tensor) -> Tensor:
    """[O, 12, 3, 3] over (column parity b, row parity a, colour) -> [O, 3, 6, 6]."""
    cout = len(weight)
    kernel = weight.reshape(cout, 2, 2, 3, 3, 3)  # [O, b, a, colour, i, j]
    return kernel.permute(0, 3, 4, 2, 5, 1).reshape(cout, 3, 6, 6)  # row 2i + a, column 2j + b


class ResLayer(nn.Module):
    """Darknet-53's residual block."""

    def __init__(self, channels: int, *, act: str):
        super().__init__()
        self.layer1 = ConvBNAct(channels, channels // 2, 1, act=act)
        self.layer2 = ConvBNAct(channels // 2, channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer2(self.layer1(x))
