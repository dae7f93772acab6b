"""One label file of a video: `frame,track,left,top,width,height,counts,class,...` a line.

MOT and VisDrone-VID write so. `counts` is 0 for what is to be ignored; the track and
what follows the class are not read.
"""

from dataclasses import dataclass
from pathlib import Path

from data.faults import Faults
from data.files import sizes_of
from data.frames import number_of
from data.numbering import Objects
from utils.image import is_image

COLUMNS = "lines that are not at least eight numbers were left out"
NO_FRAME = "label lines are of frames that are not there and were left out"
NO_NUMBER = "frames without a number in their names were left out"
TWICE = "frames that are there twice"
NOT_WHOLE = "lines whose frame or class is no whole number were left out"


@dataclass(frozen=True, slots=True)
class Row:
    """A line: `box` are xyxy pixels as the file counts them, `counts` is false for the ignored."""

    line: int
    frame: int
    box: tuple[float, float, float, float]
    counts: bool
    number: int  # of the class


def parse(path: Path, file: str, faults: Faults) -> dict[int, list[Row]]:
    """The lines by frame of a file that is called `file` in faults."""
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        sentence = f"{path}: cannot be read ({error.strerror or error})"
        faults.error("label files cannot be read", path, sentence)
        return {}
    rows = {}
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            values = [float(value) for value in content.rstrip(" ,").split(",")[:8]]
            frame, _, x, y, width, height, counts, number = values
        except ValueError:
            faults.drop(COLUMNS, file, f"line {line}: {content.strip()[:80]}")
            continue
        if not (frame.is_integer() and number.is_integer()):
            faults.drop(NOT_WHOLE, file, f"line {line}: {content.strip()[:80]}")
            continue
        box = x, y, x + width, y + height
        row = Row(line, int(frame), box, counts != 0, int(number))
        rows.setdefault(row.frame, []).append(row)
    return rows


def folder_frames(root: Path, folder: str, faults: Faults) -> list[tuple]:
    """[(number, file, (h, w))] of the images in a folder below the root, in order."""
    numbered = {}
    for name in sorted(path.name for path in (root / folder).iterdir() if is_image(path)):
        number = number_of(Path(name).stem)
        if number is None:
            faults.drop(NO_NUMBER, f"{folder}/{name}")
        elif numbered.setdefault(number, name) != name:
            sentence = f"{root / folder}: {name} and {numbered[number]} are both frame {number}"
            faults.error(TWICE, root / folder / name, sentence)
    numbered = dict(sorted(numbered.items()))
    sizes = sizes_of(root / folder, list(numbered.values()), faults)
    rows = zip(numbered.items(), sizes, strict=True)
    return [(number, f"{folder}/{name}", size_hw) for (number, name), size_hw in rows if size_hw]


def add_video(objects: Objects, video: int, frames, rows: dict, labels: Path, origin: int):
    """Adds frames (number, file, (h, w)) with what `parse` found in the file `labels`.

    `origin` is the number of an image's first pixel, from which the boxes count.
    """
    builder = objects.builder
    source, left = labels.relative_to(builder.root).as_posix(), dict(rows)
    for number, file, size_hw in frames:
        row = builder.image(file, size_hw, video=video, frame=number, source=source)
        for found in left.pop(number, ()):
            box = tuple(corner - origin for corner in found.box)
            objects.add(row, box, found.number, found.line, labels, found.counts)
    for number in sorted(left):
        for found in left[number]:
            builder.faults.drop(NO_FRAME, source, f"line {found.line}: frame {number}")
