"""Reader of YOLO txt labels: beside the images a folder of files as data/yolo_txt.py reads them.

    ROOT/images/{train,val,test}/ and ROOT/labels/{train,val,test}/, with or without 2017
    ROOT/{train,valid,test}/{images,labels}/
    ROOT/classes.txt, or ROOT/data.yaml with `names:`

Further spellings of the folders: data/pairs.py.
"""

from pathlib import Path

from data.builder import Builder
from data.faults import Faults, name_some
from data.files import sizes_of
from data.pairs import CLASS_LIST, DOUBLES, Kind, label_files, members, own_classes
from data.pairs import find as find_pairs
from data.splits import choose, no_split, stand_in
from data.yaml_names import has_keypoints, read_names
from data.yolo_txt import CONFIDENCES, POLYGONS, UNKNOWN, parse
from utils.errors import UserError

KIND = Kind((("images", "labels"), ("", "")), ".txt")
TREE = """expected:
  ROOT/images/train/*.jpg
  ROOT/labels/train/*.txt
  ROOT/images/val/*.jpg
  ROOT/labels/val/*.txt
  ROOT/classes.txt or ROOT/data.yaml"""


def read(root, split, classes=None, *, faults: Faults):
    """Records of split "train", "val" or "test"; "val" and "test" stand in for each other.

    The numbers in the files count along classes.txt, else `names:` in data.yaml, else `classes`;
    without any of them they are the names. `classes` selects and orders names of the first two.
    """
    root = Path(root)
    found = find(root)
    if not found:
        what = "no images with label files below" if root.is_dir() else "there is no folder"
        raise UserError(f"yolo: {what} {root.absolute()}; {TREE}\nsee docs/data.md")
    chosen = choose(found, split)
    if chosen is None:
        raise no_split("yolo", root, split, found)
    _refuse_keypoints(root)
    pair = found[chosen]
    files, strays, doubles = members(pair, KIND.suffix)
    folder, labels = (each.relative_to(root).as_posix() for each in (pair.images, pair.labels))
    notes = [f"images of {folder}"]
    parsed = parse_all(pair, files, labels, faults, notes)
    numbered = numbered_classes(root, found) or classes
    if numbered is None:
        numbered = counted(parsed, [each for each in found.values() if each != pair])
        notes.append(f"no {CLASS_LIST} and no data.yaml: classes are called by their numbers")
    classes = classes or numbered
    builder = Builder(root, classes, faults, unit="line")
    label_of = _labels(numbered, classes, root)
    sizes = sizes_of(pair.images, [image for image, _ in files], faults)
    unwanted = 0
    for (image, txt), size_hw in zip(files, sizes, strict=True):
        if size_hw is None:
            continue
        row = builder.image(f"{folder}/{image}", size_hw, source=f"{labels}/{txt}" if txt else "")
        for line, number, fractions in parsed.get(txt, ()):
            if number >= len(label_of):
                _tell_class(pair.labels / txt, line, number, numbered, faults)
            elif label_of[number] is None:
                unwanted += 1
            else:
                builder.box(row, pixels(fractions, size_hw), label_of[number], number=line)
    if unwanted:
        notes.append(f"{unwanted} objects of other classes were left out")
    for name in strays:
        faults.drop("label files have no image and were left out", f"{labels}/{name}")
    for name in doubles:
        faults.drop(DOUBLES, f"{folder}/{name}")
    notes += stand_in(split, chosen)
    return builder.records(notes)


def find(root):
    """{split: pair of folders} below a root; {} if there is none."""
    return find_pairs(root, KIND)


def parse_all(pair, files, labels, faults, notes):
    """{name: its rows} of the label files that belong to images; adds to notes what is odd."""
    odd = {POLYGONS: [], CONFIDENCES: []}
    before = len(faults.found)
    names = [txt for _, txt in files if txt]
    parsed = {txt: parse(pair.labels / txt, f"{labels}/{txt}", faults, odd) for txt in names}
    bare = [image for image, txt in files if txt is None]
    if files and not names:
        faults.error(
            "label files are named unlike their images",
            pair.labels,
            f"yolo: no label file in {pair.labels} is named as an image in {pair.images}, such as "
            f"{name_some(bare)}; each needs the image's name with .txt",
        )
    if len(faults.found) > before and not any(parsed.values()):
        first = faults.found[before]
        faults.error(
            "no line of the labels could be read",
            pair.labels,
            f"yolo: no line of the label files in {pair.labels} could be read ({first.file}, "
            f"{first.detail}); a line is `class cx cy w h`, the last four in 0..1",
        )
    if bare:
        notes.append(f"{len(bare)} images have no txt, so no objects: {name_some(bare)}")
    for kind, where in odd.items():
        if where:
            notes.append(f"{len(where)} {kind}: {name_some(dict.fromkeys(where))}")
    return parsed


def numbered_classes(root, found):
    """The class list that lies with the data, or None: classes.txt, or `names:` of a yaml file."""
    folders = [pair.labels for pair in found.values()]
    names = own_classes(root, *folders, *(folder.parent for folder in folders))
    return names or next(filter(None, map(read_names, _yamls(root))), None)


def _yamls(root):
    """The yaml files of a set, data.yaml first."""
    paths = (root / "data.yaml", *sorted((*root.glob("*.yaml"), *root.glob("*.yml"))))
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def _refuse_keypoints(root):
    for path in _yamls(root):
        if has_keypoints(path):
            raise UserError(
                f"{path}: the labels have key points (kpt_shape), which are not read and would be "
                "taken for polygons; cut each line to `class cx cy w h` and remove kpt_shape"
            )


def counted(parsed, others):
    """Names for the numbers up to the greatest of all splits, so that every split numbers alike."""
    greatest = max((row[1] for rows in parsed.values() for row in rows), default=0)
    unheard = Faults(collect=True)  # another split's faults are told when that split is read
    odd = {POLYGONS: [], CONFIDENCES: []}
    for pair in others:
        for name in label_files(pair, KIND.suffix):
            rows = parse(pair.labels / name, name, unheard, odd)
            greatest = max([greatest, *(row[1] for row in rows)])
    return tuple(f"class {number}" for number in range(greatest + 1))


def _labels(numbered, wanted, root):
    """The label of each number of the files, None if its class is not wanted."""
    label_of = {name: label for label, name in enumerate(wanted)}
    if not label_of.keys() & set(numbered):
        raise UserError(
            f"yolo: none of the classes {name_some(wanted)} is known to {root}, whose list has "
            f"{name_some(numbered)}"
        )
    return [label_of.get(name) for name in numbered]


def pixels(fractions, size_hw):
    """(x1, y1, x2, y2) in pixels of an image of this size."""
    height, width = size_hw
    x1, y1, x2, y2 = fractions
    return x1 * width, y1 * height, x2 * width, y2 * height


def _tell_class(path, line, number, names, faults):
    faults.error(
        UNKNOWN,
        path,
        f"{path}, line {line}: class {number}, but the set's list has {len(names)} (numbers 0 to "
        f"{len(names) - 1}: {name_some(names)}); correct the line or the list",
    )
