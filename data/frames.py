"""Which frame of its video an image is, as its file name tells it."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data.clips import Videos

DIGITS = re.compile(r"[0-9]+")
LONGEST = 18  # digits that fit into a column of numbers


def number_of(stem: str) -> int | None:
    """The first digits after the last "_" of a name without its ending, or None."""
    found = DIGITS.search(stem.rpartition("_")[2])
    return int(found[0]) if found and len(found[0]) <= LONGEST else None


def numbers_of(stems: list[str]) -> list[int] | None:
    """The number of each frame of a video; None if one has none, or two have the same."""
    numbers = [number_of(stem) for stem in stems]
    return None if None in numbers or len(set(numbers)) < len(numbers) else numbers


def by_name(stems: list[str]) -> list[int]:
    """The place of each name among all, in the order in which people count: 9 before 10."""
    order = sorted(range(len(stems)), key=lambda index: _natural(stems[index]))
    places = [0] * len(stems)
    for place, index in enumerate(order):
        places[index] = place
    return places


def by_folder(paths: list[Path]) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Each folder as a video: (the folders, int64 [I] the place among them of each image's, int64
    [I] its number in it)."""
    folders: dict[Path, list[int]] = {}
    for index, path in enumerate(paths):
        folders.setdefault(path.parent, []).append(index)
    video, frame = np.empty((2, len(paths)), np.int64)
    for place, members in enumerate(folders.values()):
        stems = [paths[index].stem for index in members]
        video[members], frame[members] = place, numbers_of(stems) or by_name(stems)
    return list(folders), video, frame


def videos_of(paths: list[Path]) -> list[list[int]]:
    """The indices of the images that are frames of one video, in order: each folder is a video, or
    several where its numbers jump."""
    _, video, frame = by_folder(paths)
    videos = Videos(SimpleNamespace(video=video, frame=frame))
    return [videos.images(video).tolist() for video in range(len(videos))]


def _natural(name):
    """A key that sorts digits in names by their value."""
    parts = re.split(r"([0-9]+)", name)
    return [
        (part, 0) if place % 2 == 0 else ("", int(part)) for place, part in enumerate(parts)
    ], name
