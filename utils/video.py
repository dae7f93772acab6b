"""Videos, cameras and streams: their frames one after the other, and videos written to files."""

import os
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import cv2
import numpy as np

from utils.errors import DataError, UserError, cannot_write

UNKNOWN_FPS = 25.0  # of a camera or a file that does not say
CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"))  # the second is in every build of OpenCV
SLOWEST, FASTEST = 0.1, 1000.0  # frames/s that are believed


class Video:
    """An open video file, stream ("rtsp://...") or camera (its number).

    `fps`; `count` of frames (None if unknown); `live`: frames come by the clock, whether or not
    they are wanted; `remark` is set when the frames end before they should.
    """

    def __init__(self, source: str | int, open: Callable = cv2.VideoCapture):
        quiet()
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        _check_name(self.name)
        opened = _open_camera if isinstance(source, int) else _open_file
        self._capture = opened(source, open)
        if not self._capture.isOpened():
            self._capture.release()
            raise DataError(_not_opened(source))
        fps, count = (
            self._capture.get(what) for what in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
        )
        self.fps = fps if SLOWEST <= fps <= FASTEST else UNKNOWN_FPS
        self.count = None if isinstance(source, int) or not 0 < count < 1e9 else int(count)
        self.live = isinstance(source, int) or ("://" in source and self.count is None)
        self.remark = ""

    def frames(self, every: int = 1, most: int | None = None) -> Generator:
        """(number, BGR image) of each `every`-th frame, at most `most` of them; numbers count all
        frames. The video is closed at the end; frames of changing size are a DataError."""
        shape, number, given = None, 0, 0
        try:
            while most is None or given < most:
                if number % every:
                    if not self._capture.grab():
                        break
                else:
                    read, image = self._capture.read()
                    if not read:
                        break
                    shape = shape or image.shape
                    if image.shape != shape:
                        raise DataError(_changed(self.name, number, shape, image.shape))
                    yield number, image
                    given += 1
                number += 1
            else:
                return
            if self.live:
                self.remark = f"{self.name} gave no more pictures after {number} frames"
            elif self.count and number < self.count:
                self.remark = (
                    f"{self.name}: only {number} of the {self.count} frames that it announces "
                    "could be read; the rest is missing or damaged"
                )
        finally:
            self._capture.release()


class Writer:
    """A video file, made with its first frame: MPEG-4 in .mp4, else Motion JPEG in .avi.

    `path` comes without an ending; it has one as soon as a frame is written.
    """

    def __init__(self, path: str | Path, fps: float, open: Callable = cv2.VideoWriter):
        quiet()
        self.path, self.fps, self.count = Path(path), fps, 0
        self._open, self._shape, self._writer = open, None, None

    def write(self, image: np.ndarray):
        """Appends a frame; all have the first one's size."""
        if self._writer is None:
            self._start(image.shape)
        if image.shape != self._shape:  # OpenCV would leave it out without a word
            raise ValueError(f"frame of {image.shape} in a video of {self._shape}")
        self._writer.write(image)
        self.count += 1

    def close(self):
        """Ends the file, and looks whether it holds all that was written."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        check = cv2.VideoCapture(str(self.path))
        found = int(check.get(cv2.CAP_PROP_FRAME_COUNT)) if check.isOpened() else 0
        check.release()
        if found != self.count:
            raise UserError(
                f"{self.path}: of {self.count} frames that were written the file holds {found}; "
                "is the disk full? Make room or name another folder"
            )

    def _start(self, shape: tuple):
        base, tried = self.path, []
        for codec, suffix in CODECS:
            self.path = base.with_name(base.name + suffix)
            _check_name(str(self.path))
            _check_writable(self.path)
            # 16 bits hold the denominator of MPEG-4's clock: 29.97002997 would not fit.
            fps = round(self.fps, 3)
            code = cv2.VideoWriter_fourcc(*codec)
            self._writer = self._open(str(self.path), code, fps, (shape[1], shape[0]))
            if self._writer.isOpened():
                self._shape = shape
                return
            self._writer.release()
            self._writer = None
            self.path.unlink(missing_ok=True)
            tried.append(f"{codec} in {suffix}")
        raise UserError(
            f"{base}: this OpenCV can open no video writer for {shape[1]} x {shape[0]} pixels "
            f"(tried {', '.join(tried)}); install opencv-python from the package index"
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.release()


class RealTime:
    """How often each picture of a live video is written, so that the file plays as fast as it was:
    a slow model makes fewer pictures than the file has frames."""

    def __init__(self, fps: float, clock: Callable[[], float] = time.monotonic):
        self.fps, self._clock, self._start, self._written = fps, clock, None, 0

    def copies(self) -> int:
        now = self._clock()
        if self._start is None:
            self._start = now
        due = int((now - self._start) * self.fps) + 1
        # After a long stop the film goes on from there instead of standing still for as long.
        count = min(due - self._written, max(round(self.fps), 1))
        self._written = due
        return count


def quiet():
    """Keeps OpenCV's and FFmpeg's own messages off the screen: the commands say it in theirs."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _check_name(name: str):
    """OpenCV crashes on a file name of bytes that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name!a}: the name is not UTF-8; rename it") from None


def _open_camera(number: int, open: Callable):
    """The camera by the system's usual way; under Windows DirectShow is tried after it."""
    capture = open(number)
    if sys.platform == "win32" and not capture.isOpened():
        capture.release()
        return open(number, cv2.CAP_DSHOW)
    return capture


def _open_file(source: str, open: Callable):
    """The file or stream, decoded with few threads: they compete with the model's for the cores,
    and two of them need nearly twice the processor time of one."""
    threads = max(1, (os.cpu_count() or 1) // 4)
    capture = open(source, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
    if capture.isOpened():
        return capture
    capture.release()
    return open(source)  # what another back end of OpenCV may know


def _not_opened(source: str | int) -> str:
    if isinstance(source, int):
        device = f" and the rights on /dev/video{source}" if sys.platform == "linux" else ""
        return (
            f"camera {source} cannot be opened; check that it is connected, that no other program "
            f"uses it{device}, or try another number, from 0 on"
        )
    if "://" in source:
        return f"{source}: the stream cannot be opened; check the address and the network"
    return (
        f"{source}: not a video that OpenCV can open; it is cut off, damaged, or of another kind "
        "than its name says"
    )


def _changed(name: str, number: int, before: tuple, now: tuple) -> str:
    return (
        f"{name}: frame {number} has {now[1]} x {now[0]} pixels, the frames before it "
        f"{before[1]} x {before[0]}; convert it to one size first"
    )


def _check_writable(path: Path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise cannot_write(path, error) from error
