"""What data.check finds, in three levels; errors first, and within a kind in the set's order."""

from dataclasses import dataclass
from pathlib import Path

LEVELS = {
    "error": "stop a training, or spoil what it learns",
    "warning": "left out or mended when read, or likely slips",
    "remark": "worth knowing; nothing need be done",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them; `image` and `box` (xyxy pixels) say what a picture of it shows."""

    level: str
    kind: str  # a sentence in the plural, the same for all of its sort
    split: str  # "" for what concerns the whole set
    file: str
    detail: str = ""
    image: Path | None = None
    box: tuple[float, ...] | None = None

    def line(self) -> str:
        """Where it is and what it is, without its kind."""
        # Readers' sentences begin with the file's path, which need not be named twice.
        told = self.file and self.detail.partition(": ")[0].endswith(self.file)
        where = " ".join(filter(None, (self.split, "" if told else self.file)))
        return ": ".join(filter(None, (where, self.detail)))


def by_kind(findings: list[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """{(level, kind): findings}, errors first, each level in the order in which kinds came up."""
    groups = {}
    for level in LEVELS:
        for finding in findings:
            if finding.level == level:
                groups.setdefault((level, finding.kind), []).append(finding)
    return groups


def count(findings: list[Finding]) -> dict[str, int]:
    """{level: how many}."""
    return {level: sum(finding.level == level for finding in findings) for level in LEVELS}
