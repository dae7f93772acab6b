"""Weights' names in other people's files, as tables, and how to turn one kind into another."""

import re
from collections.abc import Iterable

# Rows are (ours, their convolution, their norm) or (ours, theirs), without what follows the last
# dot. A # stands for a number; a name's numbers stay in their order.
Names = tuple[tuple[str, ...], ...]
Rules = list[tuple[re.Pattern, str]]

TORCHVISION: Names = (
    ("stem", "conv1", "bn1"),
    *((f"layer#.#.conv{k}", f"layer#.#.conv{k}", f"layer#.#.bn{k}") for k in (1, 2, 3)),
    ("layer#.#.downsample", "layer#.#.downsample.0", "layer#.#.downsample.1"),
)


def pairs(names: Names, ours_prefix: str = "", their_prefix: str = "") -> list[tuple[str, str]]:
    """(ours, theirs) as prefixes that end in a dot; norms first, whose names may go on from those
    of their convolutions."""
    found = []
    for ours, theirs, *norm in names:
        ours, theirs = ours_prefix + ours, their_prefix + theirs
        found += [(f"{ours}.bn.", f"{their_prefix}{name}.") for name in norm]
        found += [(f"{ours}.conv." if norm else f"{ours}.", f"{theirs}.")]
    return found


def rules(pairs: Iterable[tuple[str, str]]) -> Rules:
    """What `renamed` needs to turn names that begin with the first of a pair into the second."""
    return [
        (re.compile(re.escape(old).replace(r"\#", r"(\d+)")), new.replace("#", "{}"))
        for old, new in pairs
    ]


def renamed(name: str, rules: Rules) -> str:
    """The name by the first rule that it begins with; others stay as they are."""
    for pattern, template in rules:
        if match := pattern.match(name):
            return template.format(*match.groups()) + name[match.end() :]
    return name
