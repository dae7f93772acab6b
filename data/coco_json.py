"""A COCO json as columns: read item by item, without polygons, its lists in any order."""

import os
from array import array
from dataclasses import dataclass, field

from data.builder import NO_NUMBERS
from data.faults import Faults
from data.json_stream import lists
from data.names import NameList
from utils.errors import UserError

LARGEST = 2**31 - 1  # side of an image
IDS = range(-(2**63), 2**63)  # that fit into a column
ABSENT = -(2**63)  # of a further number that an image does not have
NOT_MARKED = ("", "0", "false")  # marks that are texts, and mean no


@dataclass
class Images:
    """Columns of the list "images"; sides are 0 where the json has none that can be."""

    files: NameList = field(default_factory=NameList)
    ids: array = field(default_factory=lambda: array("q"))
    heights: array = field(default_factory=lambda: array("i"))
    widths: array = field(default_factory=lambda: array("i"))
    further: dict[str, array] = field(default_factory=dict)  # whole numbers by key


@dataclass
class Annotations:
    """Columns of the list "annotations"."""

    image_ids: array = field(default_factory=lambda: array("q"))
    category_ids: array = field(default_factory=lambda: array("q"))
    numbers: array = field(default_factory=lambda: array("q"))  # their own ids
    boxes: array = field(default_factory=lambda: array("d"))  # four each: xyxy pixels
    crowd: array = field(default_factory=lambda: array("b"))
    difficult: array = field(default_factory=lambda: array("b"))  # as data.convert marks them
    areas: array = field(default_factory=lambda: array("d"))  # 0 where there is none


@dataclass
class Content:
    """What a json holds."""

    images: Images
    annotations: Annotations
    categories: dict[int, str]  # names by id
    videos: dict[int, str]


def load(path, faults: Faults, image_keys=()) -> Content:
    """The content of a json; `image_keys` are further whole numbers of an image, or ABSENT."""
    images = Images(further={key: array("q") for key in image_keys})
    content, found = Content(images, Annotations(), {}, {}), set()
    for key, items in lists(path):
        found.add(key)
        if key == "images":
            _add_images(content.images, items, path, faults)
        elif key == "annotations":
            _add_annotations(content.annotations, items, path, faults)
        elif key == "categories":
            _add_names(content.categories, items, key, path, faults)
        elif key == "videos":
            _add_names(content.videos, items, key, path, faults)
    if "images" not in found:
        raise UserError(f'{path}: no COCO annotations, for there is no list "images" in it')
    return content


def _add_images(images, items, path, faults):
    seen = set()
    for item in items:
        try:
            file, image_id = _file(item, path), _whole(item, "id", path)
            further = [_whole(item, key, path) if key in item else ABSENT for key in images.further]
        except UserError as error:
            faults.error("images without a valid name or id", path, str(error))
            continue
        if image_id in seen:
            sentence = f"{path}: image id {image_id} is there twice ({file})"
            faults.error("images whose id is there twice", path, sentence)
            continue
        seen.add(image_id)
        size_hw = item.get("height"), item.get("width")
        if not all(type(side) is int and 0 < side <= LARGEST for side in size_hw):
            detail = f"height {size_hw[0]!r:.20}, width {size_hw[1]!r:.20}"
            faults.drop("images of no valid size in the json were measured", file, detail)
            size_hw = 0, 0
        images.files.append(file)
        images.ids.append(image_id)
        images.heights.append(size_hw[0])
        images.widths.append(size_hw[1])
        for column, number in zip(images.further.values(), further, strict=True):
            column.append(number)


def _add_annotations(columns, items, path, faults):
    for position, item in enumerate(items):
        try:
            image_id = _whole(item, "image_id", path)
            category_id = _whole(item, "category_id", path)
        except UserError as error:
            faults.error("annotations without a valid image or category", path, str(error))
            continue
        number, area, bbox = item.get("id"), item.get("area"), item.get("bbox")
        if type(number) is not int or number not in IDS:
            number = position
        try:
            x, y, width, height = map(float, bbox if isinstance(bbox, list) else ())
        except (TypeError, ValueError, OverflowError):
            detail = f"annotation {number} of image {image_id}: bbox {bbox!r:.60}"
            faults.drop(NO_NUMBERS, path, detail)
            continue
        columns.image_ids.append(image_id)
        columns.category_ids.append(category_id)
        columns.numbers.append(number)
        columns.boxes.extend((x, y, x + width, y + height))
        columns.crowd.append(_marked(item.get("iscrowd")))
        columns.difficult.append(_marked(item.get("difficult")))
        columns.areas.append(area if type(area) in (int, float) and 0 < area < 1e30 else 0)


def _add_names(named, items, key, path, faults):
    """The name of each id of the categories or videos."""
    for item in items:
        try:
            number, name = _whole(item, "id", path), str(_field(item, "name", path))
        except UserError as error:
            faults.error(f"{key} without a valid name or id", path, str(error))
            continue
        if named.setdefault(number, name) != name:
            sentence = f'{path}: id {number} is there twice in "{key}": {named[number]}, {name}'
            faults.error(f"{key} whose id is there twice", path, sentence)


def _marked(value):
    """Whether a mark is set; some tools write it as a text."""
    return value.strip().lower() not in NOT_MARKED if isinstance(value, str) else bool(value)


def _field(item, key, path):
    """A value that must be there."""
    try:
        return item[key]
    except (KeyError, TypeError):
        raise UserError(f'{path}: no "{key}" in {str(item)[:100]}') from None


def _file(image, path):
    """An image's file name; written under Windows it may hold backslashes."""
    name = str(_field(image, "file_name", path)).replace("\\", "/")
    try:
        usable = name and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise UserError(f'{path}: "file_name" is no name of a file in {str(image)[:100]!a}')
    return name


def _whole(item, key, path):
    """A whole number that must be there."""
    value = _field(item, key, path)
    if type(value) is not int:
        try:
            whole = int(value)
        except (TypeError, ValueError, OverflowError):
            whole = None
        if whole is None or (isinstance(value, float) and whole != value):
            raise UserError(f'{path}: "{key}" is no integer in {str(item)[:100]}')
        value = whole
    if value not in IDS:
        raise UserError(f'{path}: "{key}" is out of range in {str(item)[:100]}')
    return value
