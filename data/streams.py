"""Which frames the batches of an evaluation hold when every video is to be seen in order.

R rows, S steps. Each row of a batch goes through one video after the other, a frame a step.
"""

import heapq

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.clips import Videos
from data.films import MOST_OPEN, frame_of
from utils.image import fitted_size, is_square, padded_hw


class Streams:
    """The plan of one rank: whole videos, so that ranks and rows have as equal lengths as can be.

    Rows that end first are the last: those of the next batch are the first of this one's. A batch
    is read in `parts`, blocks of its rows. Reading a film's frame takes decoding all before it, so
    a part is always read by the same worker; of image files whole batches are.
    """

    def __init__(self, dataset, *, batch_size, num_workers, rank=0, world=1):
        lengths = np.array([dataset.videos.length(v) for v in range(len(dataset.videos))], np.int64)
        films = shows_films(dataset)
        self.rows = min(batch_size, MOST_OPEN * max(num_workers, 1)) if films else batch_size
        self.pad_hw = common_hw(dataset.records, dataset.sides)
        own = shared_out(lengths, world)[rank]
        starts = np.cumsum(lengths) - lengths
        rows = [
            np.concatenate([starts[v] + np.arange(lengths[v]) for v in own[part]])
            for part in shared_out(lengths[own], self.rows)
            if len(part)
        ]
        self._rows = sorted(rows, key=len, reverse=True)
        self.steps = len(self._rows[0]) if rows else 0
        self.parts = max(min(num_workers, len(rows)), 1) if films else 1
        self.workers = min(num_workers, self.parts) if films else num_workers

    def positions(self, number) -> list[int]:
        """Positions in the set's order of part number % parts of step number // parts."""
        step, part = divmod(number, self.parts)
        first, end = (edge * len(self._rows) // self.parts for edge in (part, part + 1))
        return [int(row[step]) for row in self._rows[first:end] if step < len(row)]


def in_order(records) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images, one video after the other, and the number of the video (as
    data/clips.py parts them) that each of these is a frame of."""
    videos = Videos(records)
    parts = [videos.images(v) for v in range(len(videos))]
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def watched(model, records, wanted, read):
    """(index, image, what `model` detects in it) of the images `wanted`; one that remembers sees
    all frames of their videos up to them. `read(path)` reads an image."""
    if not model.remembers:
        for index in wanted:
            image = read(records.path(index))
            yield index, image, model.detect(image)
        return
    order, videos = in_order(records)
    places = np.flatnonzero(np.isin(order, list(wanted)))
    last = dict(zip(videos[places].tolist(), places.tolist(), strict=True))
    for video, end in last.items():
        detect = model.follower()
        for index in order[np.searchsorted(videos, video) : end + 1].tolist():
            image = read(records.path(index))
            found = detect(image)
            if index in wanted:
                yield index, image, found


def shared_out(lengths, count) -> list[np.ndarray]:
    """What each of `count` gets of things of these lengths, as places that rise: the longest go
    first, each to the one that has least."""
    totals, shares = [(0, place) for place in range(count)], [[] for _ in range(count)]
    for thing in np.argsort(-lengths, kind="stable").tolist():
        total, place = totals[0]
        shares[place].append(thing)
        heapq.heapreplace(totals, (total + int(lengths[thing]), place))
    return [np.array(sorted(share), np.int64) for share in shares]


def shows_films(dataset) -> bool:
    """Whether a video of the set is a film, told by the first frames."""
    videos = dataset.videos
    firsts = (videos.image(v, 0) for v in range(len(videos)) if videos.length(v))
    return any(frame_of(dataset.records.path(index)) for index in firsts)


def common_hw(records, sides) -> tuple[int, int]:
    """The size that all batches are padded to: a state is of the size of its images."""
    if is_square(sides):
        return sides
    sizes = np.unique(records.sizes, axis=0).tolist()
    return padded_hw([fitted_size(size_hw, sides) for size_hw in sizes])


def joined(parts: list[tuple[Tensor, dict]]) -> tuple[Tensor, dict]:
    """Batches of images of one size as one, lists of objects padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    targets = {}
    for name, first in parts[0][1].items():
        columns = [part[name] for _, part in parts]
        if isinstance(first, Tensor):
            targets[name] = torch.cat(_padded(columns))
        else:
            targets[name] = (
                first if name == "roles" else [row for column in columns for row in column]
            )
    return torch.cat([images for images, _ in parts]), targets


def _padded(columns):
    """Columns [B], or [B, G, ...] with 0 up to the largest G."""
    if columns[0].ndim == 1:
        return columns
    most = max(column.shape[1] for column in columns)
    return [
        F.pad(column, (0, 0) * (column.ndim - 2) + (0, most - column.shape[1]))
        for column in columns
    ]
