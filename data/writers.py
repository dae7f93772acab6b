"""Writers of COCO, VOC and YOLO folders: the reverse of the readers, which read what these write.

    coco  OUT/annotations/instances_{split}.json, OUT/{split}/*.jpg
    voc   OUT/VOCdevkit/VOC2007/{Annotations,JPEGImages,ImageSets/Main}, OUT/classes.txt
    yolo  OUT/images/{split}/*.jpg, OUT/labels/{split}/*.txt, OUT/classes.txt

A writer is a function `(parts, out, place) -> {split: (boxes written, notes)}`: parts is {split:
Records}, place copies an image, the notes tell what the format cannot say.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from data.faults import name_some
from data.pairs import CLASS_LIST
from data.records import Records
from utils.errors import UserError
from utils.image import is_image

# Not kept in names, for they break lists or xml.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
DIGITS = range(7)  # decimals that are tried before a number is written in full
RENAMED = "images were renamed, so that all names differ"


def write_coco(parts: dict[str, Records], out: Path, place) -> dict[str, tuple]:
    """Image ids stay, categories are numbered from 1 in the order of the classes."""
    written = {}
    (out / "annotations").mkdir()
    for split, records in parts.items():
        names = names_for(records.files)
        for index, name in enumerate(names):
            place(records.path(index), out / split / name)
        path = out / "annotations" / f"instances_{split}.json"
        with open(path, "w", encoding="utf-8", newline="\n") as stream:
            stream.write('{"images": ')
            write_list(stream, _coco_images(records, names))
            stream.write(',\n"annotations": ')
            write_list(stream, coco_annotations(records))
            categories = [{"id": n, "name": name} for n, name in enumerate(records.classes, 1)]
            stream.write(f',\n"categories": {json.dumps(categories)}}}\n')
        notes = notes_of(
            (_renamed(records, names), RENAMED),
            (records.difficult, 'difficult objects are marked "difficult": 1 and "ignore": 1'),
        )
        written[split] = len(records.boxes), notes
    return written


def write_voc(parts: dict[str, Records], out: Path, place) -> dict[str, tuple]:
    """Whole pixels counted from 1; `_voc_list` says which list a part becomes."""
    classes = class_list(parts)
    year = out / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    written, taken = {}, {}
    for split, records in parts.items():
        names = names_for(records.files, taken, flat=True)
        corners, rounded, cut = _voc_corners(records)
        for index, name in enumerate(names):
            place(records.path(index), year / "JPEGImages" / name)
            xml = year / "Annotations" / f"{Path(name).stem}.xml"
            xml.write_text(_voc_xml(records, index, name, corners), encoding="utf-8")
        stems = "".join(f"{Path(name).stem}\n" for name in names)
        (year / "ImageSets" / "Main" / _voc_list(split, parts)).write_text(stems, encoding="utf-8")
        notes = notes_of(
            (_renamed(records, names), RENAMED),
            (rounded, "boxes were rounded to whole pixels"),
            (cut, "boxes that end at the right or lower edge were cut by a pixel, as VOC has it"),
            (records.crowd, "crowds became difficult objects"),
        )
        written[split] = len(records.boxes), [f"listed in {_voc_list(split, parts)}", *notes]
    (out / CLASS_LIST).write_text(classes, encoding="utf-8")
    return written


def write_yolo(parts: dict[str, Records], out: Path, place) -> dict[str, tuple]:
    """A line an object: class, centre and size in parts of the image's; crowds are left out."""
    classes, written = class_list(parts), {}
    for split, records in parts.items():
        names = names_for(records.files)
        rows = yolo_rows(records)
        labels, crowd, starts = records.labels.tolist(), records.crowd, records.starts.tolist()
        for index, name in enumerate(names):
            place(records.path(index), out / "images" / split / name)
            lines = [
                yolo_line(labels[row], rows[row])
                for row in range(starts[index], starts[index + 1])
                if not crowd[row]
            ]
            text = (out / "labels" / split / name).with_suffix(".txt")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("".join(lines), encoding="utf-8")
        notes = notes_of(
            (_renamed(records, names), RENAMED),
            (records.crowd, "crowds were left out, for YOLO files cannot mark them"),
            (records.difficult & ~records.crowd, "difficult objects became ordinary ones"),
        )
        written[split] = int((~records.crowd).sum()), notes
    (out / CLASS_LIST).write_text(classes, encoding="utf-8")
    return written


def yolo_rows(records: Records) -> list[list[float]]:
    """Centre and size of each box in parts of its image's."""
    sizes = records.sizes[owners_of(records)][:, ::-1].astype(np.float64)  # [N, 2] (w, h)
    ends = records.boxes.astype(np.float64)
    centres, spans = (ends[:, :2] + ends[:, 2:]) / 2 / sizes, (ends[:, 2:] - ends[:, :2]) / sizes
    return np.concatenate([centres, spans], axis=1).tolist()


def yolo_line(number: int, row: list[float]) -> str:
    return f"{number} " + " ".join(f"{value:.8f}" for value in row) + "\n"


def names_for(files, taken: dict | None = None, flat: bool = False) -> list[str]:
    """A name for each file, without the folders that all files share, and no stem twice.

    `taken` holds the stems in use, to go on with; `flat` joins folders and name into one name.
    Every name ends as images' names do: readers of folders pass over others, and hidden ones.
    """
    taken = {} if taken is None else taken  # {stem: the number that was put behind it last}
    split = [safe_parts(file) for file in files]
    shared = len(os.path.commonprefix([parts[:-1] for parts in split]))
    names = []
    for parts in split:
        name = ("_" if flat else "/").join(parts[shared:])
        stem, dot, suffix = (name if is_image(name) else f"{name}.jpg").rpartition(".")
        unique = stem = stem.strip()
        key = stem.casefold()  # some file systems do not tell a.jpg from A.jpg
        number = taken.get(key, 1)
        while unique.casefold() in taken:
            number += 1
            unique = f"{stem}_{number}"
        taken[key] = number
        taken.setdefault(unique.casefold(), 1)
        names.append(unique + dot + suffix)
    return names


def safe_parts(file: str) -> list[str]:
    """The folders and the name of a file, none of them hidden or leading out of its folder."""
    parts = [part.strip() for part in UNSAFE.sub("_", file).split("/")]
    parts = [part for part in parts if part not in ("", ".", "..")]
    return [f"_{part}" if part.startswith(".") else part for part in parts] or ["_"]


def _renamed(records: Records, names: list[str]) -> np.ndarray:
    """bool [I]: whether the new name, apart from folders, is another than the old one."""
    pairs = zip(records.files, names, strict=True)
    return np.array([old.rpartition("/")[2] != new.rpartition("/")[2] for old, new in pairs], bool)


def notes_of(*pairs) -> list[str]:
    """A note for each (mask, sentence) that is true of any image or box."""
    return [f"{int(mask.sum())} {sentence}" for mask, sentence in pairs if mask.any()]


def owners_of(records: Records) -> np.ndarray:
    """int64 [N]: the image of each box."""
    return np.repeat(np.arange(len(records)), np.diff(records.starts))


def write_list(stream, items):
    """A json list, one item a line, without holding it in memory."""
    stream.write("[")
    for number, item in enumerate(items):
        stream.write((",\n" if number else "\n") + json.dumps(item))
    stream.write("]")


def _coco_images(records: Records, names: list[str]):
    rows = zip(records.image_ids.tolist(), names, records.sizes.tolist(), strict=True)
    for image_id, name, (height, width) in rows:
        yield {"id": image_id, "file_name": name, "height": height, "width": width}


def coco_annotations(records: Records):
    rows = zip(
        records.image_ids[owners_of(records)].tolist(),
        records.labels.tolist(),
        _xywh(records.boxes).tolist(),
        records.areas.tolist(),
        records.crowd.tolist(),
        records.difficult.tolist(),
        strict=True,
    )
    for number, (image_id, label, bbox, area, crowd, difficult) in enumerate(rows, start=1):
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [_plain(value) for value in bbox],
            "area": _plain(area),
            "iscrowd": int(crowd),
            "segmentation": [],
            **({"difficult": 1, "ignore": 1} if difficult else {}),
        }


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """float64 [N, 4] in as few decimals as give the same float32 corners when read."""
    near, far = _shortest(boxes[:, :2]), boxes[:, 2:]
    full = far.astype(np.float64) - near
    spans = full.copy()
    for digits in reversed(DIGITS):
        rounded = np.round(full, digits)
        spans = np.where((near + rounded).astype(np.float32) == far, rounded, spans)
    return np.concatenate([near, spans], axis=1)


def _shortest(values: np.ndarray) -> np.ndarray:
    """float32 as float64 of the fewest digits that name it: 0.1, not 0.10000000149."""
    return values.astype(str).astype(np.float64)


def _plain(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _voc_list(split: str, parts: dict[str, Records]) -> str:
    """The list of a part: the reader trains on trainval and evaluates on test, both as val and as
    test; but without a trainval it takes each list as the part of its name."""
    if "val" in parts and "test" in parts:
        return f"{split}.txt"
    return "trainval.txt" if split == "train" else "test.txt"


def _voc_corners(records: Records):
    """(int [N, 4] counted from 1, rounded [N], cut [N]) of the boxes.

    A reader takes 1 from all four, so that a box up to the edge would end one pixel outside.
    """
    boxes = records.boxes.astype(np.float64)
    whole = np.floor(boxes + 0.5)
    limits = records.sizes[owners_of(records)][:, ::-1] - 1  # [N, 2] last pixel (x, y)
    far = np.maximum(np.minimum(np.maximum(whole[:, 2:], whole[:, :2] + 1), limits), 1)
    near = np.minimum(whole[:, :2], far - 1)
    cut = (whole[:, 2:] > limits).any(axis=1)
    corners = np.concatenate([near, far], axis=1).astype(int) + 1
    return corners, (whole != boxes).any(axis=1), cut


def _voc_xml(records: Records, index: int, name: str, corners: np.ndarray) -> str:
    height, width = records.sizes[index].tolist()
    lines = [
        "<annotation>",
        "  <folder>JPEGImages</folder>",
        f"  <filename>{escape(name)}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for row in range(records.starts[index], records.starts[index + 1]):
        ends = zip(("xmin", "ymin", "xmax", "ymax"), corners[row].tolist(), strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in ends)
        lines += [
            "  <object>",
            f"    <name>{escape(records.classes[records.labels[row]])}</name>",
            "    <pose>Unspecified</pose>",
            "    <truncated>0</truncated>",
            f"    <difficult>{int(records.difficult[row] or records.crowd[row])}</difficult>",
            f"    <bndbox>{box}</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>\n"])


def class_list(parts: dict[str, Records]) -> str:
    """The text of classes.txt; a name that would shift the numbers of others is a UserError."""
    names = [name.strip() for name in next(iter(parts.values())).classes]
    counts = Counter(names)
    bad = [name for name in counts if not name or UNSAFE.search(name) or counts[name] > 1]
    if bad:
        raise UserError(
            f"the class names {name_some(map(ascii, bad))} cannot be told apart in {CLASS_LIST}, "
            "one a line: they are empty, equal but for spaces, or hold line breaks or control "
            "characters; rename them in the set, or choose others with --classes FILE"
        )
    return "".join(f"{name}\n" for name in names)
