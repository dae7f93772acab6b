"""The border between images and weights: what every network does with pixels first."""

import torch
from torch import Tensor, nn

from models.layers import Pixels


class PixelNetwork(nn.Module):
    """Base of all that takes BGR images 0..255 and holds a backbone that expects `pixels`."""

    def __init__(self, pixels: Pixels):
        super().__init__()
        self.reverse_channels = pixels.order == "rgb"
        self.normalized = (pixels.mean, pixels.std) != ((0.0,) * 3, (1.0,) * 3)
        for name in ("mean", "std", "padding"):
            value = torch.tensor(pixels._asdict()[name], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(f"pixel_{name}", value, persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Float images in the channel order, with the mean and std, that the backbone expects."""
        if self.reverse_channels:
            images = images.flip(1)
        return (images - self.pixel_mean) / self.pixel_std if self.normalized else images
