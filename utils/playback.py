"""A video: detected in, drawn on, written and shown, with threads for reading and writing."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from utils import vis
from utils.ahead import Ahead, Behind, spread
from utils.log import Progress
from utils.results import Results, inside, strong
from utils.video import RealTime, Video, Writer
from utils.window import TICK, Window, stepped

KEYS = "keys: space pause, + - threshold, s save the frame, q end"
RECENT = 20  # frames over which the shown frames a second are measured


class Playback:
    """Plays videos: `finder()` gives for each one what finds in its frames, given one after the
    other; `paint(image, found)` draws a copy, what is found goes to `results`. `every` takes each
    n-th frame, `most` at most so many of a video; `at_a_time` frames are detected in at once (by a
    model that remembers nothing), of live videos one."""

    def __init__(
        self,
        finder: Callable[[], Callable[[np.ndarray], dict]],
        paint: Callable[[np.ndarray, dict], np.ndarray],
        results: Results,
        *,
        threshold: float,
        labels: list[int] | None = None,
        every: int = 1,
        most: int | None = None,
        at_a_time: int = 1,
    ):
        self._finder, self._paint, self._results = finder, paint, results
        self.threshold, self.every = threshold, every
        self._labels, self._most, self._at_a_time = labels, most, at_a_time

    def play(
        self,
        video: Video,
        name: str,
        writer: Writer | None = None,
        window: Window | None = None,
        save_to: Callable[[], Path] | None = None,
    ) -> bool:
        """Plays it to its end, or until q is pressed (False); the key s saves to `save_to()`."""
        screen = _Screen(window, video, name, self.every, writer is None) if window else None
        with ExitStack() as stack:
            frames = video.frames(self.every, self._most)
            frames = stack.enter_context(Ahead(frames, newest=video.live))
            bar = stack.enter_context(self._bar(video, name))
            writing = None
            if writer is not None:
                stack.enter_context(writer)
                writing = stack.enter_context(Behind(self._write))
            clock = RealTime(video.fps) if video.live else None
            # A frame of a camera that waits for the one before it is an old one.
            count = 1 if video.live else self._at_a_time
            detect = self._finder()

            def find(frame: tuple[int, np.ndarray]) -> dict:
                return self._results.timed(detect, frame[1], count)

            pairs = stack.enter_context(closing(spread(find, frames, count)))
            for (number, image), every_score in pairs:
                found = strong(every_score, self.threshold, self._labels)
                self._results.add(name, image.shape[:2], found, number)
                if writing is not None:
                    writing.put(writer, image, found, clock.copies() if clock else 1)
                if screen and not self._look(screen, number, image, every_score, save_to):
                    return False
                bar.advance()
        return True

    def _write(self, writer: Writer, image: np.ndarray, found: dict, copies: int):
        picture = self._paint(image, found)
        for _ in range(copies):
            writer.write(picture)

    def _look(self, screen, number: int, image: np.ndarray, every_score: dict, save_to) -> bool:
        """Shows the frame, longer while paused; False when it is enough."""
        while True:
            found = strong(every_score, self.threshold, self._labels)
            picture = self._paint(image, found)
            key = screen.key(picture, len(found["scores"]))
            if key == "save":
                path = save_to() / f"{inside(screen.name).as_posix()}_{number:06d}.jpg"
                vis.save(path, self._paint(image, found))
            self.threshold = stepped(self.threshold, key)
            if key == "quit":
                return False
            if not screen.paused:
                return True

    def _bar(self, video: Video, name: str) -> Progress:
        """The progress through the video, or the number of frames if nobody knows its end."""
        counts = [-(-video.count // self.every)] if video.count else []
        counts += [self._most] if self._most else []
        return Progress(min(counts, default=None), name)


class _Screen:
    """The window of a video: shows frames no faster than they were taken, unless they are written
    as well, with the frames a second and the number of objects in a corner."""

    def __init__(self, window: Window, video: Video, name: str, every: int, in_time: bool):
        self.name, self.paused, self._window = name, False, window
        self._interval = every / video.fps if in_time and not video.live else 0.0
        self._times: deque[float] = deque(maxlen=RECENT)

    def key(self, picture: np.ndarray, objects: int) -> str:
        """Shows the picture for its time, or for a while if paused; the key that was pressed."""
        if not self.paused:
            self._times.append(time.perf_counter())
        passed = self._times[-1] - self._times[0]
        rate = f"{(len(self._times) - 1) / passed:.1f} frames/s, " if passed else ""
        vis.note(picture, f"{rate}{objects} objects{', paused' if self.paused else ''}")
        self._window.show(picture, self.name)
        key = self._window.key(TICK if self.paused else self._left())
        if key == "space":
            self.paused = not self.paused
            self._times.clear()
            self._times.append(time.perf_counter())
        return key

    def _left(self) -> int:
        """Milliseconds until the next frame is due."""
        if not self._interval:
            return 1
        due = self._times[0] + len(self._times) * self._interval
        return max(round((due - time.perf_counter()) * 1000), 1)
