"""What --source names: an image, a folder, a pattern, a list, a video, a camera or a stream."""

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.image import IMAGE_SUFFIXES, is_image

# fmt: off
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".mjpeg",
    ".mjpg", ".gif",
)
# fmt: on
MAGIC = "*?["


@dataclass
class Found:
    """Images and videos; each name is the path below what they have in common, so that results
    can lie under the same names. A video is a path, an address or a camera's number."""

    images: list[tuple[str, Path]] = field(default_factory=list)
    videos: list[tuple[str, str | int]] = field(default_factory=list)


def find(text: str) -> Found:
    """The images and videos that a --source names, sorted (a list's in its own order)."""
    if text.isdigit():
        return Found(videos=[(f"camera{text}", int(text))])
    if "://" in text:
        return Found(videos=[(_stream_name(text), text)])
    path = Path(text)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return _sorted_out(text, files, root=path)
    if not path.exists() and any(letter in text for letter in MAGIC):
        files = sorted(Path(file) for file in glob.glob(text, recursive=True))
        return _sorted_out(text, [file for file in files if file.is_file()])
    if not path.exists():
        raise UserError(
            f"--source {text}: there is no such file or folder; give an image, a folder, a pattern "
            "in quotes, a list (.txt), a video, an address or a camera's number"
        )
    if path.suffix.lower() == ".txt":
        return _sorted_out(text, _listed(path), listed=True)
    if is_image(path):
        return Found(images=[(path.name, path)])
    return Found(videos=[(path.name, text)])  # whatever it is: opening it will tell


def _sorted_out(text: str, files: list[Path], root: Path | None = None, listed=False) -> Found:
    """The images and videos among the files, named below `root`, else below their common folder.

    All that is `listed` and no video is taken for an image, so that what is none is reported.
    """
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    images = [file for file in files if file not in videos and (listed or is_image(file))]
    if not images and not videos:
        known = " ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise UserError(
            f"--source {text}: no image or video among {len(files)} files; known by their endings "
            f"are {known}"
        )
    root = root or _common(images + videos)
    return Found(
        images=[(_below(file, root), file) for file in images],
        videos=[(_below(file, root), str(file)) for file in videos],
    )


def _listed(path: Path) -> list[Path]:
    """The files that a text file names, one a line: from here, else from the list's folder."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--source {path}: cannot be read as a list of files ({error})") from None
    names = dict.fromkeys(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"--source {path}: the list is empty; write one file name a line")
    # A name that is at neither place stays: reading it will say that it is missing.
    return [Path(name) if Path(name).exists() else path.parent / name for name in names]


def _common(files: list[Path]) -> Path:
    try:
        return Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))
    except ValueError:  # Windows, several drives
        return Path()


def _below(file: Path, root: Path) -> str:
    """The name of a file below the root; without drive and leading parts where it is elsewhere."""
    whole, base = Path(os.path.abspath(file)), Path(os.path.abspath(root))
    inside = whole.relative_to(base) if whole.is_relative_to(base) else Path(*whole.parts[1:])
    return inside.as_posix()


def _stream_name(address: str) -> str:
    """A file name made of an address, without a password that may stand in it."""
    rest = address.split("://", 1)[1].split("?")[0].rsplit("@", 1)[-1]
    kept = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in rest)
    return kept.strip("_.") or "stream"
