"""The parts of a set (train, val, test), each read once: what data.check and data.convert share."""

import numpy as np

import data
from data.faults import Faults
from data.records import Records
from utils import cli
from utils.errors import UserError


def add_part_flags(group):
    """Adds --split (several), --ann, --images and --classes."""
    group.add_argument(
        "--split",
        nargs="+",
        choices=data.SPLITS,
        metavar="NAME",
        help="parts to take: train, val, test (all; with one --ann: train)",
    )
    group.add_argument(
        "--ann", nargs="+", metavar="FILE", help="COCO json, if elsewhere (two: of train and val)"
    )
    group.add_argument(
        "--images", nargs="+", metavar="DIR", help="its images, if elsewhere (two: as --ann)"
    )
    group.add_argument("--classes", metavar="FILE", help="class names, one a line (the set's own)")


def read_parts(name: str, args, gather: bool = False) -> dict[str, tuple[Records, Faults]]:
    """{split: (Records, Faults)} of the parts that `args` asks for.

    A part that stands in for another (VOC has no val beside test) is there once, as the first of
    the two. With `gather` faults are noted rather than raised, and the Records of a part that
    cannot be read are None, unless that is true of all.
    """
    wanted = args.split or (data.SPLITS[: len(args.ann)] if args.ann else data.SPLITS)
    splits = [split for split in data.SPLITS if split in wanted]
    parts: dict[str, tuple[Records, Faults]] = {}
    errors = []
    for split in splits:
        faults = Faults(gather)
        options = {
            "classes": args.classes,
            "annotation": cli.of_split(args.ann, split),
            "images": cli.of_split(args.images, split),
        }
        try:
            records = data.read(name, args.root, split, faults=faults, **options)
        except UserError as error:
            leave_out = "" if args.split or split == "train" else "; --split train leaves it out"
            errors.append(UserError(f"{error}{leave_out}"))
            if not gather:
                raise errors[0] from None
            faults.error("parts of the set cannot be read", "", str(errors[-1]))
            records = None
        if split != "test" or "val" not in parts or not _same(records, parts["val"][0]):
            parts[split] = records, faults
    if len(errors) == len(splits):
        raise errors[0]
    return parts


def split_off(records: Records, share: float, seed: int) -> tuple[Records, Records]:
    """(rest, about `share` of the images drawn at random), each at least one; videos stay whole."""
    groups = np.where(records.video >= 0, records.video, -1 - np.arange(len(records)))
    groups, group_of = np.unique(groups, return_inverse=True)
    if len(groups) < 2:
        raise UserError(f"{records.root}: one image or video cannot be split in two")
    count = min(max(round(share * len(groups)), 1), len(groups) - 1)
    held_out = np.random.default_rng(seed).permutation(len(groups)) < count
    chosen = held_out[group_of]
    return records.subset(np.flatnonzero(~chosen)), records.subset(np.flatnonzero(chosen))


def _same(records: Records | None, val: Records | None) -> bool:
    """Whether test is val under another name (or neither can be read): one stands in for both."""
    if records is None or val is None:
        return records is val
    return records.root == val.root and records.files == val.files
