"""Reader of MOT text labels: films, or folders of frames, with a gt.txt each.

    ROOT/clips/CLIP.mp4, ROOT/gt/CLIP/gt.txt     films; ROOT/{train,val}.txt list clips, if there
    ROOT/{train,test}/CLIP/img1/000001.jpg       frames, with CLIP/gt/gt.txt, as MOTChallenge has it

Frames and pixels are counted from 1 in gt.txt, from 0 inside; frame n of a film is the n-th that is
decoded.
"""

import configparser
from dataclasses import dataclass, replace
from pathlib import Path

from data.builder import UNREADABLE, Builder
from data.faults import Faults, name_some
from data.films import Images, name_of
from data.mot_txt import add_video, folder_frames, parse
from data.numbering import Objects, numbering
from data.pairs import CLASS_LIST, own_classes
from data.splits import SPLIT_NAMES, NoPart, choose, stand_in
from utils.errors import DataError, UserError
from utils.source import VIDEO_SUFFIXES

FOLDERS = ("clips", "videos", ".")  # of films
NO_CLASS = -1  # the first MOT sets have one class only, and write this
TREE = """expected:
  ROOT/clips/CLIP.mp4
  ROOT/gt/CLIP/gt.txt
  ROOT/train.txt and ROOT/val.txt, names of clips, one a line
  or ROOT/{train,test}/CLIP/img1/000001.jpg and ROOT/{train,test}/CLIP/gt/gt.txt"""


@dataclass(frozen=True)
class Clip:
    """A video: its label file, and its film or the folder of its frames."""

    name: str
    labels: Path
    frames: Path


def read(root, split, classes=None, *, faults: Faults, annotation=None):
    """Records of split "train", "val" or "test"; "val" and "test" stand in for each other.

    Classes are numbered from 1 along classes.txt in the root, else `classes`; with neither of them
    they are called by their numbers. `annotation` names a list of clips in place of
    ROOT/{split}.txt.
    """
    root, notes = Path(root), []
    if annotation is not None:
        clips = _listed(Path(annotation), _films(root))
    else:
        found = find(root)
        if not found:
            what = "no gt.txt of a video below" if root.is_dir() else "there is no folder"
            raise UserError(f"mot: {what} {root.absolute()}; {TREE}\nsee docs/data.md")
        used = choose(found, split)
        if used is None:
            raise NoPart(
                f"mot: {root.absolute()} has no {split} part, only {' and '.join(found)}; list the "
                f"names of its clips in {root / f'{split}.txt'}, or name such a list with --ann"
            )
        clips, notes = found[used], stand_in(split, used)
    rows = {clip: _rows(clip, root, faults) for clip in clips}
    names = own_classes(root)
    if not (names or classes):
        names = _counted(rows, root)
        notes.append(f"no {CLASS_LIST}: classes are called by their numbers")
    numbers = numbering(names, classes, f"mot: {root}", first=1)
    videos = tuple(clip.name for clip in clips)
    builder = Builder(root, numbers.classes, faults, numbers.category_ids, videos, unit="line")
    objects, images = Objects(builder, numbers), Images()
    for video, clip in enumerate(clips):
        frames = _frames(clip, root, images, faults)
        add_video(objects, video, frames, rows.pop(clip), clip.labels, origin=1)
    return builder.records([*notes, *objects.notes()])


def find(root: Path) -> dict[str, list[Clip]]:
    """{split: clips} below a root; {} if there are none."""
    found = {}
    for split, names in SPLIT_NAMES.items():
        folders = (root / name for name in names)
        clips = next(filter(None, map(_folders, folders)), None)
        if clips:
            found[split] = clips
    films = {} if found else _films(root)
    if films:
        lists = {split: root / f"{split}.txt" for split in SPLIT_NAMES}
        lists = {split: path for split, path in lists.items() if path.is_file()}
        found = {split: _listed(path, films) for split, path in lists.items()}
        found = found or {"train": list(films.values())}
    return found


def _folders(folder):
    """The clips of a part whose frames are images."""
    return [
        Clip(labels.parent.parent.name, labels, labels.parent.parent / _image_folder(labels))
        for labels in sorted(folder.glob("*/gt/gt.txt"))
    ]


def _image_folder(labels):
    """The name of the folder of the frames, which seqinfo.ini may say."""
    info = configparser.ConfigParser(interpolation=None)
    try:
        info.read(labels.parent.parent / "seqinfo.ini", encoding="utf-8-sig")
    except (configparser.Error, UnicodeDecodeError):  # it may be left out as well
        return "img1"
    return info.get("Sequence", "imDir", fallback="img1")


def _films(root):
    """{name: Clip} of the films of a set that have labels."""
    films = {}
    for path in (path for folder in FOLDERS for path in sorted((root / folder).glob("*"))):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            films.setdefault(path.stem, path)
    labels = {path.parent.name: path for path in sorted((root / "gt").glob("*/gt.txt"))}
    return {
        # Opening a film that is not there will tell so.
        name: Clip(name, path, films.get(name, root / FOLDERS[0] / f"{name}.mp4"))
        for name, path in labels.items()
    }


def _listed(path, films):
    """The clips that a list names, with or without folder and ending."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of clips ({error})") from None
    names = [Path(line.strip().replace("\\", "/")) for line in lines if line.strip()]
    names = [name.stem if name.suffix.lower() in VIDEO_SUFFIXES else name.name for name in names]
    unknown = [name for name in names if name not in films]
    if unknown or not names:
        what = f"no gt/CLIP/gt.txt for {name_some(unknown)}" if unknown else "the list is empty"
        raise UserError(f"{path}: {what}; known are {name_some(films) or 'none'}")
    return [films[name] for name in dict.fromkeys(names)]


def _rows(clip, root, faults):
    """The lines of a clip's labels by frame."""
    rows = parse(clip.labels, clip.labels.relative_to(root).as_posix(), faults)
    return {
        frame: [replace(row, number=1) if row.number == NO_CLASS else row for row in found]
        for frame, found in rows.items()
    }


def _counted(rows, root):
    """Names for the class numbers up to the greatest of all parts, so that each numbers alike."""
    unheard = Faults(collect=True)  # another part's faults are told when that part is read
    others = {clip for clips in find(root).values() for clip in clips} - rows.keys()
    every = [*rows.values(), *(_rows(clip, root, unheard) for clip in others)]
    numbers = (row.number for frames in every for frame in frames.values() for row in frame)
    return tuple(f"class {number}" for number in range(1, max(1, *numbers) + 1))


def _frames(clip, root, images, faults):
    """[(number, file, (h, w))] of the frames of a clip, counted from 1 as in its labels."""
    name = clip.frames.relative_to(root).as_posix()
    try:
        if clip.frames.suffix.lower() not in VIDEO_SUFFIXES:
            return folder_frames(root, name, faults)
        film = images.film(clip.frames)
        size_hw = film.read(0).shape[:2]
        return [(number + 1, name_of(name, number), size_hw) for number in range(film.count)]
    except OSError as error:
        faults.error(UNREADABLE, clip.frames, f"{clip.frames}: {error.strerror or error}")
    except DataError as error:
        faults.error(UNREADABLE, clip.frames, str(error))
    return []
