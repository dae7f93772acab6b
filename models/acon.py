"""ACON (arXiv 2009.04759): activations that learn, channel by channel, whether to activate.

Both begin as SiLU or near it (p1 = 1, p2 = 0), not at random as in the paper: so they can take the
place of SiLU in a trained network.
"""

import torch
from torch import Tensor, nn

REDUCTION = 16


class Acon(nn.Module):
    """ACON-C: between the linear function (p1 + p2) / 2 x (beta 0) and max(p1 x, p2 x) (beta
    large), with a beta that is learnt."""

    def __init__(self, channels: int):
        super().__init__()
        self.p1 = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.p2 = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return acon(x, self.p1, self.p2, self.beta)


class MetaAcon(nn.Module):
    """Meta-ACON: beta [B, C, 1, 1] is computed from the means of the map.

    `norms`, as in the paper's networks, are batch norms on maps of one pixel: they cannot train on
    one image, and are there for weights that were trained with them.
    """

    def __init__(self, channels: int, *, reduction: int = REDUCTION, norms: bool = False):
        super().__init__()
        hidden = max(reduction, channels // reduction)
        self.p1 = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.p2 = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden) if norms else nn.Identity()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels) if norms else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        beta = self.bn2(self.fc2(self.bn1(self.fc1(means)))).sigmoid()
        return acon(x, self.p1, self.p2, beta)


def acon(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x, in the dtype of x."""
    slope = p1 - p2
    gate = ((beta * slope).to(x.dtype) * x).sigmoid()
    # x outside the bracket: two passes over the map less, a fifth of the time of both ways.
    return x * torch.addcmul(p2.to(x.dtype), slope.to(x.dtype), gate)
