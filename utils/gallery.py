"""Stills, one after the other: detected in, drawn on, written, and shown to leaf through."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from utils import vis
from utils.ahead import Ahead, Behind, spread
from utils.errors import UserError
from utils.image import read_image
from utils.log import progress
from utils.results import Results, keep_source, strong, written_name
from utils.window import Window, stepped

KEYS = "keys: space or right next, left back, + - threshold, s save, q end"
DEPTH = 2  # images read ahead, and left to be drawn behind: photographs take much memory


class Gallery:
    """The pictures of one call: `detect(image)` finds (in `at_a_time` pictures at once, unless they
    are shown), `paint(index, image, found)` draws, what is found goes to `results`. Files that
    cannot be read are skipped and noted there. `read(path)` reads them; `begin(index)` is told of
    each picture before it is detected in, which happens in their order and once."""

    def __init__(
        self,
        names: Sequence[str],
        path_of: Callable[[int], Path],
        detect: Callable[[np.ndarray], dict],
        paint: Callable[[int, np.ndarray, dict], np.ndarray],
        results: Results,
        *,
        threshold: float,
        labels: Sequence[int] | None = None,
        at_a_time: int = 1,
        read: Callable[[Path], np.ndarray] = read_image,
        begin: Callable[[int], None] = lambda index: None,
    ):
        self.names, self._path_of, self._at_a_time = names, path_of, at_a_time
        self._detect, self._paint, self._results = detect, paint, results
        self.threshold, self._labels, self._reader = threshold, labels, read
        self._begin = begin

    def write(self, save_to: Callable[[], Path]):
        """Draws all of them into the folder `save_to()`, under their own names."""
        with (
            Ahead(self._read_all(), DEPTH) as ready,
            Behind(self._save, DEPTH) as saving,
            closing(spread(self._found_in, ready, self._at_a_time)) as pairs,
        ):
            for (index, image), found in progress(pairs, "drawing", len(self.names)):
                if isinstance(image, UserError):
                    self._results.skip(str(image))
                    continue
                found = strong(found, self.threshold, self._labels)
                self._results.add(self.names[index], image.shape[:2], found)
                saving.put(save_to(), index, image, found)

    def show(self, window: Window, save_to: Callable[[], Path], write: bool = False) -> bool:
        """Leafs through them in a window, to the end or until q is pressed (False). `write` writes
        those that were seen to `save_to()`, the key s the one that is seen now."""
        seen: dict[int, dict] = {}
        index, step = 0, 1
        while 0 <= index < len(self.names):
            name = self.names[index]
            image = self._read(index)
            if isinstance(image, UserError):
                if index not in seen:
                    self._results.skip(str(image))
                    seen[index] = {}
                index += step
                if index < 0:  # nothing before it can be read
                    index, step = 0, 1
                continue
            if index not in seen:
                self._begin(index)
                seen[index] = self._results.timed(self._detect, image)
                found = strong(seen[index], self.threshold, self._labels)
                self._results.add(name, image.shape[:2], found)
                if write:
                    self._save(save_to(), index, image, found)
            key = self._look(window, index, image, seen[index], save_to)
            if key == "quit":
                return False
            step = -1 if key == "left" else 1
            index = max(index + step, 0)
        return True

    def _look(self, window: Window, index: int, image: np.ndarray, found: dict, save_to) -> str:
        """Shows a picture until a key leaves it: right, left or quit."""
        while True:
            shown = strong(found, self.threshold, self._labels)
            place = f"{index + 1} of {len(self.names)}, score {self.threshold:.2f}"
            window.show(self._paint(index, image, shown), f"{self.names[index]} ({place})")
            key = window.wait()
            if key == "save":
                self._save(save_to(), index, image, shown)
            self.threshold = stepped(self.threshold, key)
            if key in ("quit", "left", "right", "space"):
                return "right" if key == "space" else key

    def _found_in(self, ready: tuple[int, np.ndarray | UserError]) -> dict:
        index, image = ready
        if isinstance(image, UserError):
            return {}
        self._begin(index)
        return self._results.timed(self._detect, image, self._at_a_time)

    def _read_all(self) -> Generator:
        for index in range(len(self.names)):
            yield index, self._read(index)

    def _read(self, index: int) -> np.ndarray | UserError:
        try:
            return self._reader(self._path_of(index))
        except UserError as error:
            return error

    def _save(self, folder: Path, index: int, image: np.ndarray, found: dict):
        target = folder / written_name(self.names[index])
        keep_source(target, self._path_of(index))
        vis.save(target, self._paint(index, image, found))
