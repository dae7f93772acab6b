"""Runs' folders: the next free number, the run to go on with, and one process a run."""

import errno
import os
import platform
from pathlib import Path

from utils import checkpoint
from utils.errors import UserError

if os.name == "posix":
    import fcntl
else:
    import msvcrt

LOCK = ".lock"  # held by the process that trains in the folder
OWNER_BYTES = 200  # of the lock file, after the locked one: who holds it
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what a lock held by another process raises


def numbered(parent: Path) -> Path:
    """parent/N, made, with the next free N; safe when two processes ask at once."""
    number = 0
    while True:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            numbers = [int(path.name) for path in parent.iterdir() if path.name.isdigit()]
            number = max(number, *numbers, 0) + 1
            folder = parent / str(number)
            folder.mkdir()
            return folder
        except FileExistsError as error:
            if not parent.is_dir():
                raise UserError(
                    f"cannot make the folder {parent}: a file is in the way; name another place "
                    "with --save_folder (train.py) or --save"
                ) from error
        except OSError as error:
            raise UserError(
                f"cannot make a folder in {parent}: {error.strerror}; name another place with "
                "--save_folder (train.py) or --save"
            ) from error


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its very end: its numbers are there."""
    return (folder / "metrics.json").exists()


def find(name: str, parent: str) -> Path:
    """The last.pth of the run to go on with: of the named folder or file, or, without a name, of
    the newest unfinished run below `parent`."""
    if name:
        path = Path(name)
        last = path if path.suffix == ".pth" else path / "last.pth"
        if not path.exists():
            raise UserError(f"--resume: there is no {path}; name a run's folder, or none")
        if not last.is_file():
            raise UserError(f"--resume: {path} is no run's folder, it has no last.pth")
        return last
    found = sorted(Path(parent).glob("*/*/*/last.pth"), key=lambda p: -p.stat().st_mtime)
    for last in found:
        if not is_finished(last.parent):
            return last
    raise UserError(
        f"--resume: no unfinished run below {parent}; name a run's folder to go on with "
        "a finished one, as in --resume runs/voc/yolox-s/3 --epochs 50"
    )


def read_last(last: Path) -> dict:
    """The checkpoint to go on from."""
    saved = checkpoint.read(last)
    missing = {"recipe", "position", "optimizer", "model", "arguments", "log"} - saved.keys()
    if missing:
        raise UserError(
            f"--resume: {last} holds weights, not the state of a training (it has no "
            f"{sorted(missing)[0]}); to start from its weights use --weight {last}"
        )
    return saved


def claim(folder: Path):
    """Makes the run this process' own until it ends; a UserError if it is another one's.

    The system keeps the lock and drops it with the process, however that ends.
    """
    try:
        # Not closed, on purpose: the lock would go with it.
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {folder / LOCK}: {error.strerror}") from error
    try:
        _lock(file)
    except OSError as error:
        if error.errno not in TAKEN:
            return  # a file system that knows no locks
        os.lseek(file, 1, os.SEEK_SET)
        owner = os.read(file, OWNER_BYTES).decode(errors="replace")
        os.close(file)
        raise UserError(
            f"{folder} is in use: {owner or 'another process'} trains in it; wait for its end or "
            "stop it, or start a run of its own without --resume"
        ) from error
    os.ftruncate(file, 0)
    os.write(file, f" process {os.getpid()} on {platform.node()}".encode()[:OWNER_BYTES])


def _lock(file: int):
    """Locks the first byte, or raises an OSError at once. Unlike flock, lockf is not inherited by
    the processes that read images, which may outlive a killed run for some seconds."""
    if os.name == "posix":
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    else:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
