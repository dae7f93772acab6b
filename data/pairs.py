"""Sets whose images and label files lie in pairs of folders, label files named as the images.

    ROOT/SPLIT/{images,labels}      ROOT/{images,labels}/SPLIT
    ROOT/SPLIT/                     with both kinds of files in one folder
    ROOT/{images,labels}            one pair that is not split: all of it is for training

`labels` stands for the format's own folder name. SPLIT is one of SPLIT_NAMES.
"""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.image import is_image

SPLIT_NAMES = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "valid", "validation", "val2017"),
    "test": ("test", "testing", "test2017"),
}
CLASS_LIST = "classes.txt"  # never a label file
STANDS_IN = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}


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


def choose(found: dict[str, Pair], split: str) -> str | None:
    """The split to read: the one asked for, or val and test one for the other."""
    return next((name for name in STANDS_IN[split] if name in found), None)


def no_split(kind: str, root: Path, split: str, found) -> UserError:
    """The error for a set without the split asked for: how to make one."""
    there = f"{kind}: {root.absolute()} has no {split} part, only {' and '.join(found)}"
    if split == "train":
        return UserError(f"{there}; see docs/data.md for the names of the folders")
    source, out = shlex.quote(str(root)), shlex.quote(f"{root.absolute()}_split")
    return UserError(
        f"{there}; `python -m data.convert --from {kind} --to coco --root {source} --out {out} "
        "--val_part 0.2` makes a COCO copy of it that has one, of a fifth of the images"
    )


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
    """Names of the files below a folder that fit, sorted; hidden ones are left out."""
    for parent, inner, names in os.walk(folder):
        inner.sort()
        inside = Path(parent).relative_to(folder).as_posix()
        start = "" if inside == "." else inside + "/"
        for name in sorted(names):
            if not name.startswith(".") and fits(name):
                yield start + name
