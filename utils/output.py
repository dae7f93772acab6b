"""Where the pictures of test.py and demo.py go: into a window, a folder, or both."""

import argparse
from pathlib import Path

from utils import cli, run_folder, window
from utils.log import say

FOLDER = "detections"


def add_flags(group):
    """Adds --show, --save, --save_txt, --save_json, --slice and --overlap."""
    group.add_argument("--show", action="store_true", help="show the pictures in a window")
    group.add_argument(
        "--save",
        metavar="DIR",
        help=f"write the pictures there (without --show: a new folder {FOLDER}/N)",
    )
    group.add_argument(
        "--save_txt",
        action="store_true",
        help="write labels/NAME.txt: class, centre, size, score; fractions of the picture",
    )
    group.add_argument(
        "--save_json", action="store_true", help="write detections.json: file, classes, boxes"
    )
    group.add_argument(
        "--slice",
        type=cli.whole(32),
        metavar="PX",
        help="detect in tiles of this side as well, for small objects in large pictures",
    )
    group.add_argument(
        "--overlap",
        type=cli.real(0, 0.9),
        default=0.2,
        metavar="X",
        help="part of a tile that it shares with its neighbour (0.2)",
    )


class Output:
    """What the flags ask for and the machine allows: `shown`, `written`, and the `folder()`."""

    def __init__(self, args: argparse.Namespace):
        self.shown = args.show and window.can_show()
        self.written = bool(args.save) or not self.shown
        self._save, self._folder = args.save, None
        self._instead = args.show and not self.shown

    def folder(self) -> Path:
        """--save, else the next free detections/N, made when it is first asked for."""
        if self._folder is None:
            self._folder = Path(self._save) if self._save else run_folder.numbered(Path(FOLDER))
            if self._instead:
                say(f"no window can be opened here: the pictures are written to {self._folder}")
        return self._folder

    def least_score(self, threshold: float) -> float:
        """The score from which on detections are wanted: a window's threshold can be lowered."""
        return min(threshold, window.LOWEST) if self.shown else threshold

    def report(self):
        """Says where the results are, if there are any."""
        if self._folder is not None:
            say(f"results: {self._folder}")
