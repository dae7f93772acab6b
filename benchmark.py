"""Measure a part of the project, alone or in turn with a peer.

    python benchmark.py PART --help

Each part says in its own help what it measures and how. Flags without a part are those of
inference; `--flops` is the part flops.
"""

import argparse
import sys

from benchmarks import (
    clip,
    evaluation,
    flops,
    inference,
    loading,
    matching,
    memory,
    operators,
    step,
    streaming,
    video,
)
from utils import cli
from utils.errors import UserError
from utils.log import say

PARTS = {
    "step": step,
    "clip": clip,
    "inference": inference,
    "flops": flops,
    "loading": loading,
    "evaluation": evaluation,
    "matching": matching,
    "memory": memory,
    "operators": operators,
    "video": video,
    "streaming": streaming,
}


def parse_arguments(part: str, argv: list[str]) -> argparse.Namespace:
    text = PARTS[part].__doc__
    parser = cli.Parser(
        prog=f"benchmark.py {part}",
        description=text.split("\n\n")[0],
        epilog=text.split("\n\n")[-1],
    )
    PARTS[part].add_flags(parser)
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def part_of(argv: list[str]) -> tuple[str, list[str]]:
    """(the part that a command names, its flags)."""
    first, *rest = argv or ["help"]
    name = {"-h": "help"}.get(first, first.removeprefix("--"))
    if first.startswith("-") and name not in (*PARTS, "help"):
        return "inference", argv
    return name, rest


def main():
    part, flags = part_of(sys.argv[1:])
    if part == "help":
        say(__doc__.strip() + "\n\nPARTS")
        for name, module in PARTS.items():
            say(f"  {name:12s} {module.__doc__.splitlines()[0]}")
        return
    if part not in PARTS:
        raise UserError(cli.unknown("part", part, PARTS))
    PARTS[part].run(parse_arguments(part, flags))


if __name__ == "__main__":
    cli.run_main(main)
