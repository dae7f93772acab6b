"""The report of data.check as one HTML page that needs no other file."""

from html import escape

import cv2
import numpy as np

from data.check_images import printed
from data.films import Images
from data.findings import LEVELS, Finding, by_kind
from utils import page
from utils.errors import UserError

NAMES = 20  # findings of a kind that are listed
PICTURES, PER_KIND, SIDE = 12, 3, 320  # how many, of one kind at most, and their longest side
MARK, RING = (40, 40, 235), 16  # BGR of a box; radius of the ring round one too small to see


def write(path, title: str, result: str, table, charts, findings: list[Finding]):
    """Writes the page; table and charts as data.check makes them."""
    sections = [
        f"<h1>{escape(title)}</h1><p class='soft'>{escape(result)}</p>",
        *(_faults(level, findings) for level in ("error", "warning")),
        _pictures(findings),
        f"<h2>Classes</h2>{page.table(table, 'Boxes of each class')}",
        f"<h2>Sizes</h2><div class='charts'>{''.join(page.bars(*chart) for chart in charts)}</div>",
        _faults("remark", findings),
    ]
    page.write(path, title, sections)


def _faults(level: str, findings) -> str:
    """A section of a level's kinds, each with its first findings; remarks are folded up."""
    kinds = []
    for (of_level, kind), group in by_kind(findings).items():
        if of_level != level:
            continue
        items = "".join(f"<li>{escape(finding.line())}</li>" for finding in group[:NAMES])
        more = len(group) - NAMES
        items += f"<li>... and {more} more</li>" if more > 0 else ""
        kinds.append(
            f"<details{'' if level == 'remark' else ' open'}>"
            f"<summary>{escape(kind)}: {len(group)}</summary><ul>{items}</ul></details>"
        )
    heading = f"<h2 class='{level}'>{level.title()}s</h2><p class='soft'>{LEVELS[level]}</p>"
    return heading + ("".join(kinds) or "<p>none</p>")


def _pictures(findings) -> str:
    figures = []
    for group in by_kind(findings).values():
        shown = [finding for finding in group if finding.image is not None][:PER_KIND]
        figures += [_figure(finding) for finding in shown]
    figures = [figure for figure in figures if figure][:PICTURES]
    return f"<h2>Pictures</h2><div class='pictures'>{''.join(figures)}</div>" if figures else ""


def _figure(finding: Finding) -> str:
    """A small picture with the box and its text; "" if the image cannot be decoded."""
    try:
        with printed():  # of a damaged image the decoder complains again
            image = Images().read(finding.image)
    except UserError:
        return ""
    ratio = min(SIDE / max(image.shape[:2]), 1.0)
    size = max(round(image.shape[1] * ratio), 1), max(round(image.shape[0] * ratio), 1)
    image = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    if finding.box is not None and np.isfinite(finding.box).all():
        box = np.clip(np.array(finding.box) * ratio, -SIDE, 2 * SIDE).round().astype(int)
        x1, y1, x2, y2 = box.tolist()
        cv2.rectangle(image, (x1, y1), (x2, y2), MARK, 2)
        if max(abs(x2 - x1), abs(y2 - y1)) < RING:
            cv2.circle(image, ((x1 + x2) // 2, (y1 + y2) // 2), RING, MARK, 2, cv2.LINE_AA)
    caption = (
        f"<span class='{finding.level}'>{escape(finding.kind)}</span><br>{escape(finding.line())}"
    )
    return page.figure(caption, page.picture(image, finding.kind), below=True)
