"""What pretraining's networks share: patches in, the backbone's maps out."""

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


def embedded(maps: list[Tensor]) -> Tensor:
    """[P, E]: what a patch is to a linear probe, the means of all of its maps side by side."""
    return torch.cat([x.float().mean(dim=(2, 3)) for x in maps], dim=1)
