"""What was found on pictures: counts for the last lines, and the text and json files."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from utils import vis
from utils.errors import UserError, cannot_write

NAMES_SHOWN = 5  # files and classes named in the last lines


def strong(found: dict, threshold: float, labels: Iterable[int] | None = None) -> dict:
    """The detections of at least this score, and of these classes if some are named."""
    keep = found["scores"] >= threshold
    if labels is not None:
        keep &= np.isin(found["labels"], list(labels))
    return {key: value[keep] for key, value in found.items()}


def inside(name: str) -> Path:
    """The name of a picture as a path below some folder, never outside it."""
    path = Path(name)
    return Path(*(part for part in path.parts if part not in ("..", path.anchor)))


def written_name(name: str) -> Path:
    """Where in a folder the drawn picture goes: under its own name."""
    path = inside(name)
    # What OpenCV cannot write becomes a JPEG; the whole name stays, so that no two meet.
    known = path.suffix.lower() in vis.WRITTEN
    return path if known else path.with_name(f"{path.name}.jpg")


def keep_source(target: Path, source: Path):
    """A UserError if writing the target would replace what is read."""
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{source} is read, and would be overwritten; choose another --save")


class Results:
    """Counts what is found and writes it down: `txt` to labels/NAME.txt, `as_json` to
    detections.json, both in `folder()`, which is asked for when there is something to write."""

    def __init__(
        self,
        classes: Sequence[str],
        folder: Callable[[], Path] | None = None,
        txt: bool = False,
        as_json: bool = False,
    ):
        self.classes, self._folder = classes, folder
        self.pictures, self.seconds, self.skipped = 0, 0.0, []
        self.counts: Counter = Counter()
        self._lock = threading.Lock()
        self._txt = txt
        self._stems: dict[str, str] = {}  # of text files -> the name that has it
        self._json = _Array(lambda: folder() / "detections.json") if as_json else None
        self._start = time.perf_counter()

    def timed(self, detect: Callable, image: np.ndarray, at_a_time: int = 1) -> dict:
        """What `detect` finds, as arrays; the time it takes is shared by those `at_a_time`."""
        start = time.perf_counter()
        found = {key: value.cpu().numpy() for key, value in detect(image).items()}
        with self._lock:
            self.seconds += (time.perf_counter() - start) / at_a_time
        return found

    def add(self, name: str, size_hw: tuple[int, int], found: dict, frame: int | None = None):
        """Takes the detections of a picture; `frame` is its number in a video."""
        self.pictures += 1
        self.counts.update(found["labels"].tolist())
        if self._txt:
            path = self._folder() / "labels" / self._text_name(name, frame)
            _write(path, _yolo_lines(size_hw, found))
        if self._json:
            self._json.append(
                {
                    "file": name,
                    **({} if frame is None else {"frame": frame}),
                    "width": size_hw[1],
                    "height": size_hw[0],
                    "objects": [
                        {
                            "class": self.classes[label],
                            "label": label,
                            "score": round(score, 5),
                            "box": [round(value, 2) for value in box],
                        }
                        for box, score, label in zip(
                            found["boxes"].tolist(),
                            found["scores"].tolist(),
                            found["labels"].tolist(),
                            strict=True,
                        )
                    ],
                }
            )

    def _text_name(self, name: str, frame: int | None) -> str:
        """dog.txt for dog.jpg, dog.png.txt for a dog.png after it, cat_000012.txt for a frame."""
        path = inside(name)
        stem = path.with_suffix("").as_posix()
        if self._stems.setdefault(stem, name) != name:
            stem = path.as_posix()
            self._stems.setdefault(stem, name)
        return f"{stem}.txt" if frame is None else f"{stem}_{frame:06d}.txt"

    def skip(self, sentence: str):
        """Notes a file that could not be read."""
        self.skipped.append(sentence)

    def summary(self, rates: bool = True) -> str:
        """Pictures, objects by class, pictures a second, and what was skipped."""
        total = sum(self.counts.values())
        named = self.counts.most_common(NAMES_SHOWN)
        parts = [f"{self.classes[label]} {count}" for label, count in named]
        if len(self.counts) > len(named):
            parts.append(f"{len(self.counts) - len(named)} more classes")
        text = f"{self.pictures} images, {total} objects"
        lines = [f"{text}: {', '.join(parts)}" if parts else text]
        if rates and self.pictures and self.seconds:
            whole = self.pictures / (time.perf_counter() - self._start)
            model = self.pictures / self.seconds
            lines.append(
                f"{whole:.1f} images/s with reading, drawing, writing; the model alone {model:.1f}"
            )
        if self.skipped:
            more = len(self.skipped) - NAMES_SHOWN
            lines.append(f"skipped {len(self.skipped)} that cannot be read:")
            lines += [f"  {sentence}" for sentence in self.skipped[:NAMES_SHOWN]]
            lines += [f"  and {more} more"] if more > 0 else []
        return "\n".join(lines)

    def close(self):
        if self._json:
            self._json.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Array:
    """A json array written item by item, so that hours of video need no memory."""

    def __init__(self, path_of: Callable[[], Path]):
        self._path_of, self._path, self._file = path_of, None, None

    def append(self, item: dict):
        start = ",\n"
        try:
            if self._file is None:
                self._path = self._path_of()
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "w", encoding="utf-8")
                start = "[\n"
            self._file.write(start + json.dumps(item))
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self):
        if self._file is None:
            return
        try:
            with self._file:
                self._file.write("\n]\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error


def _yolo_lines(size_hw: tuple[int, int], found: dict) -> str:
    """A line for each object: class number, centre and size as fractions of the image, score."""
    height, width = size_hw
    lines = []
    for (x1, y1, x2, y2), score, label in zip(
        found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
    ):
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{label} {' '.join(f'{v:.6f}' for v in box)} {score:.5f}\n")
    return "".join(lines)


def _write(path: Path, text: str):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
