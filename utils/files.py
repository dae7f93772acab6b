"""Files written whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError


def replace_file(
    path: str | Path, write: Callable[[BinaryIO], object], elsewhere: str = "another folder"
):
    """Writes a file by `write`, which is given it open; whatever fails, the one that was there
    stays as it was. `elsewhere` is what a full disk's sentence tells to choose."""
    path = Path(path)
    part = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        if os.name == "posix":  # the rename itself reaches the disk with its folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as a RuntimeError raised from the OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write {path}: {cause.strerror or cause}; make room on the disk or choose "
            f"{elsewhere} (a file that was there before is unharmed)"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where not even its folder could be made
            part.unlink(missing_ok=True)
