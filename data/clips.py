"""Which frames make a sample.

A set is a list of videos, a still being a video of one frame. A sampler says which frames of a
video of `length` may be key frames (`keys`), and which frames a key frame's sample consists of
(`frames`): (role, frame) pairs in the order in which the model sees them, every sample of a sampler
with the same roles. It may draw, from the sample's own generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Pieces of `length` frames, `interval` frames apart; by default each frame for itself.

    Every frame is in a piece: with an interval those that one step leaves out are in pieces of
    their own; the last piece goes back for the frames that it lacks. A video that is too short
    stands still at its end.
    """

    length: int = 1
    interval: int = 1

    def keys(self, length: int) -> Sequence[int]:
        """First frames of the pieces of a video."""
        if self.length == 1:
            return range(length)
        keys = []
        for phase in range(min(self.interval, length)):
            count = len(range(phase, length, self.interval))
            starts = range(0, count - self.length, self.length)
            starts = [*starts, max(count - self.length, 0)]
            keys += [phase + start * self.interval for start in starts]
        return keys

    def frames(self, length: int, key: int, rng) -> list[tuple[str, int]]:
        last = key + (length - 1 - key) // self.interval * self.interval
        return [("key", min(key + step * self.interval, last)) for step in range(self.length)]


STILL = Window()


JUMP = 2  # times the usual step in frame numbers, above which what follows is another video


class Videos:
    """The image indices of each video by frame number, in two columns; the stills come first.

    A video whose frame numbers jump is several: what was seen before a cut is no help after it.
    """

    def __init__(self, records):
        stills = np.flatnonzero(records.video < 0)
        moving = np.flatnonzero(records.video >= 0)
        moving = moving[np.lexsort((records.frame[moving], records.video[moving]))]
        begins = _begins(records.video[moving], records.frame[moving])
        self._order = np.concatenate((stills, moving))
        starts = np.flatnonzero(begins) + len(stills)
        self._starts = np.concatenate((np.arange(len(stills)), starts, [len(self._order)]))

    def __len__(self):
        return len(self._starts) - 1

    def length(self, video: int) -> int:
        """How many frames a video has."""
        return int(self._starts[video + 1] - self._starts[video])

    def images(self, video: int) -> np.ndarray:
        """Indices of the images of a video, in order."""
        return self._order[self._starts[video] : self._starts[video + 1]]

    def image(self, video: int, frame: int) -> int:
        """Index of the image that is the `frame`-th of a video, counted from 0."""
        return int(self._order[self._starts[video] + frame])


def _begins(video, frame):
    """bool [I]: which images, sorted by video and frame, begin a video or follow a jump."""
    begins = np.diff(video, prepend=-1) != 0
    steps = np.diff(frame, prepend=0)
    edges = [*np.flatnonzero(begins).tolist(), len(video)]
    for first, end in zip(edges, edges[1:], strict=False):
        inner = np.sort(steps[first + 1 : end])
        if len(inner):
            usual = inner[(len(inner) - 1) // 2]
            begins[first + 1 : end] = steps[first + 1 : end] > JUMP * max(usual, 1)
    return begins
