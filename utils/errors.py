"""What went wrong and the user can mend."""

from pathlib import Path


class UserError(Exception):
    """A mistake of the user's making, told in a sentence: what, where, what to do (exit code 2)."""


class DataError(UserError):
    """An image or label that turned out bad after the run had begun."""


def cannot_write(path: str | Path, error: OSError) -> UserError:
    """The error to raise where a file could not be written."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; make room or name another folder"
    )
