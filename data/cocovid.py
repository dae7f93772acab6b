"""Reader of CocoVID files: a COCO json whose images are frames of the videos that it lists.

    ROOT/annotations/{train,val,test}.json, images below ROOT/frames/,
    ROOT/{split}/, ROOT/images/ or ROOT/

Each image has a `video_id` and a `frame_id`; the `instance_id` of an annotation is not read. In a
COCO json without videos every folder of images is one, in the order of data/frames.py. A category
"ignore" is none: data/numbering.py.
"""

from array import array
from pathlib import Path

import numpy as np

from data.coco import assemble, image_folder
from data.coco_json import ABSENT, Annotations, load
from data.faults import Faults
from data.frames import by_folder
from data.numbering import ignored_among
from data.pairs import own_classes
from data.splits import STANDS_IN, NoPart, stand_in
from utils.errors import UserError

TREE = """expected:
  ROOT/annotations/train.json
  ROOT/annotations/val.json
  ROOT/frames/VIDEO/*.jpg, or wherever `file_name` leads from ROOT/frames, ROOT/train, ROOT/images
    or ROOT"""


def read(root, split, classes=None, *, faults: Faults, annotation=None, images=None):
    """Records of split "train", "val" or "test" with the columns video and frame.

    `classes`, `annotation` and `images` are as in data/coco.py. "val" and "test" stand in for each
    other. An image of a video that is not listed is an error.
    """
    root, notes = Path(root), []
    if annotation is None:
        _, annotation, folders, used = find_json(root, split)
        notes = stand_in(split, used)
    else:
        annotation = Path(annotation)
        bases = dict.fromkeys((annotation.parent.parent, annotation.parent, root))
        folders = [base / name for base in bases for name in ("frames", split, "images", ".")]
    if images is not None:
        folders = [Path(images)]
    content = load(annotation, faults, image_keys=("video_id", "frame_id"))
    if content.videos:
        places = _places(content, annotation, faults)
    else:
        places = _folders(content, annotation)
        notes.append(f'no list "videos": of images in {len(content.videos)} folders each is one')
    if classes is None:
        classes = own_classes(root)
    if classes is not None:
        ignored = ignored_among(classes)
        classes = tuple(name for name in classes if name not in ignored)
    notes = [*notes, *_spread_regions(content, classes)]
    folder = image_folder(folders, content.images.files.names(), annotation)
    return assemble(
        content,
        folder,
        classes,
        annotation,
        faults,
        notes=notes,
        videos=content.videos.values(),
        places=places,
    )


def _places(content, path, faults):
    """(row of the video, frame number) of each image."""
    row_of = {video_id: row for row, video_id in enumerate(content.videos)}
    files = content.images.files.names()
    places, seen = [], set()
    for file, video_id, frame in zip(files, *content.images.further.values(), strict=True):
        if ABSENT in (video_id, frame):
            sentence = f'{path}: {file} has no "video_id" or no "frame_id"'
            faults.error("images without a video or a number in it", file, sentence)
            places.append((-1, 0))
            continue
        where = f"{path}: {file} is frame {frame} of video {video_id}, which"
        if video_id not in row_of:
            sentence = f'{where} is not in the list "videos"'
            faults.error("images of a video that is not listed", file, sentence)
            places.append((-1, 0))
            continue
        places.append((row_of[video_id], frame))
        if places[-1] in seen:
            sentence = f"{where} another image is as well"
            faults.error("frames that are there twice", file, sentence)
        seen.add(places[-1])
    return places


def _folders(content, path):
    """(row of the video, frame number) of each image of a json without videos, which are named
    after the folders."""
    files = [Path(file) for file in content.images.files.names()]
    video_ids, _ = content.images.further.values()
    if any(number != ABSENT for number in video_ids) or all(f.parent == Path() for f in files):
        raise UserError(
            f'{path}: the list "videos" is missing or empty; for a set of stills use -d coco'
        )
    folders, video, frame = by_folder(files)
    content.videos.update(enumerate(folder.as_posix() for folder in folders))
    return list(zip(video.tolist(), frame.tolist(), strict=True))


def _spread_regions(content, classes):
    """Makes what is annotated with a category such as "ignore" a crowd of each class; notes."""
    ignored = ignored_among(content.categories.values())
    numbers = [number for number, name in content.categories.items() if name in ignored]
    for number in numbers:
        del content.categories[number]
    wanted = [n for n, name in content.categories.items() if classes is None or name in classes]
    columns = vars(content.annotations)
    regions = np.isin(np.asarray(columns["category_ids"]), numbers)
    if not regions.any():
        return []
    objects = np.flatnonzero(~regions)
    rows = np.concatenate([objects, np.repeat(np.flatnonzero(regions), len(wanted))])
    spread = {
        name: np.asarray(column).reshape(len(regions), -1)[rows]  # [N, 4] or [N, 1]
        for name, column in columns.items()
    }
    spread["category_ids"][len(objects) :, 0] = np.tile(wanted, regions.sum())
    spread["crowd"][len(objects) :] = True
    content.annotations = Annotations(
        **{name: array(columns[name].typecode, table.tobytes()) for name, table in spread.items()}
    )
    return [f"{regions.sum()} regions are ignored, for every class"]


def find_json(root, split):
    """(root, json, image folders to look in, split found)."""
    root = Path(root)
    for used in STANDS_IN[split]:
        path = root / "annotations" / f"{used}.json"
        if path.is_file():
            return root, path, [root / "frames", root / used, root / "images", root], used
    if not root.is_dir():
        raise UserError(f"cocovid: there is no folder {root.absolute()}; {TREE}")
    raise NoPart(
        f"cocovid: no annotations/{split}.json below {root.absolute()}; {TREE}\n"
        "or name a file with --ann FILE"
    )
