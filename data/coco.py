"""Reader of COCO detection files: one json, images in a folder beside it.

    ROOT/annotations/instances_{train,val}2017.json, images in ROOT/{train,val}2017/
    ROOT/annotations/instances_{train,val}.json,     images in ROOT/{train,val}/
    ROOT/{train,valid,test}/_annotations.coco.json,  images in the same folder

ROOT/images/{train,val}2017/ is found too, and ROOT may be the folder that holds `coco/`.
"""

import json
from pathlib import Path

from data.records import Entry, build, name_some, read_classes
from utils.errors import UserError


def read(root, split, classes=None, annotation=None, images=None):
    """Records of split "train", "val" or "test"; class i is the i-th category by id.

    `classes` selects and orders categories by name. `annotation` and `images` name a json and
    its images where they lie elsewhere than in the usual tree. Without test files "test" is "val".
    """
    root, notes = Path(root), []
    if annotation is None:
        root, annotation, folders, used = _find(root, split)
        if used != split:
            notes.append(f"no {split} annotations; these are the {used} images")
    else:
        annotation = Path(annotation)
        folders = _folders_near(root, annotation, split)
    if images is not None:
        folders = [Path(images)]
    content = _load(annotation)
    files = [_file(image, annotation) for image in content["images"]]
    folder = _image_folder(folders, files, annotation)
    if classes is None and (root / "classes.txt").is_file():
        classes = read_classes(root / "classes.txt")
    names, ids, label_of = _classes(content.get("categories", []), classes, annotation)
    entries = _entries(content, label_of, annotation, notes)
    return build(folder, names, entries, category_ids=ids, notes=notes)


def _find(root, split):
    """(root, json, image folders to look in, split found) of the usual trees."""
    tried = []
    for used in {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}[split]:
        for base in (root, root / "coco", root / "COCO"):
            for name in (f"{used}2017", used):
                path = base / "annotations" / f"instances_{name}.json"
                tried.append(path)
                if path.is_file():
                    return base, path, [base / name, base / "images" / name, base / "images"], used
            folder = base / ("valid" if used == "val" else used)
            tried.append(folder / "_annotations.coco.json")
            if tried[-1].is_file():
                return base, tried[-1], [folder], used
    if not root.is_dir():
        raise UserError(f"coco: there is no folder {root}; see --root")
    raise UserError(
        f"coco: no {split} annotations below --root {root}; looked for "
        f"{', '.join(str(path.relative_to(root)) for path in tried[:3])} and the same in coco/; "
        "name a file with --ann FILE --images DIR, or see docs/data.md"
    )


def _folders_near(root, annotation, split):
    """Where the images of a json named by the user may lie."""
    bases = dict.fromkeys((annotation.parent, annotation.parent.parent, root))
    names = (f"{split}2017", split, "images", f"images/{split}2017", f"images/{split}", ".")
    return [base / name for base in bases for name in names]


def _image_folder(folders, files, annotation):
    """The first folder that holds one of the first images."""
    for folder in folders:
        if any((folder / file).is_file() for file in files[:20]):
            return folder
    raise UserError(
        f"coco: the images of {annotation} ({name_some(files)}) lie in none of "
        f"{name_some(folders)}; name their folder with --images"
    )


def _load(path):
    """The json's content without the polygons, which take most of the memory."""
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream, object_hook=_without_polygons)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no valid json ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f'{path}: no COCO annotations, for there is no list "images" in it')
    return content


def _without_polygons(item):
    item.pop("segmentation", None)
    return item


def _file(image, path):
    """An image's file name; written under Windows it may hold backslashes."""
    return str(_field(image, "file_name", path)).replace("\\", "/")


def _field(item, key, path):
    """A value that must be there."""
    try:
        return item[key]
    except (KeyError, TypeError):
        raise UserError(f'{path}: no "{key}" in {str(item)[:100]}') from None


def _classes(categories, wanted, path):
    """(names, the set's own ids, {category id: label or None if not wanted})."""
    named = {
        _number(category, "id", path): _field(category, "name", path) for category in categories
    }
    ids = sorted(named)
    if not ids:
        raise UserError(f'{path}: the list "categories" is missing or empty')
    label_of = dict.fromkeys(named)
    if wanted is not None:
        id_of = {named[category_id]: category_id for category_id in reversed(ids)}
        missing = [name for name in wanted if name not in id_of]
        if len(missing) == len(wanted):
            known = ", ".join(named[category_id] for category_id in ids)
            raise UserError(f"{path}: no category {name_some(missing)}; it knows {known}")
        # A class that this file does not list has no objects in it, and an id nobody else has.
        id_of |= {name: ids[-1] + count for count, name in enumerate(missing, start=1)}
        ids = [id_of[name] for name in wanted]
    label_of |= {category_id: label for label, category_id in enumerate(ids)}
    names = wanted if wanted is not None else [named[category_id] for category_id in ids]
    return tuple(names), tuple(ids), label_of


def _number(item, key, path):
    """An integer that must be there."""
    try:
        return int(_field(item, key, path))
    except (TypeError, ValueError):
        raise UserError(f'{path}: "{key}" is no integer in {str(item)[:100]}') from None


def _entries(content, label_of, path, notes):
    """One entry an image with its objects; adds to notes what it left out."""
    entries = {}
    for image in content["images"]:
        file, image_id = _file(image, path), _number(image, "id", path)
        if image_id in entries:
            raise UserError(f"{path}: image id {image_id} is there twice ({file})")
        sized = image.get("height") and image.get("width")
        size_hw = tuple(_number(image, key, path) for key in ("height", "width")) if sized else None
        entries[image_id] = Entry(file, size_hw, image_id)
    strays = unwanted = 0
    for item in content.get("annotations", []):
        category_id = _number(item, "category_id", path)
        entry = entries.get(_number(item, "image_id", path))
        if category_id not in label_of:
            raise UserError(
                f"{path}: annotation {item.get('id')} has category {category_id}, "
                f"which is not among the categories {name_some(sorted(label_of))}"
            )
        if entry is None:
            strays += 1
        elif label_of[category_id] is None:
            unwanted += 1
        else:
            area = item.get("area")
            area = area if isinstance(area, int | float) else None
            box, crowd = _corners(item.get("bbox")), bool(item.get("iscrowd"))
            entry.add(box, label_of[category_id], crowd=crowd, area=area)
    if strays:
        notes.append(f"{strays} annotations of images that are not listed were left out")
    if unwanted:
        notes.append(f"{unwanted} annotations of other classes were left out")
    return list(entries.values())


def _corners(xywh):
    """x1, y1, x2, y2; not a number where the json has something else than four numbers."""
    try:
        x, y, width, height = (float(value) for value in xywh)
    except (TypeError, ValueError):
        return (float("nan"),) * 4
    return x, y, x + width, y + height
