"""Reader of Pascal VOC folders.

    ROOT/VOCdevkit/VOC2007/{Annotations,JPEGImages,ImageSets/Main}, and VOC2012 beside it
    ROOT/{Annotations,JPEGImages,ImageSets/Main}, a set of one's own

ROOT may also be VOCdevkit itself, whichever folder holds VOC2007, or VOC2007. Where there are no
lists, the pairs of folders of data/flow.py are read.
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from data import flow
from data.builder import Builder
from data.faults import Faults, name_some
from data.pairs import DOUBLES, own_classes
from data.splits import no_split
from data.voc_xml import add_objects, found_names, parse
from utils.classes import VOC_CLASSES
from utils.errors import UserError
from utils.image import is_image

YEARS = {"07": (2007,), "12": (2012,), "07+12": (2007, 2012)}
UNDATED = 0  # the year of a folder that names none
LIST_MARKS = ("1", "0", "-1")  # what lists by class have after a name

TREE = """expected:
  ROOT/VOCdevkit/VOC2007/Annotations/*.xml
  ROOT/VOCdevkit/VOC2007/JPEGImages/*.jpg
  ROOT/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt and test.txt
  ROOT/VOCdevkit/VOC2012/... (if you have it), or, for a set of your own:
  ROOT/{Annotations,JPEGImages,ImageSets/Main}"""


@dataclass(frozen=True)
class Devkit:
    """Where a set lies: `base`, to which file names are relative, and the folder of each year."""

    base: Path
    folders: dict[int, Path]

    def lists(self, year):
        return self.folders[year] / "ImageSets" / "Main"


def read(root, split, classes=None, *, faults: Faults, years=None):
    """Records of split "train", "val" or "test" ("val" and "test" are one part).

    Trains on the trainval lists of `years` ("07", "12" or "07+12"; by default those that are
    there) and evaluates on the 2007 test list; lists train, val and test without a trainval are
    three parts. Classes: those given, else classes.txt in the root, else the twenty names if all
    names found are among them, else the names found, sorted.
    """
    root = Path(root)
    devkit = find(root)
    if devkit is None:
        if years is None and flow.find(root):
            return flow.read(root, split, classes, faults=faults)
        raise missing(root)
    chosen, others = _lists(devkit, years, split)
    for path in chosen:
        if not path.is_file():
            raise UserError(f"voc: no list {path.absolute()}, the images of this part; {TREE}")
    if not chosen:
        raise no_split("voc", root, split, ("train",))
    parsed = {path: _parse_all(path, faults) for path in chosen}
    if classes is None:
        classes = own_classes(root, devkit.base)
    if classes is None:
        classes = _found_classes(parsed, others)
    builder = Builder(devkit.base, classes, faults)
    label_of = {name: label for label, name in enumerate(classes)}
    for path in chosen:
        _add_images(builder, path, parsed[path], label_of, faults)
    return builder.records(["images of " + ", ".join(_short(path, devkit) for path in chosen)])


def find(root):
    """The Devkit below a root, or None."""
    inside = [root.parent] if root.name in ("VOC2007", "VOC2012") else []
    for base in (root / "VOCdevkit", root, *inside):
        folders = {year: base / f"VOC{year}" for year in (2007, 2012)}
        there = {y: folder for y, folder in folders.items() if _has_lists(folder)}
        if there:
            return Devkit(base, there)
    return Devkit(root, {UNDATED: root}) if _has_lists(root) else None


def missing(root):
    """The error for a root that holds no VOC set."""
    where = root.absolute()
    what = "no VOCdevkit/VOC2007/ImageSets/Main below" if root.is_dir() else "there is no folder"
    return UserError(
        f"voc: {what} {where}; {TREE}\n`bash data/download_voc07.sh {shlex.quote(str(root))}` "
        "fetches VOC2007; see docs/data.md"
    )


def _has_lists(folder):
    return (folder / "ImageSets" / "Main").is_dir()


def _lists(devkit, years, split):
    """(lists of a split, lists of the others); what is trained on and evaluated on is disjoint."""
    if years is not None and years not in YEARS:
        raise UserError(f"voc: years {years!r} is not known; choose among {', '.join(YEARS)}")
    wanted = YEARS[years] if years else tuple(devkit.folders)
    absent = [f"VOC{year}/ImageSets/Main" for year in wanted if year not in devkit.folders]
    if absent and split == "train":
        raise UserError(
            f"voc: years {years}, but {devkit.base.absolute()} has no {' and no '.join(absent)}; "
            "leave the years out to train on what is there"
        )
    first = devkit.lists(next(iter(devkit.folders)))
    parts = {part: _held_out(first, part) for part in ("val", "test")}
    mains = [devkit.lists(year) for year in wanted if year in devkit.folders]
    parts["train"] = [_train_list(main, parts["val"]) for main in mains]
    chosen = parts.pop(split)
    others = dict.fromkeys(path for paths in parts.values() for path in paths if path.is_file())
    return chosen, [path for path in others if path not in chosen]


def _held_out(main, split):
    """The lists to evaluate on: test, or else val; each for itself where there is no trainval."""
    parts = split == "val" and not (main / "trainval.txt").is_file()
    order = ("val.txt", "test.txt") if parts else ("test.txt", "val.txt")
    return [main / name for name in order if (main / name).is_file()][:1]


def _train_list(main, held_out):
    """trainval; but train where val is evaluated, for trainval holds the val images."""
    train, whole = main / "train.txt", main / "trainval.txt"
    if main / "val.txt" in held_out:
        return train
    return train if train.is_file() and not whole.is_file() else whole


def _short(path, devkit):
    folder = path.parents[2]
    return path.name if folder == devkit.base else f"{folder.name} {path.name}"


def _names(path, faults):
    """Image names of a list file, each once; an empty list is an error."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        sentence = f"{path}: cannot be read as a list of image names ({error})"
        faults.error("lists cannot be read", path, sentence)
        return []
    names = {}
    for line in filter(None, map(str.strip, lines)):
        name = _name(line, path.parents[2])
        if name in names:
            faults.drop("names that a list has twice were taken once", path.name, name)
        names[name] = None
    if not names:
        faults.error(
            "lists are empty",
            path,
            f"{path}: the list is empty; it must have the images' names, one a line, no endings",
        )
    return list(names)


def _name(line, folder):
    """The image name of a line: without the mark of lists by class, or an image's ending."""
    head, _, mark = line.rpartition(" ")
    cut = head.rstrip() if mark in LIST_MARKS else ""
    for name in (line, cut, os.path.splitext(cut or line)[0]):
        # Not Path.is_file, which fails on a line that is too long for a name.
        if name and os.path.isfile(_xml(folder, name)):
            return name
    return cut or line


def _xml(folder, name):
    return folder / "Annotations" / f"{name}.xml"


def _parse_all(path, faults):
    """{name: annotation} of a list's images, None where the xml cannot be read."""
    return {name: parse(_xml(path.parents[2], name), faults) for name in _names(path, faults)}


def _found_classes(parsed, others):
    """Class list by the names in use, over all lists, so that every split numbers alike."""
    found = set()
    for annotations in parsed.values():
        found |= found_names(filter(None, annotations.values()))
    unheard = Faults(collect=True)  # another split's faults are told when that split is read
    for path in others:
        found |= found_names(filter(None, _parse_all(path, unheard).values()))
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _add_images(builder, path, parsed, label_of, faults):
    """Adds the images of a list with their objects; missing ones are an error that counts them."""
    folder = path.parents[2]
    shelf = _shelf(folder)
    absent = []
    for name, annotation in parsed.items():
        if annotation is None:
            continue
        noted = PureWindowsPath(annotation.filename)  # both / and \ part its folders
        found = shelf.get(name) or (() if noted.stem in parsed else shelf.get(noted.stem))
        if not found:
            absent.append(folder / "JPEGImages" / name)
            continue
        image = folder / "JPEGImages" / (noted.name if noted.name in found else found[0])
        for other in found:
            if other != image.name:
                faults.drop(DOUBLES, image.with_name(other).relative_to(builder.root).as_posix())
        source = annotation.path.relative_to(builder.root).as_posix()
        row = builder.image(
            image.relative_to(builder.root).as_posix(), annotation.size_hw, source=source
        )
        add_objects(builder, row, annotation, label_of, faults)
    faults.errors(
        "listed images are missing",
        absent,
        f"voc: {len(absent)} listed images are missing: {name_some(absent)}; copy them there or "
        f"take them out of {path}; `python -m data.check -d voc --root DIR` lists them all",
        f"no image of this name, which {path.name} lists",
    )


def _shelf(folder):
    """{stem: file names} of the images of a year, whatever their extension."""
    shelf = {}
    for path in sorted((folder / "JPEGImages").glob("*")):
        if is_image(path):
            shelf.setdefault(path.stem, []).append(path.name)
    return shelf
