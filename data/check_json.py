"""Faults of COCO json files that do not survive reading: ids of annotations, licences."""

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data import coco, cocovid, custom
from data.findings import Finding
from data.json_stream import lists
from data.splits import choose
from utils.errors import UserError


def json_files(kind: str, root, splits) -> list[Path]:
    """The json files that a reader of this kind takes for these parts of a set, which it has."""
    if kind in ("coco", "cocovid"):
        find = coco.find_json if kind == "coco" else cocovid.find_json
        return list(dict.fromkeys(find(root, split)[1] for split in splits))
    found = custom.find_jsons(Path(root)) if kind == "custom" else {}
    return list(dict.fromkeys(found[choose(found, split)] for split in splits)) if found else []


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
                    licenses |= _values(items, "license")
                elif key == "licenses":
                    listed |= _values(items, "id")
        except UserError:
            continue
        values, counts = np.unique(np.asarray(ids, np.int64), return_counts=True)
        for value, number in zip(values[counts > 1], counts[counts > 1], strict=True):
            kind = "annotation ids are there more than once"
            yield Finding("warning", kind, "", str(path), f"id {value}, {number} times")
        unlisted = sorted(licenses - listed)
        if unlisted:
            kind = "images refer to licences that are not listed"
            yield Finding("remark", kind, "", str(path), f"licence {', '.join(unlisted[:5])}")


def _values(items, key) -> set[str]:
    """What stands under a key of the items, as texts, for it may be anything."""
    values = (item.get(key) for item in items if isinstance(item, dict))
    return {str(value) for value in values if value is not None}
