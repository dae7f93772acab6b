"""Memories of a video detector (YOLOFT, arXiv 2407.18137): maps in and the maps of the frames
before, fused maps and the new memory out.

B videos, C channels, H x W cells of a level. A memory is a tuple of maps [B, C, H, W], one for each
level, float32 whatever the maps are: in 16 bits small changes, added up, would be lost. Zeros are
the memory of a video that begins.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.c2f import deformable
from models.layers import ConvBNAct

GROUPS = 4  # of channels with points of their own


class ConvGRU(nn.Module):
    """The gated step of a recurrent unit, with convolutions of `kernel` (rows, columns)."""

    def __init__(self, hidden: int, cin: int, kernel: tuple[int, int] = (3, 3)):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        # Two gates of one convolution: how much is renewed, and what of the memory is looked at.
        self.gates = nn.Conv2d(hidden + cin, 2 * hidden, kernel, padding=padding)
        self.candidate = nn.Conv2d(hidden + cin, hidden, kernel, padding=padding)

    def forward(self, h: Tensor | None, x: Tensor) -> Tensor:
        if h is None:
            return self.begin(x)
        seen = h.to(x.dtype)
        renewed, looked_at = self.gates(torch.cat((seen, x), dim=1)).sigmoid().chunk(2, dim=1)
        new = self.candidate(torch.cat((looked_at * seen, x), dim=1)).tanh()
        return h + renewed.to(h.dtype) * (new.to(h.dtype) - h)

    def begin(self, x: Tensor) -> Tensor:
        """The step from zeros, of which the convolutions need not see anything: a sixth of the
        arithmetic where x has a third of the memory's channels."""
        hidden, padding = self.candidate.out_channels, self.candidate.padding
        gates, candidate = self.gates.weight[:hidden, hidden:], self.candidate.weight[:, hidden:]
        renewed = F.conv2d(x, gates, self.gates.bias[:hidden], padding=padding).sigmoid()
        new = F.conv2d(x, candidate, self.candidate.bias, padding=padding).tanh()
        return renewed.float() * new.float()


class SepConvGRU(nn.Module):
    """A step along rows, then one along columns: as far to see, in less time."""

    def __init__(self, hidden: int, cin: int):
        super().__init__()
        self.rows = ConvGRU(hidden, cin, (1, 5))
        self.columns = ConvGRU(hidden, cin, (5, 1))

    def forward(self, h: Tensor | None, x: Tensor) -> Tensor:
        return self.columns(self.rows(h, x), x)


class GRULevel(nn.Module):
    """A memory that is added to the new map."""

    def __init__(self, channels: int):
        super().__init__()
        self.encoder = ConvBNAct(channels, channels // 3, 1, act="silu")
        self.gru = ConvGRU(channels, channels // 3)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        h = self.gru(h, self.encoder(x))
        return x + h.to(x.dtype), h


class DeformLevel(nn.Module):
    """A memory that decides where the new map is sampled (FDCN); the samples are added to it."""

    def __init__(self, channels: int, *, separable: bool):
        super().__init__()
        self.encoder = ConvBNAct(channels, channels // 3, 1, act="silu")
        self.gru = (SepConvGRU if separable else ConvGRU)(channels, channels // 3)
        self.dcn = deformable(channels, group=GROUPS)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        h = self.gru(h, self.encoder(x))
        f = self.dcn(x.permute(0, 2, 3, 1), h.to(x.dtype).permute(0, 2, 3, 1))  # [B, H, W, C]
        return x + F.silu(f).permute(0, 3, 1, 2), h


class Memory(nn.Module):
    """One level for each map, of the given strides: `kind` "gru" or "deform"."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], kind: str):
        super().__init__()
        self.shapes = tuple(zip(channels, strides, strict=True))
        self.levels = nn.ModuleList(
            GRULevel(c) if kind == "gru" else DeformLevel(c, separable=level == 0)
            for level, c in enumerate(channels)
        )

    def forward(self, maps: list[Tensor], state: tuple[Tensor, ...]):
        """(fused maps, new state); no state is that of videos that begin."""
        if not state and self.training:
            state = (None,) * len(maps)
        elif not state:  # models.optimize knows the convolutions as they are called below
            state = tuple(torch.zeros_like(x, dtype=torch.float32) for x in maps)
        pairs = [level(x, h) for level, x, h in zip(self.levels, maps, state, strict=True)]
        fused, state = zip(*pairs, strict=True)
        return list(fused), state

    def example_state(
        self, batch: int, size_hw: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, ...]:
        """Zeros, the memory of videos that begin, for images of this size."""
        height, width = size_hw
        return tuple(  # channels-last in memory, as the maps are
            torch.zeros(batch, height // s, width // s, c, device=device).permute(0, 3, 1, 2)
            for c, s in self.shapes
        )
