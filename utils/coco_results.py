"""Files of detections in the form of COCO's results: a json list of image_id, category_id, bbox
(x, y, w, h in pixels) and score."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import replace_file
from utils.truth import Truth

EXPECTED = '{"image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "score": 0.9}'
FARTHEST = 1e9  # no coordinate or score lies beyond
HEAD = 64  # bytes that tell a list from an object
SHOWN = 5  # unknown ids that a sentence names


def check_target(path: str | Path, inputs: Iterable[str | Path | None] = ()):
    """Raises UserError unless a results file can be written there: asked before the work. It must
    not be one of the `inputs`, nor take the place of a json that holds no detections."""
    path = Path(path)
    if path.suffix != ".json":
        hint = "results are written as json, which needs no code to be read"
        raise UserError(f"--out {path}: {hint}; name it {path.with_suffix('.json').name}")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file in it")
    for given in filter(None, inputs):
        if path.exists() and os.path.exists(given) and path.samefile(given):
            raise UserError(f"--out {path} is read as {given}; name another file")
    if path.is_file() and not _may_be_results(path):
        raise UserError(f"--out {path} is there and holds no detections; name another file")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"--out {path}: cannot write to {path.parent} ({error.strerror or error}); choose "
            "another folder"
        ) from None


def write(path: str | Path, results: list[dict]):
    """Writes the file; whatever fails, one that was there stays as it was."""
    replace_file(path, lambda file: file.write(json.dumps(results).encode()))


def read(path: str | Path, truth: Truth) -> tuple[np.ndarray, ...]:
    """(image ids, labels, boxes xywh, scores) of a file; each must be of the truth's set."""
    entries = _load(Path(path))
    if not entries:
        return np.empty(0, int), np.empty(0, int), np.empty((0, 4)), np.empty(0)
    try:
        ids, categories = (
            np.array([entry[key] for entry in entries]) for key in ("image_id", "category_id")
        )
        boxes, scores = (np.array([entry[key] for entry in entries]) for key in ("bbox", "score"))
    except (KeyError, TypeError, ValueError):
        ids = None
    if ids is None or not _whole(ids, categories, boxes, scores):
        number, what = next((i, fault) for i, e in enumerate(entries) if (fault := _fault(e)))
        raise UserError(f"--results {path}: entry {number} {what}; expected {EXPECTED}")
    _check_known(path, "image", ids, truth.image_ids)
    _check_known(path, "category", categories, truth.category_ids)
    by_id = np.argsort(truth.category_ids)
    labels = by_id[np.searchsorted(truth.category_ids[by_id], categories)]
    return ids, labels, boxes.astype(np.float64), scores.astype(np.float64)


def _whole(ids, categories, boxes, scores) -> bool:
    """Whether the columns of all entries are what they should be."""
    kinds = (ids.dtype.kind + categories.dtype.kind, boxes.dtype.kind, scores.dtype.kind)
    return (
        kinds[0] == "ii"
        and all(kind in "if" for kind in kinds[1:])
        and (ids.shape, categories.shape, scores.shape) == (boxes.shape[:1],) * 3
        and boxes.shape[1:] == (4,)
        and bool((np.abs(boxes) < FARTHEST).all() and (boxes[:, 2:] >= 0).all())
        and bool((np.abs(scores) < FARTHEST).all())
    )


def _may_be_results(path: Path) -> bool:
    """Whether a file is empty or begins as a list does: annotations are written as an object."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise UserError(f"--out {path}: cannot be read ({error.strerror or error})") from None
    return start[:1] in (b"", b"[")


def _load(path: Path) -> list:
    try:
        with open(path, encoding="utf-8-sig") as file:
            entries = json.load(file)
    except OSError as error:
        raise UserError(f"--results {path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"--results {path}: no whole json ({error}); eval.py --out FILE.json writes such files"
        ) from None
    if not isinstance(entries, list):
        kind = "a COCO data set" if "annotations" in entries else f"a {type(entries).__name__}"
        raise UserError(f"--results {path}: holds {kind}, not a list of detections; see --out")
    return entries


def _fault(entry) -> str:
    """What is wrong with an entry, or ""."""
    if not isinstance(entry, dict):
        return f"is no object but {str(entry)[:40]!r}"
    for key in ("image_id", "category_id"):
        if key not in entry:
            return f"has no {key}"
        if type(entry[key]) is not int or abs(entry[key]) >= 2**63:
            return f"has {key} {str(entry[key])[:40]!r}, which is no whole number"
    if not _is_number(entry.get("score")):
        return f"has score {str(entry.get('score'))[:40]!r}, which is no number"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has bbox {str(box)[:60]}, which is no list of four numbers"
    if min(box[2:]) < 0:
        return f"has bbox {box} of negative size"
    return ""


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) < FARTHEST  # false for nan, too


def _check_known(path, kind: str, ids: np.ndarray, known: np.ndarray):
    unknown = np.setdiff1d(ids, known)
    if len(unknown):
        some = ", ".join(map(str, unknown[:SHOWN].tolist()))
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise UserError(
            f"--results {path}: {kind} ids {some}{more} are not in the set, which has {len(known)} "
            f"from {known.min()} to {known.max()}; is it the file of another set or split?"
            if len(known)
            else f"--results {path}: {kind} ids {some}{more}, but the set has none"
        )
