"""Faults of COCO json files that do not survive reading: ids of annotations, licences."""

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.findings import Finding
from data.json_stream import lists
from utils.errors import UserError

TREES = (
    "annotations/instances_*.json",
    "annotations/train.json",
    "annotations/val.json",
    "annotations/test.json",
    "*/_annotations.coco.json",
)


def json_files(root) -> list[Path]:
    """The annotation files of a COCO set in one of its usual trees."""
    bases = (Path(root), Path(root) / "coco", Path(root) / "COCO")
    return [path for base in bases for tree in TREES for path in sorted(base.glob(tree))]


def json_findings(paths: list[Path]) -> Iterator[Finding]:
    """What is odd about each file; one that cannot be read was told by its reader."""
    for path in paths:
        ids, licenses, listed = array("q"), set(), set()
        try:
            for key, items in lists(path):
                if key == "annotations":
                    numbers = (item.get("id") for item in items if isinstance(item, dict))
                    ids.extend(n for n in numbers if type(n) is int and abs(n) < 2**63)
                elif key == "images":
                    licenses |= {item.get("license") for item in items if isinstance(item, dict)}
                elif key == "licenses":
                    listed |= {item.get("id") for item in items if isinstance(item, dict)}
        except UserError:
            continue
        values, counts = np.unique(np.asarray(ids, np.int64), return_counts=True)
        for value, number in zip(values[counts > 1], counts[counts > 1], strict=True):
            kind = "annotation ids are there more than once"
            yield Finding("warning", kind, "", str(path), f"id {value}, {number} times")
        unlisted = sorted(map(str, licenses - listed - {None}))
        if unlisted:
            kind = "images refer to licences that are not listed"
            yield Finding("remark", kind, "", str(path), f"licence {', '.join(unlisted[:5])}")
