"""Reader of YOLO labels of videos: a folder of frames and one of label files for each video.

    ROOT/train.txt, val.txt, test.txt           one image a line: ./VIDEO/0000000.png
    ROOT/images/VIDEO/0000000.png               a frame; its number: data/frames.py
    ROOT/labels/VIDEO/0000000.txt               as data/yolo_txt.py reads it; none: no objects

Without lists: ROOT/images/train/VIDEO/ and the other spellings of data/pairs.py.
"""

from dataclasses import dataclass
from pathlib import Path

from data.builder import Builder
from data.faults import Faults, name_some
from data.files import sizes_of
from data.frames import by_name, numbers_of
from data.numbering import Objects, numbering
from data.pairs import CLASS_LIST, DOUBLES, Kind, Pair, label_files, members
from data.pairs import find as find_pairs
from data.splits import SPLIT_NAMES, choose, no_split, stand_in
from data.yolo import counted, numbered_classes, parse_all, pixels
from utils.errors import UserError
from utils.image import is_image

KIND = Kind((("images", "labels"),), ".txt")
TREE = """expected:
  ROOT/train.txt, ROOT/test.txt, one ./VIDEO/FRAME.png a line
  ROOT/images/VIDEO/FRAME.png
  ROOT/labels/VIDEO/FRAME.txt
  ROOT/classes.txt or ROOT/data.yaml"""


@dataclass(frozen=True)
class Part:
    """A part of a set: its folders, and the list of its images (None: all of them)."""

    pair: Pair
    list: Path | None = None


def read(root, split, classes=None, *, faults: Faults, annotation=None):
    """Records of split "train", "val" or "test"; "val" and "test" stand in for each other.

    The numbers in the files count along classes.txt, else `names:` in data.yaml, else `classes`;
    without any of them they are the names. A class called "ignore" is none: data/numbering.py.
    `annotation` names a list in place of ROOT/{split}.txt.
    """
    return read_along(None, root, split, classes, faults, annotation)


def read_along(names, root, split, classes, faults, annotation=None, kind="yolovideo", ids_from=1):
    """`read` of a set whose numbers count along `names`, unless it has its own list."""
    root, notes = Path(root), []
    found = find(root)
    if annotation is not None:
        part = Part(Pair(root / "images", root / "labels"), Path(annotation))
    else:
        if not found:
            what = "no frames with label files below" if root.is_dir() else "there is no folder"
            raise UserError(f"{kind}: {what} {root.absolute()}; {TREE}\nsee docs/data.md")
        used = choose(found, split)
        if used is None:
            raise no_split(kind, root, split, found)
        part, notes = found[used], stand_in(split, used)
    pairs = {used: each.pair for used, each in found.items()}
    files = _files(part, faults)
    shown = part.pair.labels.relative_to(root).as_posix()
    parsed = parse_all(part.pair, files, shown, faults, notes)
    names = numbered_classes(root, pairs) or names
    if not (names or classes):
        names = counted(parsed, dict.fromkeys(pairs.values()))
        notes.append(f"no {CLASS_LIST} and no data.yaml: classes are called by their numbers")
    numbers = numbering(names, classes, f"{kind}: {root}", ids_from=ids_from)
    return _assemble(root, part.pair, _videos(files, notes), parsed, numbers, faults, notes)


def find(root: Path) -> dict[str, Part]:
    """{split: Part} below a root; {} if there is none."""
    return _lists(root) or {s: Part(pair) for s, pair in find_pairs(root, KIND).items()}


def find_videos(root: Path) -> dict[str, Part]:
    """{split: Part} of a set whose lists name images in folders that are no split: videos."""
    found = _lists(root)
    splits = {name for names in SPLIT_NAMES.values() for name in names}
    for part in found.values():
        images = (_below_images(line) for line in _lines(part.list)[:1])
        if any("/" not in image or image.split("/")[0] in splits for image in images):
            return {}
    return found


def _lists(root):
    """{split: Part} of the lists in a root whose images lie below it."""
    whole, found = Pair(root / "images", root / "labels"), {}
    for split, names in SPLIT_NAMES.items() if whole.images.is_dir() else ():
        paths = (root / f"{name}.txt" for name in names)
        path = next((path for path in paths if path.is_file()), None)
        if path:
            found[split] = Part(whole, path)
    return found


def _lines(path):
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of images ({error})") from None
    return [line.strip() for line in lines if line.strip()]


def _files(part, faults):
    """[(image, its label file or None)] of a part, relative to its folders."""
    if part.list is None:
        files, strays, doubles = members(part.pair, KIND.suffix)
        for name in strays:
            faults.drop("label files have no image and were left out", part.pair.labels / name)
        for name in doubles:
            faults.drop(DOUBLES, part.pair.images / name)
        return files
    names = [_below_images(line) for line in _lines(part.list)]
    odd = [name for name in names if not is_image(name)]
    if odd or not names:
        what = f"no names of images: {name_some(odd)}" if odd else "the list is empty"
        raise UserError(f"{part.list}: {what}; each line is an image, as ./VIDEO/0000000.png")
    if len(set(names)) < len(names):
        count = len(names) - len(set(names))
        faults.drop("lists name an image twice; it was taken once", part.list, f"{count} times")
    labels = {Path(name).with_suffix(""): name for name in label_files(part.pair, KIND.suffix)}
    return [(name, labels.get(Path(name).with_suffix(""))) for name in dict.fromkeys(names)]


def _below_images(line):
    """The name in a list, relative to the folder of the images, wherever that once lay."""
    name = line.replace("\\", "/").removeprefix("./")
    if name.startswith("images/"):
        return name.removeprefix("images/")
    return name.rpartition("/images/")[2]


def _videos(files, notes):
    """{name of a video: [(frame number, image, label file or None)]}, frames in order."""
    videos, unnumbered = {}, []
    for image, txt in files:
        videos.setdefault(Path(image).parent.as_posix(), []).append((image, txt))
    for video, frames in videos.items():
        stems = [Path(image).stem for image, _ in frames]
        numbers = numbers_of(stems)
        if numbers is None:
            unnumbered.append(video)
            numbers = by_name(stems)
        rows = zip(numbers, frames, strict=True)
        videos[video] = sorted((number, *frame) for number, frame in rows)
    if unnumbered:
        notes.append(
            f"{len(unnumbered)} videos have frames without a number of their own, which were "
            f"counted in the order of their names: {name_some(unnumbered)}"
        )
    return videos


def _assemble(root, pair, videos, parsed, numbers, faults, notes):
    """Records of the frames of the videos, in their order."""
    names = tuple(pair.images.name if video == "." else video for video in videos)
    builder = Builder(root, numbers.classes, faults, numbers.category_ids, names, unit="line")
    objects = Objects(builder, numbers)
    images, labels = (each.relative_to(root).as_posix() for each in (pair.images, pair.labels))
    rows = [(video, *frame) for video, frames in enumerate(videos.values()) for frame in frames]
    sizes = sizes_of(pair.images, [image for _, _, image, _ in rows], faults)
    for (video, frame, image, txt), size_hw in zip(rows, sizes, strict=True):
        if size_hw is None:
            continue
        source = f"{labels}/{txt}" if txt else ""
        row = builder.image(f"{images}/{image}", size_hw, None, video, frame, source)
        for line, number, fractions in parsed.get(txt, ()):
            objects.add(row, pixels(fractions, size_hw), number, line, pair.labels / txt)
    return builder.records([*notes, *objects.notes()])
