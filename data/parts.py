"""The parts of a set (train, val, test), each read once: what data.check and data.convert share."""

from dataclasses import dataclass

import numpy as np

import data
from data.faults import Faults
from data.records import Records
from utils import cli
from utils.errors import UserError


def add_part_flags(group):
    """Adds -d and the other data flags, and --split (several)."""
    cli.add_data_flags(group, data.READERS)
    group.add_argument(
        "--split",
        nargs="+",
        choices=data.SPLITS,
        metavar="NAME",
        help="parts to take: train, val, test (all; with one --ann: train)",
    )


@dataclass(frozen=True)
class Source:
    """A set as the data flags name it."""

    kind: str
    root: str
    annotations: list[str] | None = None  # one, or two: to train on, to evaluate on
    images: list[str] | None = None
    classes: str | None = None
    years: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The parts that it may have."""
        return data.SPLITS[: len(self.annotations)] if self.annotations else data.SPLITS

    def read(self, split: str, faults: Faults | None = None) -> Records:
        return data.read(
            self.kind,
            self.root,
            split,
            faults=faults,
            classes=self.classes,
            annotation=cli.of_split(self.annotations, split),
            images=cli.of_split(self.images, split),
            years=self.years,
        )


def source_of(args: cli.Arguments) -> Source:
    """The set that the flags of a command name."""
    return Source(args.dataset, args.root, args.ann, args.images, args.classes, args.voc_train)


def read_parts(
    source: Source, wanted=None, gather: bool = False
) -> dict[str, tuple[Records, Faults]]:
    """{split: (Records, Faults)} of the parts that are wanted (all).

    A part that stands in for another (VOC has no val beside test) is there once, as the first of
    the two. With `gather` faults are noted rather than raised, and the Records of a part that
    cannot be read are None, unless that is true of all.
    """
    splits = [split for split in data.SPLITS if split in (wanted or source.splits)]
    parts: dict[str, tuple[Records, Faults]] = {}
    errors = []
    for split in splits:
        faults = Faults(gather)
        try:
            records = source.read(split, faults)
        except UserError as error:
            leave_out = "" if wanted or split == "train" else "; --split train leaves it out"
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
