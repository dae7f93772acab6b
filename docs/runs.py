"""The runs that the tables of these pages are made of: each a command, done where it is missing."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # those of two trainings at once would wait actively


def command(script: str, flags: Sequence[str], output: Path, *, one_thread: bool = False):
    """One of the project's commands; what it says goes to a file. A UserError if it fails."""
    environment = os.environ | (ONE_THREAD if one_thread else {})
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w") as file:
        call = [sys.executable, str(ROOT / script), *flags]
        done = subprocess.run(call, stdout=file, stderr=file, env=environment)
    if done.returncode:
        raise UserError(f"{script} ended with {done.returncode}; see {output}")


def finished(folder: Path) -> list[Path]:
    """The folders of the runs below --save_folder that have come to their end."""
    return [path.parent for path in sorted(folder.glob("*/*/*/metrics.json"))]


def launch(script: str, folder: Path, flags: Sequence[str], *, one_thread: bool = False) -> Path:
    """The folder of a run below --save_folder, trained where it is missing."""
    if not finished(folder):
        flags = [*flags, "--save_folder", str(folder)]
        command(script, flags, folder / "output.txt", one_thread=one_thread)
    return finished(folder)[0]
