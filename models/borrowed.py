"""Exchanges modules of a built network, torchvision's or ours; its weights keep their names."""

from collections.abc import Callable

from torch import nn

from models.layers import FrozenBN, StridedDepthwise


def exchange(network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]):
    """Puts make(module) in the place of every module of exactly this class."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                parent.add_module(name, make(child))


def own_strided_depthwise(network: nn.Module):
    """Strided depthwise convolutions become those whose gradient is fast on a CPU."""
    exchange(network, nn.Conv2d, _strided_depthwise)


def _strided_depthwise(conv: nn.Conv2d) -> nn.Conv2d:
    if conv.stride == (1, 1) or not 1 < conv.groups == conv.in_channels:
        return conv
    ours = StridedDepthwise(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
    )
    ours.weight, ours.bias = conv.weight, conv.bias
    return ours


def freeze(network: nn.Module, *parts: nn.Module):
    """No weight of these parts learns; no norm of the network learns or changes its statistics."""
    exchange(network, nn.BatchNorm2d, _frozen_norm)
    for part in parts:
        part.requires_grad_(False)


def _frozen_norm(norm: nn.BatchNorm2d) -> FrozenBN:
    return FrozenBN(norm.num_features, eps=norm.eps, momentum=norm.momentum)
