"""One VOC annotation file: what `data/voc.py` and `data/flow.py` have in common."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from data.faults import name_some
from utils.errors import UserError

CLASSES_SHOWN = 10  # known classes named when one is not known
LONGEST = 1 << 20  # pixels; a side noted as longer is a slip of the pen, so the image is asked


@dataclass(frozen=True)
class Annotation:
    """An xml's content; objects are (name, box xyxy in 0-based pixels, difficult)."""

    path: Path
    filename: str  # of the image, as noted in the xml
    size_hw: tuple[int, int] | None  # None, so that the image is asked, if missing or zero
    objects: tuple


def parse(path, faults):
    """The annotation of an xml file; None if it cannot be read, while faults are collected."""
    try:
        tree = _tree(path)
    except UserError as error:
        faults.error("annotation files cannot be read", path, str(error))
        return None
    objects = tuple(
        (_text(item, "name"), _box(item), _text(item, "difficult") == "1")
        for item in tree.findall("object")
    )
    return Annotation(path, _text(tree, "filename"), _size(tree), objects)


def found_names(annotations):
    """The class names in use; an object without a name is a fault that `add_objects` tells."""
    return {name for annotation in annotations for name, _, _ in annotation.objects if name}


def add_objects(builder, row, annotation, label_of, faults):
    """Adds an annotation's objects to an image; an unknown class is an error that names it."""
    for number, (name, box, difficult) in enumerate(annotation.objects):
        if name in label_of:
            builder.box(row, box, label_of[name], difficult=difficult, number=number)
            continue
        faults.error(
            "objects are of an unknown class",
            annotation.path,
            f"{annotation.path}: object {number} is a {name!r}, which is not among the classes "
            f"{name_some(label_of, CLASSES_SHOWN)}{_nearly(name, label_of)}; correct it or list "
            "your classes in classes.txt",
        )


def _tree(path):
    """The xml's root element; document types and entities, which can explode, are refused."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason or error})") from None
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content or b"\0" in content:
        raise UserError(f"{path}: refused, for it declares a document type or is no 8-bit text")
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: no valid xml ({error})") from None
    space, _, tag = tree.tag.rpartition("}")
    if tag != "annotation":
        raise UserError(f"{path}: no VOC annotation: its root is <{tag}>, not <annotation>")
    if space:
        raise UserError(f"{path}: its elements are in the namespace {space[1:]}; remove xmlns=...")
    return tree


def _text(element, tag):
    """Text of a child, empty if there is none."""
    return (element.findtext(tag) or "").strip()


def _size(tree):
    """(h, w) as noted; None where it is missing, zero or absurd."""
    try:
        size_hw = int(_text(tree, "size/height")), int(_text(tree, "size/width"))
    except ValueError:
        return None
    return size_hw if min(size_hw) > 0 and max(size_hw) < LONGEST else None


def _box(item):
    return tuple(_coordinate(item, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))


def _coordinate(item, tag):
    """0-based pixel, for VOC counts from 1; not a number where the xml has none."""
    try:
        return int(float(_text(item, f"bndbox/{tag}"))) - 1
    except (ValueError, OverflowError):
        return float("nan")


def _nearly(name, known):
    """A hint where a known name differs in case and spaces only."""
    plain = "".join(name.split()).lower()
    same = [each for each in known if "".join(each.split()).lower() == plain]
    return f" (case and spaces count: {same[0]!r} is known)" if same else ""
