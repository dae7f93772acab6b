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


class Videos:
    """The image indices of each video by frame number, in two columns; the stills come first."""

    def __init__(self, records):
        stills = np.flatnonzero(records.video < 0)
        moving = np.flatnonzero(records.video >= 0)
        moving = moving[np.lexsort((records.frame[moving], records.video[moving]))]
        lengths = np.bincount(records.video[moving], minlength=len(records.videos))
        lengths = np.concatenate((np.ones(len(stills), np.int64), lengths))
        self._order = np.concatenate((stills, moving))
        self._starts = np.concatenate(([0], np.cumsum(lengths)))

    def __len__(self):
        return len(self._starts) - 1

    def length(self, video: int) -> int:
        """How many frames a video has."""
        return int(self._starts[video + 1] - self._starts[video])

    def image(self, video: int, frame: int) -> int:
        """Index of the image that is the `frame`-th of a video, counted from 0."""
        return int(self._order[self._starts[video] + frame])
