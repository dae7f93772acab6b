"""Reader of COCO detection files: one json, images in a folder beside it.

    ROOT/annotations/instances_{train,val}2017.json, images in ROOT/{train,val}2017/
    ROOT/annotations/instances_{train,val}.json,     images in ROOT/{train,val}/
    ROOT/{train,valid,test}/_annotations.coco.json,  images in the same folder

ROOT/images/{train,val}2017/ is found too, and ROOT may be the folder that holds `coco/`.
"""

import os
from pathlib import Path

import numpy as np

from data.builder import Builder
from data.coco_json import load
from data.faults import name_some
from data.pairs import own_classes
from data.splits import SPLIT_NAMES, STANDS_IN, NoPart, stand_in
from utils.errors import UserError


def read(root, split, classes=None, *, faults, annotation=None, images=None):
    """Records of split "train", "val" or "test"; class i is the i-th category by id.

    `classes` selects and orders categories by name. `annotation` and `images` name a json and
    its images where they lie elsewhere than in the usual tree. "val" and "test" stand in for each
    other.
    """
    root, notes = Path(root), []
    base = root
    if annotation is None:
        base, annotation, folders, used = find_json(root, split)
        notes = stand_in(split, used)
    else:
        annotation = Path(annotation)
        folders = _folders_near(root, annotation, split)
    if images is not None:
        folders = [Path(images)]
    content = load(annotation, faults)
    folder = image_folder(folders, content.images.files.names(), annotation)
    if classes is None:
        classes = own_classes(base, root)
    return assemble(content, folder, classes, annotation, faults, notes=notes)


def find_json(root, split):
    """(root, json, image folders to look in, split found) of the usual trees."""
    root, tried = Path(root), []
    for used in STANDS_IN[split]:
        for base in (root, root / "coco", root / "COCO"):
            for name in (f"{used}2017", used):
                path = base / "annotations" / f"instances_{name}.json"
                tried.append(path)
                if path.is_file():
                    return base, path, [base / name, base / "images" / name, base / "images"], used
            for name in SPLIT_NAMES[used]:
                path = base / name / "_annotations.coco.json"
                tried.append(path)
                if path.is_file():
                    return base, path, [path.parent], used
    if not root.is_dir():
        raise UserError(f"coco: there is no folder {root}; see --root")
    raise NoPart(
        f"coco: no {split} annotations below --root {root}; looked for "
        f"{', '.join(str(path.relative_to(root)) for path in tried[:3])} and the same in coco/; "
        "name a file with --ann FILE --images DIR, or see docs/data.md"
    )


def _folders_near(root, annotation, split):
    """Where the images of a json named by the user may lie."""
    bases = dict.fromkeys((annotation.parent, annotation.parent.parent, root))
    names = (f"{split}2017", split, "images", f"images/{split}2017", f"images/{split}", ".")
    return [base / name for base in bases for name in names]


def image_folder(folders, files, annotation):
    """The first folder that holds one of the first images."""
    for folder in folders:
        if not files or any(os.path.isfile(folder / file) for file in files[:20]):
            return folder
    raise UserError(
        f"coco: the images of {annotation} ({name_some(files)}) lie in none of "
        f"{name_some(folders)}; name their folder with --images"
    )


def _classes(named, wanted, path, faults):
    """(names, the set's own ids, {category id: label, -1 if not wanted})."""
    if not named:
        raise UserError(f'{path}: the list "categories" is missing or empty')
    id_of = {}
    for category_id in sorted(named):
        if id_of.setdefault(named[category_id], category_id) != category_id:
            detail = f"{named[category_id]}: {id_of[named[category_id]]} and {category_id}"
            faults.drop("categories share a name and were taken as one class", path, detail)
    names = tuple(id_of if wanted is None else wanted)
    missing = [name for name in names if name not in id_of]
    if len(missing) == len(names):
        raise UserError(f"{path}: no category {name_some(missing)}; it knows {', '.join(id_of)}")
    # A class that this file does not list has no objects in it, and an id nobody else has.
    id_of |= {name: max(named) + count for count, name in enumerate(missing, start=1)}
    label_of = dict.fromkeys(named.values(), -1)
    label_of |= {name: label for label, name in enumerate(names)}
    labels = {category_id: label_of[name] for category_id, name in named.items()}
    return names, tuple(id_of[name] for name in names), labels


def assemble(content, folder, classes, annotation, faults, *, notes=(), videos=(), places=None):
    """Records of a json's content; `places` are the (video, frame) of each image."""
    names, ids, label_of = _classes(content.categories, classes, annotation, faults)
    builder = Builder(folder, names, faults, ids, videos, unit="annotation", source=annotation)
    images = content.images
    rows = [
        builder.image(file, (height, width) if height else None, image_id, *place)
        for file, height, width, image_id, place in zip(
            images.files.names(),
            images.heights,
            images.widths,
            images.ids,
            places or [(-1, 0)] * len(images.ids),
            strict=True,
        )
    ]
    notes = [*notes, *_add_boxes(builder, content, rows, label_of, annotation)]
    return builder.records(notes)


def _add_boxes(builder, content, rows, label_of, path):
    """Gives the builder the boxes of images `rows` and tells which belong nowhere; notes."""
    columns = content.annotations
    content.annotations = None  # their memory is free as soon as the builder has them
    owner_ids, category_ids = np.asarray(columns.image_ids), np.asarray(columns.category_ids)
    numbers = np.asarray(columns.numbers)
    labels, known = lookup(label_of.keys(), label_of.values(), category_ids)
    rows, listed = lookup(content.images.ids, rows, owner_ids)
    for place in np.flatnonzero(~known):
        builder.faults.error(
            "annotations of a category that is not listed",
            path,
            f"{path}: annotation {numbers[place]} has category {category_ids[place]}, "
            f"which is not among the categories {name_some(sorted(label_of))}",
        )
    for place in np.flatnonzero(known & ~listed):
        detail = f"annotation {numbers[place]} of image {owner_ids[place]}"
        builder.faults.drop("annotations of images that are not listed were left out", path, detail)
    wanted = known & listed & (labels >= 0)
    builder.boxes(
        np.where(wanted, rows, -1),
        np.asarray(columns.boxes).reshape(-1, 4),
        labels,
        np.asarray(columns.crowd),
        np.asarray(columns.difficult),
        np.asarray(columns.areas),
        numbers,
    )
    unwanted = int((known & listed & (labels < 0)).sum())
    return [f"{unwanted} annotations of other classes were left out"] if unwanted else []


def lookup(keys, values, wanted):
    """(the value of each wanted key, whether it is among the keys)."""
    keys, values = np.fromiter(keys, np.int64), np.fromiter(values, np.int64)
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    order = np.argsort(keys)
    places = order[np.searchsorted(keys[order], wanted).clip(max=len(keys) - 1)]
    return values[places], keys[places] == wanted
