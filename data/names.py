"""File names of a set in one block of bytes: small, and not written to by those who read it.

Python counts references inside each object, so a list of strings is copied bit by bit into every
worker process that reads it; a block of bytes is not.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

# Names that are no valid text (os.fsdecode marks their bytes) must survive the round trip.
CODEC = ("utf-8", "surrogatepass")


class Names(Sequence):
    """An immutable sequence of strings: name i is content[starts[i]:starts[i + 1]] in UTF-8."""

    def __init__(self, content: bytes, starts: np.ndarray):
        self._content, self._starts = content, starts

    def __len__(self):
        return len(self._starts) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1:  # shares the block
                return Names(self._content, self._starts[first : max(first, last) + 1])
            return collect(self[i] for i in range(first, last, step))
        position = range(len(self))[index]  # counts negative ones from the end, or raises
        return str(self._content[self._starts[position] : self._starts[position + 1]], *CODEC)

    def __eq__(self, other):
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self):
        return hash(tuple(self))

    def __repr__(self):
        return f"Names({', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''})"


class NameList:
    """Names while they are being collected."""

    def __init__(self):
        self._content, self._starts = bytearray(), array("q", [0])

    def append(self, name: str):
        self._content += name.encode(*CODEC)
        self._starts.append(len(self._content))

    def names(self) -> Names:
        return Names(bytes(self._content), np.array(self._starts, np.int64))


def collect(names: Iterable[str]) -> Names:
    """Names of any strings."""
    collected = NameList()
    for name in names:
        collected.append(name)
    return collected.names()
