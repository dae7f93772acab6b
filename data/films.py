"""Frames of video files, read as images are: a film stands for a folder of its frames.

    FILM.mp4/000017.jpg        in a file name: frame 17 of FILM.mp4, counted from 0

Nothing of a film is held in memory but the frame that is read, and a time for each frame.
"""

import os
import re
from array import array
from bisect import bisect_left
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np

from utils.errors import DataError
from utils.image import probe_image, read_image
from utils.source import VIDEO_SUFFIXES
from utils.video import quiet

FRAME = re.compile(r"(\d{6,18})\.jpg")
NEAR = 16  # frames ahead that are decoded rather than sought: seeking decodes about as many
MOST_OPEN = 8  # films; a decoder takes some megabytes


def name_of(film: str, number: int) -> str:
    """The file name of a film's frame."""
    return f"{film}/{number:06d}.jpg"


def frame_of(path: Path) -> tuple[Path, int] | None:
    """(film, number) of a file name that means a film's frame, else None."""
    frame = FRAME.fullmatch(path.name)
    if not (frame and path.parent.suffix.lower() in VIDEO_SUFFIXES) or path.parent.is_dir():
        return None
    return path.parent, int(frame[1])


class Film:
    """An open video file whose frames are read by number, fastest in their order.

    `count` is the number of frames that the file announces; `times` of the frames in milliseconds
    are found when they are first needed, in a pass through the film.
    """

    def __init__(self, path: Path, times: array | None = None):
        self.path, self.times = path, times
        self._capture = _open(path)
        self._last = -1  # number of the frame that was decoded last
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not 0 < count < 1e9:
            raise DataError(f"{path}: the video does not say how many frames it has; convert it")
        self.count = int(count)

    def read(self, number: int) -> np.ndarray:
        """Frame `number`, BGR uint8 [H, W, 3]."""
        if not self._last <= number <= self._last + NEAR:
            self._seek(number)
        while self._last < number:
            if not self._capture.grab():
                raise DataError(
                    f"{self.path}: frame {number} cannot be read, the film ends after "
                    f"{self._last + 1} (it announces {self.count}); it is cut off or damaged"
                )
            self._last += 1
        read, image = self._capture.retrieve()
        if not read:
            raise DataError(f"{self.path}: frame {number} cannot be decoded")
        return image

    def _seek(self, number: int):
        """Goes to the frame, or before it.

        OpenCV seeks by time and computes the number from an even rate of frames, which is wrong
        for films that have none. So the frame it arrives at is told by its time.
        """
        if number > NEAR:
            if self.times is None:
                self.times = _times(self.path)
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            if self.times and self._capture.grab():
                time = self._capture.get(cv2.CAP_PROP_POS_MSEC)
                place = bisect_left(self.times, time)
                if place <= number and self.times[place] == time:
                    self._last = place
                    return
        self._capture.release()
        self._capture, self._last = _open(self.path), -1


class Images:
    """Reads images of either kind; the films that were read last stay open."""

    def __init__(self):
        self._films: OrderedDict[Path, Film] = OrderedDict()
        self._times: dict[Path, array] = {}  # of films that were closed
        self._process = os.getpid()

    def __reduce__(self):  # open films cannot go along into another process
        return Images, ()

    def read(self, path: Path, reduce: int = 1) -> np.ndarray:
        """The image of a file, as utils.image.read_image gives it, or of a film's frame."""
        frame = frame_of(path)
        return read_image(path, reduce) if frame is None else self.film(frame[0]).read(frame[1])

    def size_hw(self, path: Path) -> tuple[int, int]:
        """(h, w) of an image or of a film's frame."""
        return probe_image(path) if frame_of(path) is None else self.read(path).shape[:2]

    def film(self, path: Path) -> Film:
        """The open film."""
        if self._process != os.getpid():  # a fork shares its parent's place in a file
            self._films, self._process = OrderedDict(), os.getpid()
        if path not in self._films:
            self._films[path] = Film(path, self._times.get(path))
            if len(self._films) > MOST_OPEN:
                closed, film = self._films.popitem(last=False)
                if film.times is not None:
                    self._times[closed] = film.times
        self._films.move_to_end(path)
        return self._films[path]


def _open(path):
    """The file, decoded with one thread: the loader's workers are the parallelism."""
    quiet()
    if not path.is_file():
        raise DataError(f"{path}: the video file is missing")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise DataError(f"{path}: not a video that OpenCV can open; it is cut off or damaged")
    return capture


def _times(path):
    """The time of each frame, rising; empty if they do not rise, for then they tell nothing."""
    capture, times = _open(path), array("d")
    while capture.grab():
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
        if len(times) > 1 and times[-1] <= times[-2]:
            return array("d")
    return times
