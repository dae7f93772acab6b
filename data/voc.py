"""Reader of Pascal VOC folders.

    ROOT/VOCdevkit/VOC2007/{Annotations,JPEGImages,ImageSets/Main}, and VOC2012 beside it

ROOT may also be VOCdevkit itself, whichever folder holds VOC2007, or VOC2007.
"""

from pathlib import Path
from xml.etree import ElementTree

from data.records import Entry, build, name_some, read_classes
from utils.classes import VOC_CLASSES
from utils.errors import UserError
from utils.image import is_image

YEARS = {"07": (2007,), "12": (2012,), "07+12": (2007, 2012)}


def read(root, split, classes=None, years=None):
    """Records of split "train", "val" or "test" ("val" and "test" are the same images).

    Trains on the trainval lists of `years` ("07", "12" or "07+12"; by default those that are
    there) and evaluates on the 2007 test list. Classes: those given, else classes.txt in the
    root, else the twenty names if all names found are among them, else the names found, sorted.
    """
    root = Path(root)
    devkit = _devkit(root)
    train, held_out = _lists(devkit, years)
    chosen = train if split == "train" else held_out
    for path in chosen:
        if not path.is_file():
            raise UserError(f"voc: no {path}; see docs/data.md")
    notes = ["images of " + ", ".join(_short(path) for path in chosen)]
    listed = [(path.parents[2], name) for path in chosen for name in _names(path)]
    parsed = [_parse(_xml(folder, name)) for folder, name in listed]
    if classes is None:
        classes = _own_classes(root, devkit)
    if classes is None:
        others = [path for path in (*train, *held_out) if path not in chosen]
        classes = _found_classes(parsed, others)
    label_of = {name: label for label, name in enumerate(classes)}
    shelves = {folder: _shelf(folder) for folder in dict.fromkeys(folder for folder, _ in listed)}
    entries, missing = [], []
    for (folder, name), tree in zip(listed, parsed, strict=True):
        file = shelves[folder].get(name) or shelves[folder].get(Path(_text(tree, "filename")).stem)
        if file is None:
            missing.append(folder / "JPEGImages" / name)
            continue
        entry = Entry(file.relative_to(devkit).as_posix(), _size(tree))
        _add_objects(entry, tree, label_of, _xml(folder, name))
        entries.append(entry)
    if missing:
        raise UserError(f"voc: {len(missing)} listed images are missing: {name_some(missing)}")
    return build(devkit, classes, entries, notes=notes)


def _devkit(root):
    """The folder that holds VOC2007 or VOC2012."""
    inside = [root.parent] if (root / "ImageSets").is_dir() else []
    for folder in (root / "VOCdevkit", root, *inside):
        if any((folder / f"VOC{year}" / "ImageSets" / "Main").is_dir() for year in (2007, 2012)):
            return folder
    raise UserError(
        f"voc: no VOCdevkit/VOC2007/ImageSets/Main below --root {root}; see docs/data.md"
    )


def _lists(devkit, years):
    """(lists to train on, lists to evaluate on), which share no images."""
    if years is not None and years not in YEARS:
        raise UserError(f"voc: years {years!r} is not known; choose among {', '.join(YEARS)}")
    main = {year: devkit / f"VOC{year}" / "ImageSets" / "Main" for year in (2007, 2012)}
    there = [year for year in (2007, 2012) if main[year].is_dir()]
    held_out = main[there[0]] / "test.txt"
    if not held_out.is_file():
        held_out = main[there[0]] / "val.txt"
    train = []
    for year in YEARS[years] if years else there:
        # trainval holds the val images, so it must not be trained on where val is evaluated.
        whole = main[year] / "trainval.txt"
        shared = held_out == main[year] / "val.txt" and held_out.is_file()
        train.append(main[year] / "train.txt" if shared or not whole.is_file() else whole)
    return train, [held_out]


def _short(path):
    return f"{path.parents[2].name} {path.name}"


def _names(path):
    """Image names of a list file, without the 1 or -1 that lists by class have after them."""
    if not path.is_file():
        return []
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    spaced = {line for line in lines if " " in line and _xml(path.parents[2], line).is_file()}
    return [line if line in spaced else line.split()[0] for line in lines if line]


def _xml(folder, name):
    return folder / "Annotations" / f"{name}.xml"


def _shelf(folder):
    """{stem: path} of the images of a year, whatever their extension."""
    return {path.stem: path for path in sorted((folder / "JPEGImages").glob("*")) if is_image(path)}


def _parse(path):
    """The xml's root element; document types and entities, which can explode, are refused."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content or b"\0" in content:
        raise UserError(f"{path}: refused, for it declares a document type or is no 8-bit text")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: no valid xml ({error})") from None


def _text(element, tag):
    """Text of a child, empty if there is none."""
    return (element.findtext(tag) or "").strip()


def _own_classes(root, devkit):
    """The class list the user put beside the data, or None."""
    for folder in (root, devkit):
        if (folder / "classes.txt").is_file():
            return read_classes(folder / "classes.txt")
    return None


def _found_classes(parsed, others):
    """Class list by the names in use, over all lists, so that every split numbers alike."""
    found = {_text(item, "name") for tree in parsed for item in tree.findall("object")}
    for path in others:
        for name in _names(path):
            xml = _xml(path.parents[2], name)
            if xml.is_file():
                found |= {_text(item, "name") for item in _parse(xml).findall("object")}
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _size(tree):
    """(h, w) as noted; None, so that the file is asked, where it is missing or zero."""
    try:
        size_hw = int(_text(tree, "size/height")), int(_text(tree, "size/width"))
    except ValueError:
        return None
    return size_hw if min(size_hw) > 0 else None


def _add_objects(entry, tree, label_of, path):
    """Adds an xml's objects; an unknown class is an error that names it."""
    for number, item in enumerate(tree.findall("object")):
        name = _text(item, "name")
        if name not in label_of:
            raise UserError(
                f"{path}: object {number} is a {name!r}, which is not among the classes "
                f"{', '.join(label_of)}; correct it or list your classes in classes.txt"
            )
        corners = [_coordinate(item, tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
        entry.add(corners, label_of[name], difficult=_text(item, "difficult") == "1")


def _coordinate(item, tag):
    """0-based pixel; not a number where the xml has none."""
    try:
        return int(float(_text(item, f"bndbox/{tag}"))) - 1
    except (ValueError, OverflowError):
        return float("nan")
