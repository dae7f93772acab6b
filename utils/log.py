"""What a run says and records: train.log, log.jsonl, timing.jsonl, TensorBoard, progress on screen.

log.jsonl holds what the training computed and nothing of the clock, so that two equal runs write
equal files; seconds, images per second and memory go to timing.jsonl.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError
from utils.files import replace_file

FILES = ("train.log", "log.jsonl", "timing.jsonl")
ELSEWHERE = "another folder with --save_folder"  # where a run finds room instead
BAR_SECONDS = 0.2  # least time between two drawings of a bar
LINE_SECONDS = 60.0  # and between two lines where no bar can be drawn, as in a file


class RunLog:
    """The log files of one run; every process has one, only the main one writes."""

    def __init__(self, folder: str | Path, main: bool = True, tfboard: bool = False):
        self.folder, self.main = Path(folder), main
        self._pace = Pace()
        self._step = -1  # newest one sent to TensorBoard
        self._purge_step = None
        self._writer = None
        self._writer_class = _summary_writer() if tfboard and main else None
        if main:
            with _disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)

    def say(self, text: str):
        """Prints the text and appends it to train.log."""
        if self.main:
            say(text)
            self._append("train.log", text)

    def show(self, text: str):
        """Prints the text, and keeps it out of train.log."""
        if self.main:
            say(text)

    def write(self, name: str, text: str):
        """Writes a file of the run's folder anew, whole or not at all."""
        if self.main:
            content = text.encode("utf-8", "backslashreplace")
            replace_file(self.folder / name, lambda file: file.write(content), ELSEWHERE)

    def record(self, values: dict):
        """Appends a line to log.jsonl: the same numbers in every equal run, no clock, no speed."""
        self._append("log.jsonl", json.dumps(values))

    def last(self, name: str) -> float | None:
        """The newest number of this name in log.jsonl; None if there is none."""
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        found = [record[name] for record in map(json.loads, lines) if name in record]
        return found[-1] if found else None

    def timing(self, values: dict):
        """Appends a line to timing.jsonl: seconds, images per second, waiting for data, memory."""
        self._append("timing.jsonl", json.dumps(values))

    def scalars(self, step: int, values: dict[str, float]):
        """Sends numbers to TensorBoard, if it was asked for."""
        if self._writer_class is None:
            return
        if self._writer is None:
            folder = str(self.folder / "tensorboard")
            self._writer = self._writer_class(folder, purge_step=self._purge_step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._step = max(self._step, step)

    def position(self) -> dict[str, int]:
        """How long each file is now: what a checkpoint keeps, for `cut`."""
        sizes = {name: _size(self.folder / name) for name in FILES}
        return {**sizes, "tensorboard": self._step}

    def cut(self, position: dict[str, int]):
        """Takes back what was written after `position`: a resumed run writes it again."""
        if not self.main:
            return
        with _disk_errors(self.folder):
            for name in FILES:
                path, size = self.folder / name, position.get(name, 0)
                if _size(path) > size:
                    os.truncate(path, size)
        # TensorBoard's files cannot be cut: it hides the events from this step on.
        self._step = position.get("tensorboard", -1)
        self._purge_step = self._step + 1

    def progress(self, total: int, description: str, done: int = 0) -> "Progress":
        return Progress(total, description, done=done, shown=self.main, pace=self._pace)

    def close(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _append(self, name: str, line: str):
        if self.main:
            with _disk_errors(self.folder / name):
                # A file name may hold bytes that are no UTF-8.
                encoding = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
                with open(self.folder / name, "a", **encoding) as file:
                    file.write(line + "\n")


class Pace:
    """A line a minute, over all loops that share it: epochs may be shorter than that."""

    def __init__(self):
        self._said = time.monotonic()

    def due(self, now: float) -> bool:
        if now - self._said <= LINE_SECONDS:
            return False
        self._said = now
        return True


class Progress:
    """How far a loop is: a bar on a terminal; elsewhere, or without tqdm, a line a minute. A
    total of None is one that nobody knows."""

    def __init__(
        self,
        total: int | None,
        description: str,
        done: int = 0,
        shown: bool = True,
        pace: Pace | None = None,
    ):
        self.total, self.description, self.done, self.shown = total, description, done, shown
        self._note = ""
        self._first, self._since = done, time.monotonic()
        self._pace = pace or Pace()
        self._bar = None
        if shown and sys.stdout.isatty():
            self._bar = _bar(total, description, done)

    def note(self, **values):
        """Numbers to show beside the progress from now on."""
        self._note = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        )
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)

    def advance(self, count: int = 1):
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self.shown and self._pace.due(now := time.monotonic()):
            text = f"{self.description}: {self.done}"
            if self.total is not None:
                seconds = now - self._since
                left = seconds / max(self.done - self._first, 1) * (self.total - self.done)
                text += f"/{self.total}, {_clock(left)} left"
            say(f"{text}, {self._note}" if self._note else text)

    def close(self):
        if self._bar is not None:
            self._bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def progress(items: Iterable, description: str, total: int, shown: bool = True) -> Iterator:
    """The items, with the progress through them on screen."""
    with Progress(total, description, shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()


def say(text: str):
    """Prints a line, above the bar if one is drawn."""
    if sys.stdout.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            tqdm.write(text)
            return
    print(text, flush=True)


def _bar(total: int | None, description: str, done: int):
    """tqdm's bar, or None where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        file=sys.stdout,
        leave=False,
        dynamic_ncols=True,
        mininterval=BAR_SECONDS,
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _summary_writer():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tfboard needs TensorBoard: pip install tensorboard") from error
    return SummaryWriter


@contextmanager
def _disk_errors(path: Path):
    """Turns a failed write into the sentence that names the file and the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room on the disk or choose "
            f"{ELSEWHERE}"
        ) from error
