"""What the classes of a video set's own list mean: classes, or regions to be ignored.

A region is neither object nor background; it has no class of its own and is ignored for every one.
Evaluation goes by class: so a region is a crowd of each.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from data.builder import Builder
from data.faults import name_some
from data.pairs import CLASS_LIST
from data.yolo_txt import UNKNOWN
from utils.errors import UserError

# Names under which sets list regions among their classes, in small letters.
IGNORED = ("ignore", "ignored", "ignore region", "ignored region", "ignored regions")
VISDRONE, WITH_IT = "ignored regions", ("other", "others")  # in a list that has the first
REGION, UNWANTED = -1, -2  # what a number means that is no label


def ignored_among(names) -> set[str]:
    """The names of a class list that are regions to be ignored."""
    plain = {name: " ".join(re.split(r"[\s_-]+", name.strip().lower())) for name in names}
    words = (*IGNORED, *WITH_IT) if VISDRONE in plain.values() else IGNORED
    return {name for name in plain if plain[name] in words}


@dataclass(frozen=True)
class Numbering:
    """What the numbers of a set mean, from `first` on: a label, REGION or UNWANTED."""

    names: tuple[str, ...]  # along which they count
    classes: tuple[str, ...]  # label i is class i
    category_ids: tuple[int, ...]  # the set's own id of each class
    meanings: tuple[int, ...]
    first: int

    def meaning(self, number: int) -> int | None:
        """None for a number that has no name."""
        place = number - self.first
        return self.meanings[place] if 0 <= place < len(self.meanings) else None


def numbering(own, wanted, where: str, *, first: int = 0, ids_from: int = 1) -> Numbering:
    """The Numbering along a set's `own` names, of which `wanted` are classes (None: all).

    Without own names (None) the wanted ones are counted along. The set's json files give the first
    name the id `ids_from`.
    """
    names = tuple(wanted if own is None else own)
    ignored = ignored_among(names)
    if own is None and ignored:
        # A checkpoint keeps the classes alone, and along them an evaluation would miscount.
        raise UserError(
            f"{where}: {name_some(ignored)} is no class, so the list has to lie with the set: "
            f"write it to {CLASS_LIST} in its folder instead of naming it with --classes"
        )
    known = tuple(name for name in names if name not in ignored)
    classes = known if wanted is None else tuple(n for n in wanted if n not in ignored)
    if not set(classes) & set(known):
        raise UserError(
            f"{where}: none of the classes {name_some(classes) or 'named'} is known to the set, "
            f"whose list has {name_some(names)}"
        )
    label_of = {name: label for label, name in enumerate(classes)} | dict.fromkeys(ignored, REGION)
    # A class that the set does not know has no objects in it, and an id that nobody else has.
    id_of = {name: place for place, name in enumerate(dict.fromkeys(names + classes), ids_from)}
    return Numbering(
        names,
        classes,
        tuple(id_of[name] for name in classes),
        tuple(label_of.get(name, UNWANTED) for name in names),
        first,
    )


@dataclass
class Objects:
    """Adds the objects of label files to a builder, by number; counts what becomes no object."""

    builder: Builder
    numbers: Numbering
    unwanted: int = field(default=0, init=False)
    regions: int = field(default=0, init=False)

    def add(self, row: int, box, number: int, line: int, path: Path, counts: bool = True):
        """Adds what stands in a line of the file `path`; what does not count is ignored."""
        meaning = self.numbers.meaning(number)
        if meaning is None and counts:
            self._tell(number, line, path)
        elif meaning == UNWANTED and counts:
            self.unwanted += 1
        elif meaning is not None and meaning >= 0:
            self.builder.box(row, box, meaning, crowd=not counts, number=line)
        else:
            self.regions += 1
            for label in range(len(self.numbers.classes)):
                self.builder.box(row, box, label, crowd=True, number=line)

    def notes(self) -> list[str]:
        """What was left out, and what is ignored."""
        counted = (
            (self.unwanted, "objects of other classes were left out"),
            (self.regions, "regions are ignored, for every class"),
        )
        return [f"{count} {sentence}" for count, sentence in counted if count]

    def _tell(self, number, line, path):
        first, names = self.numbers.first, self.numbers.names
        self.builder.faults.error(
            UNKNOWN,
            path,
            f"{path}, line {line}: class {number}, but the set's list has {len(names)} (numbers "
            f"{first} to {first + len(names) - 1}: {name_some(names)}); correct the line or the "
            "list",
        )
