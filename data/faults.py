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

    def errors(self, kind: str, files, whole: str, single: str):
        """An error for each of several files: raises `whole`, about all, or notes `single`."""
        for file in files:
            self.error(kind, file, single if self.collect else whole)

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


def name_some(names, shown: int = NAMES_SHOWN) -> str:
    """The first few of many names, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
