"""Sets whose images and label files lie in pairs of folders, label files named as the images.

    ROOT/SPLIT/{images,labels}      ROOT/{images,labels}/SPLIT
    ROOT/SPLIT/                     with both kinds of files in one folder
    ROOT/{images,labels}            one pair that is not split: all of it is for training

`labels` stands for the format's own folder name. SPLIT is one of SPLIT_NAMES (data/splits.py).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.records import read_classes
from data.splits import SPLIT_NAMES
from utils.image import is_image

CLASS_LIST = "classes.txt"  # never a label file
DOUBLES = "images were left out, named as others but for the ending"  # a kind of fault


@dataclass(frozen=True)
class Kind:
    """A format: its pairs of (images, labels) folder names and its label files' suffix."""

    folders: tuple[tuple[str, str], ...]
    suffix: str


@dataclass(frozen=True)
class Pair:
    images: Path
    labels: Path


def find(root: Path, kind: Kind) -> dict[str, Pair]:
    """The pair of each split that is there and has label files; {} where there is none."""
    found = {}
    for split, names in SPLIT_NAMES.items():
        pairs = (pair for name in names for pair in _named(root, kind, name))
        pair = next((pair for pair in pairs if _is_pair(pair, kind)), None)
        if pair is not None:
            found[split] = pair
    if found:
        return found
    # Not "" and "": everything below the root would be searched.
    flat = [Pair(root / images, root / labels) for images, labels in kind.folders if images]
    whole = [pair for pair in flat if _is_pair(pair, kind)]
    return {"train": whole[0]} if whole else {}


def members(pair: Pair, suffix: str) -> tuple[list[tuple[str, str | None]], list[str], list[str]]:
    """([(image, its label file or None)], label files without image, images of the same name).

    Names are relative to the pair's folders, sorted. Of images that differ in their ending only,
    the first is taken.
    """
    labels = {_stem(name): name for name in label_files(pair, suffix)}
    images, doubles = {}, []
    for name in _walk(pair.images, is_image):
        if images.setdefault(_stem(name), name) != name:
            doubles.append(name)
    strays = [name for stem, name in labels.items() if stem not in images]
    return [(name, labels.get(stem)) for stem, name in images.items()], strays, doubles


def label_files(pair: Pair, suffix: str) -> Iterator[str]:
    """Names of the label files of a pair, sorted, relative to their folder."""
    return _walk(pair.labels, lambda name: name.lower().endswith(suffix) and name != CLASS_LIST)


def own_classes(*folders: Path) -> tuple[str, ...] | None:
    """The names in the first of the folders that holds a class list, or None."""
    for folder in folders:
        if (folder / CLASS_LIST).is_file():
            return read_classes(folder / CLASS_LIST)
    return None


def _named(root, kind, name):
    """Where the pair of a split called `name` may lie."""
    for images, labels in kind.folders:
        yield Pair(root / name / images, root / name / labels)
        yield Pair(root / images / name, root / labels / name)


def _is_pair(pair, kind):
    return pair.images.is_dir() and any(label_files(pair, kind.suffix))


def _stem(name):
    return name.rpartition(".")[0]


def _walk(folder, fits):
    """Names of the files below a folder that fit, sorted; hidden files and folders are left out.

    Links to folders are followed, unless they lead back to a folder that they lie in.
    """
    holders = {os.fspath(folder): {os.path.realpath(folder)}}  # real folders around each folder
    for parent, inner, names in os.walk(folder, followlinks=True):
        around, kept = holders.pop(parent), []
        for name in sorted(inner):
            path = os.path.join(parent, name)
            real = os.path.realpath(path)
            if not name.startswith(".") and real not in around:
                kept.append(name)
                holders[path] = {*around, real}
        inner[:] = kept
        inside = Path(parent).relative_to(folder).as_posix()
        start = "" if inside == "." else inside + "/"
        for name in sorted(names):
            if not name.startswith(".") and fits(name):
                yield start + name
