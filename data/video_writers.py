"""Writers of video sets, as those of data/writers.py; a still becomes a video of one frame.

cocovid    OUT/annotations/{split}.json, OUT/frames/VIDEO/0000000.jpg
yolovideo  OUT/{split}.txt, OUT/images/VIDEO/0000000.jpg, OUT/labels/VIDEO/0000000.txt,
           OUT/classes.txt
"""

import json
from pathlib import Path

import numpy as np

from data.pairs import CLASS_LIST
from data.records import Records
from data.writers import (
    class_list,
    coco_annotations,
    names_for,
    notes_of,
    write_list,
    yolo_line,
    yolo_rows,
)
from utils.image import is_image

IGNORE = "ignore"  # the class whose boxes are regions: data/numbering.py


def write_cocovid(parts: dict[str, Records], out: Path, place) -> dict[str, tuple]:
    """Image ids and frame numbers stay; categories and videos are numbered from 1, in order."""
    written, taken = {}, {}
    (out / "annotations").mkdir()
    for split, records in parts.items():
        videos, video_of = _videos(records, taken)
        names = _frame_names(records, videos, video_of, records.frame)
        for index, name in enumerate(names):
            place(records.path(index), out / "frames" / name)
        path = out / "annotations" / f"{split}.json"
        listed = [{"id": number, "name": name} for number, name in enumerate(videos, 1)]
        categories = [{"id": n, "name": name} for n, name in enumerate(records.classes, 1)]
        with open(path, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(f'{{"videos": {json.dumps(listed)},\n"images": ')
            write_list(stream, _images(records, names, video_of))
            stream.write(',\n"annotations": ')
            write_list(stream, coco_annotations(records))
            stream.write(f',\n"categories": {json.dumps(categories)}}}\n')
        notes = notes_of(
            (records.difficult, 'difficult objects are marked "difficult": 1 and "ignore": 1'),
        )
        written[split] = len(records.boxes), [*notes, *_video_notes(records, videos)]
    return written


def write_yolo_video(parts: dict[str, Records], out: Path, place) -> dict[str, tuple]:
    """Crowds become regions of the class "ignore", the last one, and belong to no other class."""
    classes, written, taken = class_list(parts), {}, {}
    if any(records.crowd.any() for records in parts.values()):
        classes += f"{IGNORE}\n"
    (out / "images").mkdir()
    for split, records in parts.items():
        videos, video_of = _videos(records, taken)
        frames = _from_zero(records, video_of)
        names = _frame_names(records, videos, video_of, frames)
        rows, count = yolo_rows(records), 0
        for index, name in enumerate(names):
            place(records.path(index), out / "images" / name)
            lines = _lines(records, index, rows)
            text = (out / "labels" / name).with_suffix(".txt")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("".join(lines), encoding="utf-8")
            count += len(lines)
        listed = "".join(f"./{name}\n" for name in names)
        (out / f"{split}.txt").write_text(listed, encoding="utf-8")
        notes = notes_of(
            (records.crowd, f'crowds became regions of the class "{IGNORE}", equal ones one'),
            (records.difficult & ~records.crowd, "difficult objects became ordinary ones"),
            (frames != records.frame, "frames were counted anew, for their numbers were below 0"),
        )
        written[split] = count, [*notes, *_video_notes(records, videos)]
    (out / CLASS_LIST).write_text(classes, encoding="utf-8")
    return written


def _videos(records: Records, taken: dict) -> tuple[list[str], np.ndarray]:
    """(names of the videos, no two alike in all parts; int64 [I]: the video of each image)."""
    stills = np.flatnonzero(records.video < 0)
    files = [*(f"{name}.jpg" for name in records.videos), *(records.files[i] for i in stills)]
    video_of = records.video.copy()
    video_of[stills] = len(records.videos) + np.arange(len(stills))
    names = names_for(files, taken, flat=True)
    return [name.rpartition(".")[0] for name in names], video_of


def _frame_names(records: Records, videos: list[str], video_of, frames) -> list[str]:
    """A file name for each image: its video's name and its number."""
    rows = zip(records.files, video_of.tolist(), frames.tolist(), strict=True)
    return [
        f"{videos[video]}/{frame:07d}{Path(file).suffix if is_image(file) else '.jpg'}"
        for file, video, frame in rows
    ]


def _images(records: Records, names: list[str], video_of):
    columns = (records.image_ids, records.sizes, video_of, records.frame)
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    for name, image_id, (height, width), video, frame in rows:
        yield {
            "id": image_id,
            "file_name": name,
            "height": height,
            "width": width,
            "video_id": video + 1,
            "frame_id": frame,
        }


def _from_zero(records: Records, video_of) -> np.ndarray:
    """The frame numbers, those of a video that has some below 0 counted from 0: names have no
    sign."""
    lowest = np.zeros(int(video_of.max(initial=-1)) + 1, np.int64)
    np.minimum.at(lowest, video_of, records.frame)
    return records.frame - lowest[video_of]


def _lines(records: Records, index: int, rows) -> list[str]:
    """The lines of an image's label file, a region that is a crowd of several classes once."""
    lines = []
    for row in range(records.starts[index], records.starts[index + 1]):
        region = records.crowd[row]
        line = yolo_line(len(records.classes) if region else int(records.labels[row]), rows[row])
        if not (region and line in lines):
            lines.append(line)
    return lines


def _video_notes(records: Records, videos: list[str]) -> list[str]:
    stills = len(videos) - len(records.videos)
    return [f"{stills} stills became videos of one frame"] if stills else []
