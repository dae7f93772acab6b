"""Strong changes of colour, drawn for each patch anew, so that colour is no way to tell patches."""

from dataclasses import dataclass

import cv2
import numpy as np

# The most that contrast, brightness, hue (half degrees) and saturation change at strength 1.
SPANS = np.array([0.6, 0.3, 18.0, 0.8])


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue, grey, blur; `strength` 0 leaves all as it is."""

    strength: float = 1.0
    prob: float = 0.8
    grey: float = 0.2
    blur: float = 0.3

    def __call__(self, image, rng):
        """The image uint8 BGR [H, W, 3] after one draw."""
        draws = rng.random(3)
        contrast, brightness, hue, saturation = rng.uniform(-1, 1, 4) * SPANS * self.strength
        sigma = rng.uniform(0.3, 1.5)
        if not self.strength:
            return image
        if draws[0] < self.prob:
            mean = float(image.mean())
            levels = (np.arange(256) - mean) * (1 + contrast) + mean * (1 + brightness)
            image = cv2.LUT(image, levels.clip(0, 255).astype(np.uint8))
            image = _shifted(image, hue, 1 + saturation)
        if draws[1] < self.grey:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        if draws[2] < self.blur:
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        return image


def _shifted(image, hue, saturation):
    """The image with its hue turned by so many half degrees and its saturation multiplied: where
    there is none, none is made."""
    levels = np.arange(256)
    turned = ((levels + hue) % 180).astype(np.uint8)
    scaled = (levels * saturation).clip(0, 255).astype(np.uint8)
    channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    channels = cv2.LUT(channels[0], turned), cv2.LUT(channels[1], scaled), channels[2]
    return cv2.cvtColor(cv2.merge(channels), cv2.COLOR_HSV2BGR)
