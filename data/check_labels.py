"""What annotations show without opening an image: boxes, classes, names, files left over."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.findings import Finding
from data.records import Records
from utils.image import is_image

HUGE = 0.95  # share of the image from which on a box is remarked upon
SLIM = 20  # ratio of a box's sides, likewise
TINY = 8  # pixels, side of a box after the resize, likewise: a cell of the finest feature map
UNPORTABLE = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f\ud800-\udfff]')  # not allowed everywhere


@dataclass(frozen=True)
class Boxes:
    """A part's boxes beside the image each belongs to; `sides` after the resize to the input."""

    owners: np.ndarray  # int64 [N]
    spans: np.ndarray  # float64 [N, 2] (w, h)
    sides: np.ndarray  # float64 [N] square root of the area, in pixels of the input
    per_image: np.ndarray  # int64 [I]


def measure(records: Records, img_size: int) -> Boxes:
    """Sizes of a part's boxes where images are fitted into a square of img_size."""
    per_image = np.diff(records.starts)
    owners = np.repeat(np.arange(len(records)), per_image)
    spans = (records.boxes[:, 2:] - records.boxes[:, :2]).astype(np.float64)
    ratios = img_size / records.sizes.max(axis=1)  # [I]
    return Boxes(owners, spans, np.sqrt(spans.prod(axis=1)) * ratios[owners], per_image)


def box_findings(split: str, records: Records, boxes: Boxes, img_size: int) -> Iterator[Finding]:
    """Boxes that are there twice, fill the image, are slim or tiny; images without any."""
    place = np.column_stack([boxes.owners, records.boxes])
    same = _repeats(np.column_stack([place, records.labels]))
    yield from _each(split, records, boxes, same, "warning", "boxes are there twice")
    other = _repeats(place) & ~same & ~records.crowd  # which may be of every class
    kind = "boxes are there twice, under two classes"
    yield from _each(split, records, boxes, other, "warning", kind)
    areas = records.sizes.astype(np.float64).prod(axis=1)[boxes.owners]
    huge = boxes.spans.prod(axis=1) >= HUGE * areas
    kind = f"boxes fill {HUGE:.0%} of their image or more"
    yield from _each(split, records, boxes, huge, "remark", kind)
    slim = boxes.spans.max(axis=1, initial=0) > SLIM * boxes.spans.min(axis=1, initial=np.inf)
    kind = f"boxes are more than {SLIM} times as long as wide"
    yield from _each(split, records, boxes, slim, "remark", kind)
    tiny = int((boxes.sides < TINY).sum())
    if tiny:
        kind = f"parts have boxes under {TINY} px (square root of the area) at input {img_size}"
        detail = f"{tiny} of {len(records.boxes)} boxes ({tiny / len(records.boxes):.1%})"
        yield Finding("remark", kind, split, "", detail)
    for index in np.flatnonzero(boxes.per_image == 0):
        yield Finding("remark", "images have no objects", split, records.files[index])


def class_findings(parts: dict[str, Records]) -> Iterator[Finding]:
    """Classes that are not used, not learned, easily mistaken; categories with odd ids."""
    first = next(iter(parts.values()))
    for split, records in parts.items():
        if records.classes != first.classes:
            detail = f"{', '.join(records.classes)}, and not {', '.join(first.classes)}"
            yield Finding("error", "parts differ in their classes", split, "", detail)
        ids = records.category_ids
        if records is first or ids != first.category_ids:
            if sorted(ids) != list(range(1, len(ids) + 1)):
                detail = f"{len(ids)} ids from {min(ids)} to {max(ids)}"
                yield Finding("remark", "category ids are not 1, 2, 3 ...", split, "", detail)
    counts = {split: Counter(records.labels.tolist()) for split, records in parts.items()}
    for label, name in enumerate(first.classes):
        total = sum(count[label] for count in counts.values())
        if not total:
            yield Finding("remark", "classes have no objects", "", name)
        elif "train" in counts and not counts["train"][label]:
            detail = f"{total} in {', '.join(s for s in counts if counts[s][label])}"
            yield Finding("warning", "classes have no objects to learn from", "train", name, detail)
        elif any(not count[label] for count in counts.values()):
            without = ", ".join(split for split in counts if not counts[split][label])
            yield Finding("remark", "classes have no objects in a part", without, name)
    plain = Counter(_plain(name) for name in first.classes)
    for name in first.classes:
        if plain[_plain(name)] > 1 or name != name.strip():
            kind = "class names differ from another in case or spaces only, or end in a space"
            yield Finding("warning", kind, "", repr(name))


def name_findings(split: str, records: Records) -> Iterator[Finding]:
    """File names that other systems or programs stumble over."""
    stems = Counter(file.rpartition(".")[0].casefold() for file in records.files)
    for file in records.files:
        name, (stem, _, _) = Path(file).name, file.rpartition(".")
        odd = {
            "not allowed on every system": UNPORTABLE.search(name),
            "a space at an end": name != name.strip() or Path(name).stem != Path(name).stem.strip(),
            "a space": " " in name.strip(),
            "several dots": "." in Path(name).stem,
            "not plain ASCII": not name.isascii(),
            "differs from another in case or ending only": stems[stem.casefold()] > 1,
        }
        found = [what for what, true in odd.items() if true]
        if found:
            yield Finding("remark", "file names are odd", split, file, ", ".join(found))


def id_findings(parts: dict[str, Records]) -> Iterator[Finding]:
    """Image ids that two parts share, which matters once their annotations are joined."""
    counted = [np.array_equal(r.image_ids, np.arange(1, len(r) + 1)) for r in parts.values()]
    if all(counted):  # as readers number the images of formats without ids
        return
    seen: dict[int, str] = {}
    for split, records in parts.items():
        ids = records.image_ids.tolist()
        shared = [image_id for image_id in ids if image_id in seen]
        if shared:
            detail = f"{len(shared)} of {len(ids)} ids, such as {shared[0]} of {seen[shared[0]]}"
            yield Finding("remark", "parts share image ids", split, "", detail)
        seen.update(dict.fromkeys(ids, split))


def stray_findings(parts: dict[str, Records]) -> Iterator[Finding]:
    """Images that lie beside those of the set, and that no annotation names."""
    paths = [os.path.split(r.root / file) for r in parts.values() for file in r.files]
    real = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in paths}}
    listed = {os.path.join(real[folder], name) for folder, name in paths}  # may be links themselves
    for folder in sorted({os.path.dirname(path) for path in listed}):
        if not os.path.isdir(folder):
            continue
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if is_image(name) and not name.startswith(".") and path not in listed:
                yield Finding("remark", "images are named by no annotation", "", path)


def _each(split, records, boxes, chosen, level, kind) -> Iterator[Finding]:
    """A finding for each box of a mask [N]."""
    for row in np.flatnonzero(chosen):
        index, box = boxes.owners[row], tuple(records.boxes[row].tolist())
        corners = ", ".join(f"{value:g}" for value in box)
        detail = f"{records.classes[records.labels[row]]} ({corners})"
        path = records.path(index)
        yield Finding(level, kind, split, records.files[index], detail, path, box)


def _repeats(rows: np.ndarray) -> np.ndarray:
    """bool [N]: whether an equal row stands before."""
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.ones(len(rows), bool)
    repeated[first] = False
    return repeated


def _plain(name: str) -> str:
    return "".join(name.split()).casefold()
