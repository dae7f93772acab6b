"""Images without labels: of folders and files, and frames of films, as Records without boxes."""

import os
from pathlib import Path

import cv2
import numpy as np

from data.builder import Builder
from data.faults import Faults
from data.films import name_of
from data.records import Records
from utils.errors import UserError
from utils.image import is_image
from utils.source import VIDEO_SUFFIXES
from utils.video import Video

SECONDS = 1.0  # between two frames of a film
THUMBNAIL = 32  # pixels a side, by which frames are compared
DARK, ALIKE = 8.0, 2.0  # of 255: a black frame's mean, a repeated frame's mean difference
HELD_OUT = 10  # every tenth image, and the last tenth of each film, is not trained on


def read(sources: list[str], seconds: float = SECONDS) -> dict[str, Records]:
    """{"train": Records, "val": Records} of the images below folders, image files, and a frame
    every so many seconds of films."""
    found = [file for source in sources for file in _files_of(Path(os.path.abspath(source)))]
    files = list(dict.fromkeys(found))  # a folder may be named beside a file of it
    root = Path(os.path.commonpath([file.parent for file in files]))
    films = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    names = [file.relative_to(root).as_posix() for file in films]
    builder = Builder(root, (), Faults(), videos=tuple(names))
    parts, notes = {"train": [], "val": []}, []
    for number, file in enumerate(sorted(set(files) - set(films))):
        row = builder.image(file.relative_to(root).as_posix())
        parts["val" if number % HELD_OUT == HELD_OUT - 1 else "train"].append(row)
    for video, (film, name) in enumerate(zip(films, names, strict=True)):
        kept, size_hw, left_out, remark = frames_of(film, seconds)
        notes.append(f"{name}: {len(kept)} frames, {left_out} black or repeated ones left out")
        notes += [remark] if remark else []
        rows = [
            builder.image(name_of(name, frame), size_hw, video=video, frame=frame) for frame in kept
        ]
        border = len(rows) - len(rows) // HELD_OUT
        parts["train"] += rows[:border]
        parts["val"] += rows[border:]
    if len(parts["train"]) + len(parts["val"]) < 2:
        raise UserError(f"--images {' '.join(sources)}: one image is too few; give two or more")
    if not parts["val"]:  # a handful
        parts["val"].append(parts["train"].pop())
    records = builder.records(notes)
    return {split: records.subset(rows) for split, rows in parts.items()}


def frames_of(film: Path, seconds: float) -> tuple[list[int], tuple[int, int] | None, int, str]:
    """(numbers of the frames kept, their size (h, w), how many were left out, what is wrong with
    the film)."""
    video = Video(str(film))
    kept, last, size_hw, seen = [], None, None, 0
    for number, image in video.frames(every=max(1, round(video.fps * seconds))):
        seen, size_hw = seen + 1, image.shape[:2]
        small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        small = small.astype(np.float32)
        if small.mean() < DARK or (last is not None and np.abs(small - last).mean() < ALIKE):
            continue
        last = small
        kept.append(number)
    return kept, size_hw, seen - len(kept), video.remark


def _files_of(path: Path) -> list[Path]:
    """The images and films that a path names, sorted."""
    if not path.exists():
        raise UserError(f"--images {path}: there is no such file or folder")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    known = [f for f in files if is_image(f) or f.suffix.lower() in VIDEO_SUFFIXES]
    if not known:
        raise UserError(f"--images {path}: no image or film there, known by their endings")
    return known
