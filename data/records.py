"""Records: what every reader returns. One table of images, one of boxes, no pixels.

I images, N boxes, C classes.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.image import probe_image

NAMES_SHOWN = 3  # files named in a sentence about several
CLIP_NOTED = 2.0  # pixels a box may reach over the edge unmentioned: annotators round


@dataclass
class Entry:
    """One image as a reader finds it; `size_hw` None is read from the file."""

    file: str
    size_hw: tuple[int, int] | None = None
    image_id: int | None = None
    video: int = -1
    frame: int = 0
    boxes: list = field(default_factory=list)  # (x1, y1, x2, y2), label, crowd, difficult, area

    def add(self, box, label, crowd=False, difficult=False, area=None):
        """Notes an object; area None (or one that is not positive) becomes width times height."""
        self.boxes.append((*box, label, crowd, difficult, area if area and area > 0 else np.nan))


@dataclass(frozen=True)
class Records:
    """An annotated set: per-image columns of length I, per-box columns of length N."""

    root: Path  # file names are relative to it
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # the set's own id of each class
    files: tuple[str, ...]
    image_ids: np.ndarray  # int64 [I] the set's own ids
    sizes: np.ndarray  # int32 [I, 2] (h, w)
    starts: np.ndarray  # int64 [I + 1] boxes of image i are rows starts[i]:starts[i + 1]
    boxes: np.ndarray  # float32 [N, 4] xyxy pixels, 0-based, clipped to the image
    labels: np.ndarray  # int64 [N] in 0..C-1
    crowd: np.ndarray  # bool [N] regions rather than objects
    difficult: np.ndarray  # bool [N] VOC's mark
    areas: np.ndarray  # float32 [N] the set's own area, or width times height
    video: np.ndarray  # int64 [I] index into videos, -1 for a still
    frame: np.ndarray  # int64 [I] number in its video, 0 for a still
    videos: tuple[str, ...]
    notes: tuple[str, ...]  # what the reader dropped or found odd

    def __len__(self):
        return len(self.files)

    def path(self, index):
        """Where image `index` lies."""
        return self.root / self.files[index]

    def boxes_of(self, index):
        """dict(boxes, labels, crowd, difficult) of one image: views, not copies."""
        rows = slice(self.starts[index], self.starts[index + 1])
        return {
            "boxes": self.boxes[rows],
            "labels": self.labels[rows],
            "crowd": self.crowd[rows],
            "difficult": self.difficult[rows],
        }

    def limit(self, count):
        """The first `count` images with their boxes."""
        count = min(count, len(self))
        total = self.starts[count]
        return replace(
            self,
            files=self.files[:count],
            image_ids=self.image_ids[:count],
            sizes=self.sizes[:count],
            starts=self.starts[: count + 1],
            boxes=self.boxes[:total],
            labels=self.labels[:total],
            crowd=self.crowd[:total],
            difficult=self.difficult[:total],
            areas=self.areas[:total],
            video=self.video[:count],
            frame=self.frame[:count],
        )

    def ground_truth(self):
        """The set as a COCO-format dict: crowd is iscrowd 1; difficult has area -1.

        An area of -1 lies outside every size range, so evaluation ignores the object, and
        matches it with one detection, while any number of detections may match a crowd.
        """
        images = [
            {"id": image_id, "file_name": file, "height": height, "width": width}
            for image_id, file, (height, width) in zip(
                self.image_ids.tolist(), self.files, self.sizes.tolist(), strict=True
            )
        ]
        owners = np.repeat(self.image_ids, np.diff(self.starts)).tolist()
        xywh = self.boxes.astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        areas = np.where(self.difficult & ~self.crowd, -1.0, self.areas)
        rows = zip(owners, self.labels, xywh.tolist(), areas.tolist(), self.crowd, strict=True)
        annotations = [
            {
                "id": number,
                "image_id": owner,
                "category_id": self.category_ids[label],
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (owner, label, bbox, area, crowd) in enumerate(rows, start=1)
        ]
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def summary(self):
        """Counts in a line, boxes per class (the ten most frequent), and the notes."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")[:10]
        shown = ", ".join(f"{self.classes[i]} {counts[i]}" for i in order)
        more = f" and {len(counts) - len(order)} more" if len(counts) > len(order) else ""
        empty = int((np.diff(self.starts) == 0).sum())
        line = (
            f"{len(self)} images ({empty} without objects), {len(self.boxes)} boxes, "
            f"{len(self.classes)} classes: {shown}{more}"
        )
        return "\n".join((line, *(f"  note: {note}" for note in self.notes)))


def build(root, classes, entries, *, category_ids=None, videos=(), notes=()):
    """Records from a reader's entries: the one place that cleans boxes, counting what it drops."""
    root = Path(root)
    if not entries:
        raise UserError(f"{root}: the set lists no images")
    sizes = np.array([e.size_hw or probe_image(root / e.file) for e in entries], np.int32)
    counts = np.array([len(e.boxes) for e in entries], np.int64)
    rows = [row for entry in entries for row in entry.boxes]
    table = np.array(rows, np.float64).reshape(-1, 8)
    owners = np.repeat(np.arange(len(entries)), counts)
    boxes, keep, faults = _clean(table[:, :4], sizes[owners])
    files = tuple(entry.file for entry in entries)
    for fault, found in faults:
        if found.any():
            names = [files[i] for i in dict.fromkeys(owners[found].tolist())]
            notes = (*notes, f"{int(found.sum())} {fault}: {name_some(names)}")
    table, boxes = table[keep], boxes[keep].astype(np.float32)
    spans = boxes[:, 2:] - boxes[:, :2]
    image_ids = [n if e.image_id is None else e.image_id for n, e in enumerate(entries, start=1)]
    kept = np.bincount(owners[keep], minlength=len(entries))
    return Records(
        root=root,
        classes=tuple(classes),
        category_ids=tuple(category_ids or range(1, len(classes) + 1)),
        files=files,
        image_ids=np.array(image_ids, np.int64),
        sizes=sizes,
        starts=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        boxes=boxes,
        labels=table[:, 4].astype(np.int64),
        crowd=table[:, 5] > 0,
        difficult=table[:, 6] > 0,
        areas=np.where(np.isnan(table[:, 7]), spans.prod(axis=1), table[:, 7]).astype(np.float32),
        video=np.array([e.video for e in entries], np.int64),
        frame=np.array([e.frame for e in entries], np.int64),
        videos=tuple(videos),
        notes=tuple(notes),
    )


def _clean(boxes, sizes_hw):
    """(boxes clipped to the image, keep [N], named faults): not finite, no size, outside."""
    finite = np.isfinite(boxes).all(axis=1)
    boxes = np.where(finite[:, None], boxes, 0.0)
    limits = sizes_hw[:, [1, 0, 1, 0]].astype(np.float64)
    clipped = np.clip(boxes, 0, limits)
    sized = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    keep = finite & sized & inside
    over = keep & (np.abs(boxes - clipped).max(axis=1, initial=0) > CLIP_NOTED)
    faults = [
        ("boxes that are no four finite numbers were dropped", ~finite),
        ("boxes of zero or negative size were dropped", finite & ~sized),
        ("boxes outside their image were dropped", finite & sized & ~inside),
        (f"boxes reached more than {CLIP_NOTED:g} px over the edge and were clipped", over),
    ]
    return clipped, keep, faults


def name_some(names):
    """The first few of many names, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def read_classes(path):
    """Class names of a text file, one a line, in the order in which they are numbered."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of class names ({error})") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) != len(names):
        raise UserError(f"{path}: expected one class name a line, each once; found {names}")
    return names


def check_files(records, cache_folder=None):
    """Raises UserError unless each image is there, whole by its end marker, and of the noted size.

    What was found is kept by path, size and time of change in `cache_folder` (the user's cache
    folder by default), so that the next run looks at changed files only.
    """
    if cache_folder is None:
        home = os.environ.get("XDG_CACHE_HOME")
        cache_folder = (Path(home) if home else Path.home() / ".cache") / "detection-data"
    root = records.root.resolve()
    store = Path(cache_folder) / f"{hashlib.sha256(str(root).encode()).hexdigest()[:16]}.json"
    known = _load(store)
    checks = [(root / file, known.get(file)) for file in records.files]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(_check, checks, chunksize=64))
    faults = []
    for file, result, size in zip(records.files, results, records.sizes.tolist(), strict=True):
        if isinstance(result, UserError):
            faults.append(str(result))
            continue
        known[file] = result
        if result[2:] != size:
            faults.append(f"{root / file}: {result[2:]} (h, w) in the file, {size} in the labels")
    _store(store, known)
    if faults:
        raise UserError(f"{len(faults)} of {len(records)} images are faulty: {name_some(faults)}")


def _check(job):
    """[bytes, time of change, h, w] of a whole image, or the UserError that tells its fault."""
    path, before = job
    try:
        status = path.stat()
        mark = [status.st_size, status.st_mtime_ns]
        return before if before and before[:2] == mark else [*mark, *probe_image(path)]
    except OSError:
        return UserError(f"{path}: the image is missing")
    except UserError as error:
        return error


def _load(store):
    """The dict of an earlier check; empty if there is none that can be read."""
    try:
        return json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _store(store, known):
    """Keeps a check's dict; a folder that cannot be written only costs the next run time."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        part = store.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(known), encoding="utf-8")
        part.replace(store)
    except OSError:
        pass
