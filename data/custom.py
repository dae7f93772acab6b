"""Reader of a set of one's own: finds out which format it has and hands over to its reader."""

import os
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data import coco, cocovid, flow, mot, visdrone_vid, voc, yolo, yolo_video
from data.faults import name_some
from data.splits import SPLIT_NAMES, choose, no_split, stand_in
from utils.errors import UserError

KEYS = {  # of a json, and what stands behind them; an empty list of videos makes no CocoVID
    "images": re.compile(rb'"images"\s*:\s*\['),
    "annotations": re.compile(rb'"annotations"\s*:\s*\['),
    "videos": re.compile(rb'"videos"\s*:\s*\[\s*\{'),
}
FLAGS = {"annotation": "--ann", "images": "--images", "years": "--voc_train"}  # of options
CHUNK = 1 << 20  # bytes of a json that are looked at at a time
OVERLAP = 1 << 10  # of two chunks: a key, white space and the bracket fit into it

TREES = """a set of one's own is one of
  COCO json  ROOT/annotations/instances_{train,val}.json and ROOT/{train,val}/*.jpg
  CocoVID    ROOT/annotations/{train,val}.json with a list "videos", and ROOT/frames/
  VOC        ROOT/{Annotations/*.xml,JPEGImages/*.jpg,ImageSets/Main/{train,val}.txt}
  FloW       ROOT/{training,test}/{images/*.jpg,annotations/*.xml}
  YOLO txt   ROOT/{images,labels}/{train,val}/ and ROOT/classes.txt
  videos     as MOT (ROOT/clips/*.mp4, ROOT/gt/CLIP/gt.txt), YOLO video or VisDrone-VID have them"""

# Name, that of -d, reader, what finds its parts, and where one of them was seen.
FOLDERS = (
    ("VisDrone-VID", "visdrone", visdrone_vid, visdrone_vid.find, lambda folder: folder),
    ("MOT text", "mot", mot, mot.find, lambda clips: clips[0].labels),
    ("xml files", "flow", flow, flow.find, lambda pair: pair.labels),
    ("YOLO video", "yolovideo", yolo_video, yolo_video.find_videos, lambda part: part.list),
    ("YOLO txt", "yolo", yolo, yolo.find, lambda pair: pair.labels),
)


@dataclass(frozen=True)
class Format:
    """A format that fits: its name, that of -d, where it was seen, its reader and what it takes."""

    name: str
    dataset: str
    where: str
    read: partial
    options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # that its reader cannot know of


def read(root, split, classes=None, *, faults, annotation=None, images=None, years=None):
    """Records of split "train", "val" or "test" as the reader of the format that is found gives.

    Formats are looked for in the order of TREES, and the first is taken. `annotation` and `images`
    name a COCO or CocoVID json and its images, `years` the lists of VOC.
    """
    root = Path(root)
    jsons = find_jsons(root) if annotation is None else {split: Path(annotation)}
    fitting = [_json_format(root, jsons, split)] if jsons else []
    if annotation is None:
        fitting += _folder_formats(root, split)
    if not fitting:
        raise _nothing(root)
    first, *others = fitting
    options = {name: value for name, value in (("images", images), ("years", years)) if value}
    for name in sorted(options.keys() - set(first.options)):
        raise UserError(
            f"custom: {first.name} ({first.where}) does not take {FLAGS[name]}; leave that flag out"
        )
    also = [f"also found: {each.name} ({each.where}), for -d {each.dataset}" for each in others]
    try:
        records = first.read(classes=classes, faults=faults, **options)
    except UserError as error:
        raise type(error)("; ".join((str(error), *also))) from None
    notes = f"found: {first.name} ({first.where})", *also, *first.notes
    return replace(records, notes=(*notes, *records.notes))


def _json_format(root, jsons, split):
    used = choose(jsons, split)
    if used is None:
        absent = partial(_no_json, no_split("custom", root, split, jsons))
        return Format("COCO json", "coco", ", ".join(map(str, jsons.values())), absent)
    path = jsons[used]
    videos = "videos" in keys_of(path)
    reader = partial((cocovid if videos else coco).read, root, used, annotation=path)
    name, dataset = ("CocoVID json", "cocovid") if videos else ("COCO json", "coco")
    return Format(name, dataset, str(path), reader, ("images",), tuple(stand_in(split, used)))


def _no_json(error, **_):
    raise error


def _folder_formats(root, split):
    """The formats that are told by their folders."""
    devkit = voc.find(root)
    if devkit:
        where = " and ".join(map(str, devkit.folders.values()))
        yield Format("VOC lists", "voc", where, partial(voc.read, root, split), ("years",))
    for name, dataset, module, find, place in FOLDERS:
        found = find(root)
        if found:
            where = ", ".join(str(place(part)) for part in found.values())
            yield Format(name, dataset, where, partial(module.read, root, split))


def find_jsons(root):
    """{split: path} of the COCO or CocoVID json files of a set; {} if there are none."""
    found = {}
    for split, path in _candidates(root):
        if split not in found and {"images", "annotations"} <= keys_of(path):
            found[split] = path
    unnamed = found.pop(None, None)
    if unnamed and "train" not in found:
        found["train"] = unnamed
    return found


def _candidates(root):
    """(split or None, path) of each json that may be one, the likeliest first."""
    for base in (root, root / "coco", root / "COCO"):
        for split, names in SPLIT_NAMES.items():
            for name in names:
                path = base / name / "_annotations.coco.json"
                if path.is_file():
                    yield split, path
        files = [*(base / "annotations").glob("*.json"), *base.glob("*.json")]
        for path in sorted(files, key=lambda path: (not path.name.startswith("instances"), path)):
            if path.is_file():
                yield _split_named(path.stem.lower()), path


def _split_named(stem):
    return next((split for split in SPLIT_NAMES if split in stem), None)


def keys_of(path):
    """Which of KEYS a json has; the file is searched, not loaded."""
    found, text = set(), b""
    try:
        with open(path, "rb") as stream:
            while len(found) < len(KEYS) and (chunk := stream.read(CHUNK)):
                text += chunk
                found |= {key for key in KEYS.keys() - found if KEYS[key].search(text)}
                text = text[-OVERLAP:]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return found


def _nothing(root):
    """The error for a root in which no format was found."""
    if not root.is_dir():
        return UserError(f"custom: there is no folder {root.absolute()}; {TREES}")
    try:
        held = name_some(sorted(os.listdir(root))) or "nothing"
    except OSError as error:
        held = error.strerror
    return UserError(
        f"custom: no format known by {root.absolute()}, which holds {held}; looked for json files "
        "in it and its annotations/, VOCdevkit, ImageSets/Main, and folders of images, each with "
        f"one of xml or txt files beside it; {TREES}\nsee docs/data.md"
    )
