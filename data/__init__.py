"""Readers, augmentation and loading; READERS is the one table of formats."""

import inspect

from data import (
    coco,
    cocovid,
    custom,
    flow,
    mot,
    synthetic,
    synthetic_video,
    visdrone_vid,
    voc,
    xsvid,
    yolo,
    yolo_video,
)
from data.clips import Window
from data.faults import Faults
from data.files import check_files
from data.loader import build_loader
from data.records import Records, read_classes
from data.splits import SPLIT_NAMES
from utils import cli
from utils.errors import UserError

__all__ = ["READERS", "SPLITS", "Window", "build_loader", "check_files", "read", "read_named"]

READERS = {
    "coco": coco.read,
    "cocovid": cocovid.read,
    "voc": voc.read,
    "flow": flow.read,
    "yolo": yolo.read,
    "yolovideo": yolo_video.read,
    "xsvid": xsvid.read,
    "xsvid-v2": xsvid.read_v2,
    "visdrone": visdrone_vid.read,
    "mot": mot.read,
    "custom": custom.read,
    "synthetic": synthetic.read,
    "synthetic-tiny": synthetic.read_tiny,
    "synthetic-video": synthetic_video.read,
}
SPLITS = tuple(SPLIT_NAMES)


def read(name, root, split, *, classes=None, limit=None, faults=None, **options) -> Records:
    """Records of a split of the set of format `name` below `root`, the first `limit` images of it.

    `classes` is a tuple of names or a file of them; options that are None are left to the reader.
    `faults` is told what is wrong with the set (by default the first error is raised).
    """
    if name not in READERS:
        raise UserError(cli.unknown("data set of kind", name, READERS))
    reader = READERS[name]
    options = {key: value for key, value in options.items() if value is not None}
    if classes:
        options["classes"] = read_classes(classes) if isinstance(classes, str) else classes
    for option in sorted(options.keys() - inspect.signature(reader).parameters.keys()):
        flag = custom.FLAGS.get(option, option)
        raise UserError(f"data sets of kind {name} do not take {flag}; leave that flag out")
    records = reader(root, split, faults=faults or Faults(), **options)
    return records if limit is None else records.limit(limit)


def read_named(args: cli.Arguments, split: str) -> Records:
    """The records of one split of the set that the data flags name, every file of it checked."""
    records = read(args.dataset, args.root, split, **cli.reader_options(args, split))
    check_files(records)
    return records
