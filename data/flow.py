"""Reader of pairs of folders with VOC xml files, as FloW-Img comes; the folders are the split.

    ROOT/{training,test}/{images,annotations}, or the same below ROOT/FloW_IMG
    ROOT/{train,val,test}/ with images and xml files side by side

Further spellings of the folders: FOLDERS and data/pairs.py. Numbers in file names repeat between
the folders and mean nothing: ids follow the sorted order.
"""

from pathlib import Path

from data.builder import Builder
from data.faults import Faults, name_some
from data.pairs import CLASS_LIST, DOUBLES, Kind, label_files, members, own_classes
from data.pairs import find as find_pairs
from data.splits import choose, no_split, stand_in
from data.voc_xml import add_objects, found_names, parse
from utils.errors import UserError

FOLDERS = (("images", "annotations"), ("JPEGImages", "Annotations"), ("", ""))
KIND = Kind(FOLDERS, ".xml")

TREE = """expected:
  ROOT/training/images/*.jpg
  ROOT/training/annotations/*.xml
  ROOT/test/images/*.jpg
  ROOT/test/annotations/*.xml
  or the same below ROOT/FloW_IMG"""


def read(root, split, classes=None, *, faults: Faults):
    """Records of split "train", "val" or "test"; "val" and "test" stand in for each other.

    Classes: those given, else classes.txt in the root, else the names found in all folders, sorted.
    An image without an xml has no objects; an xml without an image is an error.
    """
    root = Path(root)
    found = find(root)
    if not found:
        what = "no pairs of folders below" if root.is_dir() else "there is no folder"
        raise UserError(f"flow: {what} {root.absolute()}; {TREE}\nsee docs/data.md")
    chosen = choose(found, split)
    if chosen is None:
        raise no_split("flow", root, split, found)
    pair = found[chosen]
    files, strays, doubles = members(pair, KIND.suffix)
    parsed = {xml: parse(pair.labels / xml, faults) for _, xml in files if xml}
    classes = classes or own_classes(root)
    if classes is None:
        classes = _found_classes(parsed, [each for each in found.values() if each != pair])
        if not classes:
            faults.error("sets without classes", root, _no_names(root))
    builder = Builder(root, classes, faults)
    label_of = {name: label for label, name in enumerate(classes)}
    folder = pair.images.relative_to(root).as_posix()
    bare = []
    for image, xml in files:
        if xml is None:
            bare.append(image)
            builder.image(f"{folder}/{image}")
        elif parsed[xml]:
            source = parsed[xml].path.relative_to(root).as_posix()
            row = builder.image(f"{folder}/{image}", parsed[xml].size_hw, source=source)
            add_objects(builder, row, parsed[xml], label_of, faults)
    _tell_oddities(strays, doubles, pair, faults)
    notes = [f"images of {folder}"]
    if bare:
        notes.append(f"{len(bare)} images have no xml, so no objects: {name_some(bare)}")
    notes += stand_in(split, chosen)
    return builder.records(notes)


def find(root):
    """{split: pair of folders} below a root; {} if there is none."""
    return find_pairs(root, KIND) or find_pairs(root / "FloW_IMG", KIND)


def _found_classes(parsed, others):
    """The names in use, sorted, over all folders, so that every split numbers alike."""
    found = found_names(filter(None, parsed.values()))
    unheard = Faults(collect=True)  # another split's faults are told when that split is read
    for pair in others:
        names = label_files(pair, KIND.suffix)
        xmls = (parse(pair.labels / name, unheard) for name in names)
        found |= found_names(filter(None, xmls))
    return tuple(sorted(found))


def _no_names(root):
    return (
        f"flow: no xml below {root.absolute()} has an object, so there are no class names; write "
        f"them into {root / CLASS_LIST}, one a line"
    )


def _tell_oddities(strays, doubles, pair, faults):
    faults.errors(
        "annotation files without an image",
        [pair.labels / name for name in strays],
        f"flow: {len(strays)} annotation files have no image in {pair.images}: "
        f"{name_some(strays)}; copy the images there or remove the xml files; "
        "`python -m data.check -d flow --root DIR` lists them all",
        f"no image of this name in {pair.images}",
    )
    for name in doubles:
        faults.drop(DOUBLES, name)
