"""Report every fault of a data set, with file names and counts: annotations, images, classes.

python -m data.check -d voc --root datasets
python -m data.check -d coco --ann mine.json --images photos --html report.html
python -m data.check -d custom --root PATH --split train --fast

Exit code 0: no errors (there may be warnings); 1: errors; 2: the set cannot be read at all.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import data
from data import check_labels, check_page
from data.check_images import double_findings, image_findings
from data.check_json import json_files, json_findings
from data.faults import Faults
from data.findings import LEVELS, Finding, by_kind, count
from data.parts import add_part_flags, read_parts, source_of
from data.records import Records
from utils import cli
from utils.log import say

SHOWN = {"error": 20, "warning": 20, "remark": 5}  # of a kind, that are listed without --all
SIDES = (0, 8, 16, 32, 64, 128, 256, 512, np.inf)  # pixels of the input: bins of box sides
OBJECTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, np.inf)  # bins of objects in an image
BAR = 40  # characters of the longest bar
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
CORNERS = re.compile(rf"\({NUMBER}, {NUMBER}, {NUMBER}, {NUMBER}\)")


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m data.check",
        description=__doc__.split("\n\n")[0],
        epilog="Exit code 0: no errors; 1: errors; 2: not readable. See docs/data.md, Checking.",
    )
    group = parser.add_argument_group("data")
    add_part_flags(group)
    group = parser.add_argument_group("report")
    group.add_argument("--html", metavar="FILE", help="write a page with pictures as well")
    group.add_argument(
        "--img_size",
        type=cli.side,
        default=640,
        metavar="PX",
        help="side of the input at which box sizes are told (640)",
    )
    group.add_argument(
        "--fast", action="store_true", help="look at images' headers only; decode nothing"
    )
    group.add_argument(
        "--all", action="store_true", help="list everything, not the first few of a kind"
    )
    cli.add_debug_flag(group)
    args = parser.parse_args()
    if args.dataset is None:
        parser.error("-d is missing, the kind of data set")
    return args


def main() -> int:
    args = parse_arguments()
    read = read_parts(source_of(args), args.split, gather=True)
    parts = {split: records for split, (records, _) in read.items() if records is not None}
    boxes = {split: check_labels.measure(r, args.img_size) for split, r in parts.items()}
    for split, records in parts.items():
        say(f"{split}: {records.root}")
        for note in records.notes:
            if note not in read[split][1].notes():
                say(f"  note: {note}")
    findings = list(find(read, boxes, args.img_size, decode=not args.fast))
    findings += json_findings(args.ann or json_files(args.dataset, args.root, parts))
    if not (args.split or args.ann):  # else the other images may be those of another part
        findings += check_labels.stray_findings(parts)
    table = class_table(parts)
    charts = histograms(boxes, args.img_size)
    for line in (*columns(table), *bars(charts), *listing(findings, args.all)):
        say(line)
    numbers = count(findings)
    result = ", ".join(f"{number} {level}s" for level, number in numbers.items())
    if args.html:
        title = f"{args.dataset} {args.root}"
        check_page.write(args.html, title, result, table, charts, findings)
        say(f"page: {args.html}")
    say(result)
    return 1 if numbers["error"] else 0


def find(read, boxes, img_size: int, decode: bool) -> Iterator[Finding]:
    """Everything there is to say about {split: (Records or None, Faults)}."""
    parts = {split: records for split, (records, _) in read.items() if records is not None}
    for split, (records, faults) in read.items():
        if not decode and records is not None:
            data.check_files(records, faults=faults)
        yield from reader_findings(split, records, faults)
    if decode:
        yield from image_findings(parts)
    yield from double_findings(parts)
    for split, records in parts.items():
        yield from check_labels.box_findings(split, records, boxes[split], img_size)
    yield from check_labels.class_findings(parts)
    yield from check_labels.id_findings(parts)
    for split, records in parts.items():
        yield from check_labels.name_findings(split, records)


def reader_findings(split: str, records: Records | None, faults: Faults) -> Iterator[Finding]:
    """What the reader met, with the image and the box it is about where they can be told."""
    stems = {}
    for index, file in enumerate(records.files if records and faults.found else ()):
        stems[Path(file).stem] = None if Path(file).stem in stems else index
    for fault in faults.found:
        index = stems.get(Path(fault.file).stem)
        numbers = CORNERS.search(fault.detail)
        yield Finding(
            "error" if fault.fatal else "warning",
            fault.kind,
            split,
            fault.file,
            fault.detail,
            None if index is None else records.path(index),
            tuple(map(float, numbers.groups())) if numbers else None,
        )


def class_table(parts: dict[str, Records]) -> list[list[str]]:
    """Rows of counts by class that is used and part, a heading first and the totals last."""
    counts = {split: Counter() for split in parts}
    for split, records in parts.items():
        for label, number in Counter(records.labels.tolist()).items():
            counts[split][records.classes[label]] = number
    names = dict.fromkeys(name for records in parts.values() for name in records.classes)
    rows = [["class", *parts]]
    used = [name for name in names if any(count[name] for count in counts.values())]
    rows += [[name, *(str(counts[split][name]) for split in parts)] for name in used]
    rows.append(["boxes", *(str(len(records.boxes)) for records in parts.values())])
    rows.append(["images", *(str(len(records)) for records in parts.values())])
    return rows


def histograms(boxes: dict[str, check_labels.Boxes], img_size: int) -> list[tuple]:
    """(title, [(bin, count), ...]) of box sides and of objects in an image."""
    sides = np.concatenate([part.sides for part in boxes.values()])
    objects = np.concatenate([part.per_image for part in boxes.values()])
    return [
        (f"box side (square root of the area) in pixels at input {img_size}", _bins(sides, SIDES)),
        ("objects in an image", _bins(objects, OBJECTS)),
    ]


def _bins(values: np.ndarray, edges) -> list[tuple[str, int]]:
    """(name, count) of each bin, without the empty ones after the last that is not."""
    counts = np.histogram(values, edges)[0].tolist()
    while len(counts) > 1 and not counts[-1]:
        counts.pop()
    whole = edges[1] == 1  # bins of whole numbers name their first and last one
    names = []
    for low, high in zip(edges, edges[1 : len(counts) + 1], strict=False):
        last = high - 1 if whole else high
        name = f"{low:g}" if whole and low == last else f"{low:g} to {last:g}"
        names.append(f"{low:g} or more" if high == np.inf else name)
    return list(zip(names, counts, strict=True))


def columns(table: list[list[str]]) -> Iterator[str]:
    """A table as lines of text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    yield ""
    for name, *numbers in table:
        cells = [f"{n:>{width}}" for n, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([f"{name:{widths[0]}}", *cells])


def bars(charts: list[tuple]) -> Iterator[str]:
    """Histograms as lines of text."""
    for title, bins in charts:
        yield from ("", title)
        width, most = max(len(name) for name, _ in bins), max(number for _, number in bins)
        for name, number in bins:
            bar = "#" * -(-number * BAR // max(most, 1))  # rounded up: one is not none
            yield f"  {name:>{width}}  {bar} {number}"


def listing(findings: list[Finding], everything: bool) -> Iterator[str]:
    """The findings by level and kind."""
    level = None
    for (of_level, kind), group in by_kind(findings).items():
        if of_level != level:
            level = of_level
            yield from ("", f"{level}s ({LEVELS[level]})")
        files = len({(finding.split, finding.file) for finding in group})
        yield f"  {kind}: {len(group)}" + (f", in {files} files" if files < len(group) else "")
        shown = len(group) if everything else SHOWN[level]
        yield from (f"    {finding.line()}" for finding in group[:shown])
        if len(group) > shown:
            yield f"    ... and {len(group) - shown} more; --all lists them"
    yield ""


if __name__ == "__main__":
    cli.run_main(main)
