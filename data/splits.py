"""The parts of a set: how their folders and files are called, and which stands in for which."""

import shlex
from pathlib import Path

from utils.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "valid", "validation", "val2017"),
    "test": ("test", "testing", "test2017"),
}
STANDS_IN = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}


class NoPart(UserError):
    """The set lacks a part, and what stands in for it; the parts that it has may be sound."""


def choose(found, split: str) -> str | None:
    """The part to read: the one asked for, or val and test one for the other."""
    return next((name for name in STANDS_IN[split] if name in found), None)


def stand_in(split: str, used: str) -> list[str]:
    """The note that tells that another part was read; none if it is the one asked for."""
    return [] if used == split else [f"these are the {used} images, in place of {split}"]


def no_split(kind: str, root: Path, split: str, found) -> NoPart:
    """The error for a set without the split asked for: how to make one."""
    there = f"{kind}: {root.absolute()} has no {split} part, only {' and '.join(found)}"
    if split == "train":
        return NoPart(f"{there}; see docs/data.md for the names of the folders")
    source, out = shlex.quote(str(root)), shlex.quote(f"{root.absolute()}_split")
    return NoPart(
        f"{there}; `python -m data.convert --from {kind} --to coco --root {source} --out {out} "
        "--val_part 0.2` makes a COCO copy of it that has one, of a fifth of the images"
    )
