"""The report of data.check as one HTML page that needs no other file."""

import base64
from html import escape
from pathlib import Path

import cv2
import numpy as np

from data.check_images import printed
from data.films import Images
from data.findings import LEVELS, Finding, by_kind
from utils.errors import UserError

NAMES = 20  # findings of a kind that are listed
PICTURES, PER_KIND, SIDE = 12, 3, 320  # how many, of one kind at most, and their longest side
MARK, RING = (40, 40, 235), 16  # BGR of a box; radius of the ring round one too small to see
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --ground: #fcfcfd; --card: #fff;
  --line: #d9d9e0; --bar: #3e63dd; --error: #ce2c31; --warning: #ab6400; --remark: #60646c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --soft: #b0b4ba; --ground: #111113; --card: #18191b; --line: #363a3f;
    --bar: #9eb1ff; --error: #ff9592; --warning: #ffca16; --remark: #b0b4ba; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--ground); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h2 + .soft { margin-top: -.5rem; }
.soft { color: var(--soft); margin: .2rem 0 .6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
figure, details { margin: 0; padding: .6rem 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
details { margin-bottom: .5rem; }
summary { font-weight: 600; cursor: pointer; }
figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; margin-top: .5rem; }
svg rect { fill: var(--bar); }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); }
th, td { border: 1px solid var(--line); padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
ul { margin: .3rem 0 0; padding-left: 1.2rem; font: 13px/1.6 ui-monospace, monospace; }
li { overflow-wrap: anywhere; }
.error { color: var(--error); }
.warning { color: var(--warning); }
.remark { color: var(--remark); }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.pictures img { display: block; max-width: 100%; margin: 0 auto .5rem; border-radius: 4px; }
"""


def write(path, title: str, result: str, table, charts, findings: list[Finding]):
    """Writes the page; table and charts as data.check makes them."""
    sections = [
        f"<h1>{escape(title)}</h1><p class='soft'>{escape(result)}</p>",
        *(_faults(level, findings) for level in ("error", "warning")),
        _pictures(findings),
        f"<h2>Classes</h2><div class='wide'>{_table(table)}</div>",
        f"<h2>Sizes</h2><div class='charts'>{''.join(_chart(*chart) for chart in charts)}</div>",
        _faults("remark", findings),
    ]
    page = (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # File names need not be valid text.
        Path(path).write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; see --html") from error


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


def _table(rows) -> str:
    heading, *body = rows
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in heading)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _chart(title: str, bins) -> str:
    """A figure of horizontal bars: a line for each bin."""
    most, step = max((number for _, number in bins), default=0), 24
    lines = []
    for place, (name, number) in enumerate(bins):
        y, length = place * step, 250 * number / max(most, 1)
        lines.append(
            f"<text x='84' y='{y + 16}' text-anchor='end'>{escape(name)}</text>"
            f"<rect x='92' y='{y + 4}' width='{length:.1f}' height='16' rx='2'/>"
            f"<text x='{98 + length:.1f}' y='{y + 16}'>{number}</text>"
        )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption><svg role='img' "
        f"aria-label='{escape(title)}' viewBox='0 0 410 {len(bins) * step}'>"
        f"{''.join(lines)}</svg></figure>"
    )


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
    _, encoded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 80))
    content = base64.b64encode(encoded).decode()
    return (
        f"<figure><img alt='' src='data:image/jpeg;base64,{content}'>"
        f"<figcaption><span class='{finding.level}'>{escape(finding.kind)}</span><br>"
        f"{escape(finding.line())}</figcaption></figure>"
    )
