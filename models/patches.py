"""What pretraining's networks share: patches in, the backbone's maps out, regions of them.

P patches, R regions of each: xyxy pixels of the patch.
"""

import torch
from torch import Tensor, nn

from models.pixels import PixelNetwork


class PatchNetwork(PixelNetwork):
    """Base of what learns from patches [B, K, 3, S, S], uint8: all of them in one forward pass of
    the backbone, with the pixels that a detector would give it."""

    def __init__(self, backbone: nn.Module):
        super().__init__(backbone.pixels)
        self.backbone = backbone

    def maps(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps [P, c, h, w] of P = B * K patches."""
        patches = images.flatten(0, 1)  # [P, 3, S, S]
        patches = patches.to(self.pixel_mean.dtype, memory_format=torch.channels_last)
        return self.backbone(self.normalize(patches))


def pooled(x: Tensor, regions: Tensor, side: int) -> Tensor:
    """[P, R, c]: means of a map [P, c, h, w] of patches of `side` over regions [P, R, 4]. A cell
    that lies in a region in part counts in part, so that a region may be smaller than a cell."""
    across = _shares(regions[..., 0::2], x.shape[3], side)
    down = _shares(regions[..., 1::2], x.shape[2], side)
    return torch.einsum("pchw,prh,prw->prc", x.float(), down, across)


def _shares(ends: Tensor, cells: int, side: int) -> Tensor:
    """[P, R, cells]: how much of the way between two ends [P, R, 2] lies in each cell."""
    edges = torch.linspace(0, side, cells + 1, device=ends.device)
    low, high = ends[..., :1].maximum(edges[:-1]), ends[..., 1:].minimum(edges[1:])
    covered = (high - low).clamp(min=0)
    return covered / covered.sum(dim=2, keepdim=True).clamp(min=1e-6)  # none where nothing is


def embedded(maps: list[Tensor], regions: Tensor, side: int) -> Tensor:
    """[P, E]: what a region [P, 4] is to a linear probe, the means of all maps side by side."""
    return torch.cat([pooled(x, regions[:, None], side)[:, 0] for x in maps], dim=1)
