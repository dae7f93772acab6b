"""Whether the image files of a set are there, whole, and of the size that its labels say."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

from data.builder import UNREADABLE
from data.faults import Faults, name_some
from data.films import Images, frame_of
from data.records import Records
from utils.errors import UserError
from utils.image import probe_image

THREADS = 8
BLOCK = 256  # files a thread looks at before it takes the next ones
MISSING, DAMAGED = "image files are missing", "image files are empty, cut off or no images"
SIZE = "images are of another size than their labels say"  # so their boxes lie elsewhere
NOTHING = (0, 0, 0, 0)  # bytes, time of change, h, w of a file that was not looked at


def check_files(records: Records, cache_folder=None, faults: Faults | None = None):
    """Raises UserError unless each image is there, whole by its end marker, and of the noted size.

    With `faults` each fault is told there instead. What was found is kept by path, size and time
    of change in `cache_folder` (the user's cache folder by default), so that the next run looks at
    changed files only.
    """
    root = records.root.resolve()
    store = _store_of(root, cache_folder)
    before = _load(store)
    keys = np.array([_key(file) for file in records.files], np.int64)
    known = _rows_of(keys, before)
    films = _Films()

    def look(index):
        path = root / records.files[index]
        frame = frame_of(path)
        return _check(path, known[index]) if frame is None else films.check(*frame)

    found, bad = known, []
    for index, result in enumerate(in_threads(look, len(records))):
        file = records.files[index]
        if isinstance(result, tuple):
            bad.append((file, *result))
            result = NOTHING
        elif (result[2:] != records.sizes[index]).any():
            bad.append((file, SIZE, _size_sentence(root / file, result[2:], records.sizes[index])))
        found[index] = result
    others = before[~np.isin(before[:, 0], keys)]
    found = np.column_stack((keys, found))[found[:, 0] > 0]
    _keep(store, np.unique(np.concatenate((others, found)), axis=0))
    if faults is not None:
        for file, kind, sentence in bad:
            faults.error(kind, file, sentence)
    elif bad:
        sentences = name_some([sentence for *_, sentence in bad])
        raise UserError(f"{len(bad)} of {len(records)} images are faulty: {sentences}")


def _check(path, known):
    """[bytes, time of change, h, w] of a whole image, or (kind, sentence) of its fault."""
    try:
        status = path.stat()
        if known[0] == status.st_size and known[1] == status.st_mtime_ns:
            return known
        return np.array((status.st_size, status.st_mtime_ns, *probe_image(path)), np.int64)
    except OSError:
        return MISSING, f"{path}: the image is missing"
    except UserError as error:
        return DAMAGED, str(error)


class _Films:
    """Whether frames of films are there, as far as the films announce; each is opened once."""

    def __init__(self):
        self._images, self._lock = Images(), Lock()
        self._known: dict[Path, tuple] = {}  # (frames, what `_check` would say of the first one)

    def check(self, film, number):
        """As `_check` of a frame."""
        with self._lock:
            if film not in self._known:
                self._known[film] = self._look(film)
            count, found = self._known[film]
        if isinstance(found, tuple) or number < count:
            return found
        return MISSING, f"{film}: frame {number} is missing, the film has {count}"

    def _look(self, film):
        try:
            opened, status = self._images.film(film), film.stat()
            size_hw = opened.read(0).shape[:2]
            return opened.count, np.array((status.st_size, status.st_mtime_ns, *size_hw), np.int64)
        except UserError as error:
            return 0, (DAMAGED if film.is_file() else MISSING, str(error))


def _size_sentence(path, found, noted):
    sentence = f"{path}: {found.tolist()} (h, w) in the file, {noted.tolist()} in the labels"
    if found.tolist() == noted.tolist()[::-1]:
        sentence += " (swapped, as by labels that do not know of the EXIF orientation)"
    return sentence


def in_threads(function: Callable, count: int) -> Iterator:
    """function(0), ..., function(count - 1) in order."""

    def block(first):
        return [function(index) for index in range(first, min(first + BLOCK, count))]

    with ThreadPoolExecutor(THREADS) as pool:
        for results in pool.map(block, range(0, count, BLOCK)):
            yield from results


def sizes_of(folder: Path, names, faults: Faults) -> list[tuple[int, int] | None]:
    """(h, w) of each image; None for one that cannot be read, while faults are collected."""
    results = list(in_threads(lambda index: _size(folder / names[index]), len(names)))
    for name, result in zip(names, results, strict=True):
        if isinstance(result, UserError):
            faults.error(UNREADABLE, folder / name, str(result))
    return [None if isinstance(result, UserError) else result for result in results]


def _size(path):
    """(h, w), or the UserError that tells why there is none."""
    try:
        return probe_image(path)
    except UserError as error:
        return error


def _rows_of(keys, before):
    """What is known of each key, int64 [I, 4]; NOTHING where it is not known."""
    rows = np.tile(np.array(NOTHING, np.int64), (len(keys), 1))
    if len(before):  # sorted by key
        places = np.searchsorted(before[:, 0], keys).clip(max=len(before) - 1)
        there = before[places, 0] == keys
        rows[there] = before[places[there], 1:]
    return rows


def _key(file):
    """A file's number in the store: the same in every process, as hash() is not."""
    digest = hashlib.blake2b(file.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _store_of(root, cache_folder):
    """Where the findings on the files below a folder are kept."""
    if cache_folder is None:
        cache_folder = _user_cache() / "detection-data"
    name = hashlib.sha256(str(root).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Path(cache_folder) / f"{name}.npy"


def _user_cache():
    """The user's cache folder; that of temporary files for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named) if named else Path.home() / ".cache"
    except RuntimeError:
        return Path(tempfile.gettempdir())


def _load(store):
    """What an earlier check found, int64 [K, 5]: key, bytes, time of change, h, w; sorted."""
    try:
        found = np.load(store, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        found = None
    if found is None or found.dtype != np.int64 or found.ndim != 2 or found.shape[1] != 5:
        return np.zeros((0, 5), np.int64)
    return found


def _keep(store, found):
    """Writes a check's findings; a folder that cannot be written only costs the next run time."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        part = store.with_suffix(f".{os.getpid()}")
        with open(part, "wb") as stream:
            np.save(stream, found)
        part.replace(store)
    except OSError:
        pass
