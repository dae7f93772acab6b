"""Faults of image files that show when they are decoded, and files that are there twice.

Decoders print what they put up with (bytes missing in the middle of a JPEG, for one) to the
process' standard error and go on with grey; so that is caught while they work.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from data.files import DAMAGED, MISSING, SIZE, THREADS
from data.films import Images, frame_of
from data.findings import Finding
from data.records import Records
from utils.errors import UserError
from utils.log import Progress

CORES = min(os.cpu_count() or 1, THREADS)
BLOCK = 64  # images that are decoded between two looks at what the decoders printed
HARMLESS = ("extraneous bytes", "warning")  # in what they print: nothing of the picture is lost
ERROR_STREAM = 2  # file descriptor

BROKEN = "images are damaged inside"
IMPURE = "images decode with a complaint"
DOUBLE = "images are the same file as another of their part"
LEAKED = "images of one part are in another part too"


def image_findings(parts: dict[str, Records]) -> Iterator[Finding]:
    """What is wrong with each image of {split: Records}, in order; each is decoded."""
    places = [(split, index) for split, records in parts.items() for index in range(len(records))]
    images = Images()
    with ThreadPoolExecutor(CORES) as pool, Progress(len(places), "checking images") as bar:
        for first in range(0, len(places), BLOCK):
            block = places[first : first + BLOCK]
            paths = [parts[split].path(index) for split, index in block]
            looked = _look(paths, images, pool)
            for (split, index), path, seen in zip(block, paths, looked, strict=True):
                fault = _judge(path, parts[split].sizes[index].tolist(), *seen)
                if fault:
                    level, kind, detail = fault
                    file = parts[split].files[index]
                    yield Finding(level, kind, split, file, detail, image=path)
            bar.advance(len(block))


def double_findings(parts: dict[str, Records]) -> Iterator[Finding]:
    """Images whose files are equal byte by byte; only files of equal length are read."""
    by_length: dict[int, list] = {}
    for split, records in parts.items():
        for index in range(len(records)):
            path = records.path(index)
            if path.is_file():
                by_length.setdefault(path.stat().st_size, []).append((split, index))
    candidates = [place for places in by_length.values() if len(places) > 1 for place in places]
    with ThreadPoolExecutor(CORES) as pool:
        digests = pool.map(lambda place: _digest(parts[place[0]].path(place[1])), candidates)
        first: dict[bytes, tuple] = {}
        for (split, index), digest in zip(candidates, digests, strict=True):
            if digest is None:
                continue
            before, other = first.setdefault(digest, (split, index))
            if (before, other) == (split, index):
                continue
            kind = DOUBLE if before == split else LEAKED
            path, same = parts[split].path(index), f"as {before} {parts[before].files[other]}"
            yield Finding("warning", kind, split, parts[split].files[index], same, image=path)


def _look(paths, images, pool):
    """[(size_hw or None, error, complaint)] of the images, in order."""
    decode = partial(_decode, images)
    films = any(map(frame_of, paths))  # whose frames are decoded one after the other
    with printed() as lines:
        looked = list((map if films else pool.map)(decode, paths))
    if not lines:
        return [(*seen, "") for seen in looked]
    # Somebody complained; who, is found out one by one.
    result = []
    for path in paths:
        with printed() as lines:
            seen = decode(path)
        result.append((*seen, lines[0] if lines else ""))
    return result


def _decode(images, path):
    try:
        return images.read(path).shape[:2], ""
    except UserError as error:
        return None, str(error)


def _judge(path: Path, noted, size_hw, error, complaint):
    """(level, kind, detail) of an image's fault, or None."""
    if error:
        film, _ = frame_of(path) or (path, 0)
        kind = DAMAGED if film.is_file() else MISSING
        return "error", kind, error.removeprefix(f"{path}: ")
    if list(size_hw) != noted:
        (height, width), (noted_height, noted_width) = size_hw, noted
        return "error", SIZE, f"{width}x{height}, noted as {noted_width}x{noted_height}"
    if complaint:
        harmless = any(word in complaint.lower() for word in HARMLESS)
        return ("warning", IMPURE, complaint) if harmless else ("error", BROKEN, complaint)
    return None


def _digest(path):
    """A hash of a file's content; None if it cannot be read."""
    try:
        return hashlib.blake2b(np.fromfile(path, np.uint8)).digest()
    except OSError:
        return None


@contextmanager
def printed():
    """A list that holds, once the block is over, what was printed to standard error, by line."""
    lines = []
    with tempfile.TemporaryFile() as caught:
        before = os.dup(ERROR_STREAM)
        os.dup2(caught.fileno(), ERROR_STREAM)
        try:
            yield lines
        finally:
            os.dup2(before, ERROR_STREAM)
            os.close(before)
            caught.seek(0)
            text = caught.read().decode("utf-8", "replace")
            lines += [line for line in map(str.strip, text.splitlines()) if line]
