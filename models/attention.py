"""Coordinate attention (arXiv 2103.02907): each channel is weighed by its row and by its column."""

import torch
from torch import Tensor, nn

COORD = "coord"  # the value of the option attention that asks for it
LEAST_HIDDEN = 8
OPEN = 3.0  # bias of the gates: both together begin at 0.9 and not at 0.25 of a trained map


class CoordAttention(nn.Module):
    """A gate for each row and one for each column of a map, from the means of rows and columns."""

    def __init__(self, channels: int, *, reduction: int = 32):
        super().__init__()
        hidden = max(LEAST_HIDDEN, channels // reduction)
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)
        nn.init.constant_(self.conv_h.bias, OPEN)
        nn.init.constant_(self.conv_w.bias, OPEN)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(3, keepdim=True)  # [B, C, H, 1]
        columns = x.mean(2, keepdim=True).transpose(2, 3)  # [B, C, W, 1]
        both = self.act(self.bn1(self.conv1(torch.cat((rows, columns), dim=2))))
        rows, columns = both.split((x.shape[2], x.shape[3]), dim=2)
        return x * self.conv_w(columns.transpose(2, 3)).sigmoid() * self.conv_h(rows).sigmoid()


class Attended(nn.Module):
    """A backbone whose last `maps` maps, those that are used, pass coordinate attention."""

    def __init__(self, network: nn.Module, *, maps: int):
        super().__init__()
        self.network = network
        unused, used = network.channels[:-maps], network.channels[-maps:]
        self.attention = nn.ModuleList(
            [*(nn.Identity() for _ in unused), *(CoordAttention(c) for c in used)]
        )
        self.channels, self.strides = network.channels, network.strides
        self.pixels = network.pixels

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.network(x)
        return [attend(y) for attend, y in zip(self.attention, maps, strict=True)]
