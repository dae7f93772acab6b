"""Measure a part of the project, alone or in turn with a peer.

    python benchmark.py PART --help

Each part says in its own help what it measures and how. `--flops` is the part flops.
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


def main():
    part, *argv = sys.argv[1:] or ["--help"]
    if part in ("-h", "--help"):
        say(__doc__.strip() + "\n\nPARTS")
        for name, module in PARTS.items():
            say(f"  {name:12s} {module.__doc__.splitlines()[0]}")
        return
    part = part.removeprefix("--")
    if part not in PARTS:
        raise UserError(cli.unknown("part", part, PARTS))
    PARTS[part].run(parse_arguments(part, argv))


if __name__ == "__main__":
    cli.run_main(main)
