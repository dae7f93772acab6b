"""What is wrong with a data set: errors stop a run, drops are counted; data.check collects both."""

from dataclasses import dataclass

from utils.errors import UserError

NAMES_SHOWN = 3  # files named in a sentence about several


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `kind` is the same for all of its sort, `file` the one to open and mend."""

    kind: str
    file: str
    detail: str
    fatal: bool


class Faults:
    """Collects the faults of a set as its reader meets them.

    A reader calls `error` for what a training must not start with: the sentence is raised, unless
    `collect` is set (data.check), when it is noted, and the reader leaves that object or image out.
    `drop` is for what is left out, or mended, in every case.
    """

    def __init__(self, collect: bool = False):
        self.collect = collect
        self.found: list[Fault] = []

    def error(self, kind: str, file, sentence: str):
        """Raises UserError(sentence), or notes it when collecting."""
        if not self.collect:
            raise UserError(sentence)
        self.found.append(Fault(kind, str(file), sentence, True))

    def drop(self, kind: str, file, detail: str = ""):
        self.found.append(Fault(kind, str(file), detail, False))

    def notes(self) -> list[str]:
        """A sentence for each kind that was dropped: how many, and the first files."""
        files: dict[str, list[str]] = {}
        for fault in self.found:
            if not fault.fatal:
                files.setdefault(fault.kind, []).append(fault.file)
        return [
            f"{len(names)} {kind}: {name_some(list(dict.fromkeys(names)))}"
            for kind, names in files.items()
        ]


def name_some(names) -> str:
    """The first few of many names, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
