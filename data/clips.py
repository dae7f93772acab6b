"""Which frames make a sample.

A set is a list of videos, a still being a video of one frame. A sampler says which frames of a
video of `length` may be key frames (`keys`), and which frames a key frame's sample consists of
(`frames`): (role, frame) pairs in the order in which the model sees them, every sample of a sampler
with the same roles. It may draw, from the sample's own generator.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """`length` frames, `interval` frames apart, from the key frame on; one frame by default."""

    length: int = 1
    interval: int = 1

    def keys(self, length: int) -> range:
        """Windows lie inside their video: none begins where it ends too early."""
        return range(length - (self.length - 1) * self.interval)

    def frames(self, length: int, key: int, rng) -> list[tuple[str, int]]:
        return [("key", key + step * self.interval) for step in range(self.length)]


STILL = Window()


def videos(records) -> list[np.ndarray]:
    """The image indices of each video by frame number; the stills come first."""
    members = [np.array([index]) for index in np.flatnonzero(records.video < 0)]
    for video in range(len(records.videos)):
        own = np.flatnonzero(records.video == video)
        members.append(own[np.argsort(records.frame[own], kind="stable")])
    return members
