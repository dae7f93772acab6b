"""A web page that needs no other file: its style, tables, bars and pictures."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

import cv2
import numpy as np

from utils.files import replace_file

SIDE, QUALITY = 320, 80  # of a picture: its longest side at most; JPEG's
LETTER = 6.6  # pixels of a letter of a chart, about
NAME_LETTERS = 24  # of a name beside a bar; the rest is cut off
BAR, LINE = 250, 24  # pixels: length of the longest bar, height of a line
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --ground: #fcfcfd; --card: #fff;
  --line: #d9d9e0; --bar: #3e63dd; --error: #ce2c31; --warning: #ab6400; --remark: #60646c;
  --c0: #3e63dd; --c1: #d9730d; --c2: #12805c; --c3: #9333c9; --c4: #c2255c; --c5: #60646c; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --soft: #b0b4ba; --ground: #111113; --card: #18191b; --line: #363a3f;
    --bar: #9eb1ff; --error: #ff9592; --warning: #ffca16; --remark: #b0b4ba;
    --c0: #9eb1ff; --c1: #ffb267; --c2: #5fd6ae; --c3: #d9a3ff; --c4: #ff8fb1; --c5: #b0b4ba; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--ground); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h2 + .soft { margin-top: -.5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
.soft { color: var(--soft); margin: .2rem 0 .6rem; }
.charts { display: grid; gap: 1rem; margin: 0 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
figure, details { margin: 0; padding: .6rem 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
details { margin-bottom: .5rem; }
summary { font-weight: 600; cursor: pointer; }
figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; margin-top: .5rem; }
svg rect { fill: var(--bar); }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); }
th, td { border: 1px solid var(--line); padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td, th[scope=row] { white-space: nowrap; font-weight: 400; font-variant-numeric: tabular-nums; }
ul { margin: .3rem 0 0; padding-left: 1.2rem; font: 13px/1.6 ui-monospace, monospace; }
li { overflow-wrap: anywhere; }
.error { color: var(--error); }
.warning { color: var(--warning); }
.remark { color: var(--remark); }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
.pictures img { display: block; max-width: 100%; height: auto; margin: 0 auto .5rem;
  border-radius: 4px; }
@media (max-width: 34rem) {
  body { padding: 1.2rem .8rem 3rem; }
  th, td { padding: .2rem .45rem; }
}
:focus-visible { outline: 2px solid var(--bar); outline-offset: 2px; }
@media print {
  :root { --ground: #fff; }
  body { max-width: none; padding: 0; font-size: 12px; }
  figure, tr { break-inside: avoid; }
  h2, h3, h2 + .soft, tr:first-child { break-after: avoid; }
  .wide { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def write(path, title: str, sections: Iterable[str], style: str = ""):
    """Writes the page, whole or not at all; `style` is added to the common one."""
    page = (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )
    # File names need not be valid text.
    content = page.encode("utf-8", "backslashreplace")
    replace_file(path, lambda file: file.write(content))


def table(rows: Sequence[Sequence[str]], label: str, texts: Sequence[int] = ()) -> str:
    """A table, the heading first; one that is too wide can be moved sideways. `label` is its name
    for those who do not see it, `texts` are the columns that hold sentences."""
    heading, *body = rows
    kinds = [" class='text'" if place in texts else "" for place in range(len(heading))]
    lines = [
        "".join(f"<th scope='col'{k}>{escape(c)}</th>" for k, c in zip(kinds, heading, strict=True))
    ]
    for name, *cells in body:
        numbers = "".join(f"<td{k}>{escape(c)}</td>" for k, c in zip(kinds[1:], cells, strict=True))
        lines.append(f"<th scope='row'>{escape(name)}</th>{numbers}")
    return wide(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>", label)


def wide(content: str, label: str) -> str:
    """What may be wider than the screen; the keyboard can move it, too."""
    name = f"role='region' aria-label='{escape(label)}'"
    return f"<div class='wide' tabindex='0' {name}>{content}</div>"


def bars(title: str, bins: Sequence[tuple[str, float]], note: str = "", digits: int = 0) -> str:
    """A figure of horizontal bars, a line for each (name, number), below 0: no number; `note` is a
    second sentence of its caption."""
    most = max((number for _, number in bins), default=0)
    names = [_short(name) for name, _ in bins]
    left = 12 + LETTER * max(map(len, names), default=0)
    lines, texts = [], []
    for place, (name, (_, number)) in enumerate(zip(names, bins, strict=True)):
        y, length = place * LINE, BAR * max(number, 0) / (most if most > 0 else 1)
        text = "-" if number < 0 else f"{number:.{digits}f}"
        texts.append(f"{bins[place][0]} {text}")
        lines.append(
            f"<text x='{left - 8:.0f}' y='{y + 16}' text-anchor='end'>{escape(name)}</text>"
            f"<rect x='{left:.0f}' y='{y + 4}' width='{length:.1f}' height='16' rx='2'/>"
            f"<text x='{left + 6 + length:.1f}' y='{y + 16}'>{text}</text>"
        )
    width, height = left + BAR + 60, max(len(bins), 1) * LINE
    label = escape(f"{title}: {', '.join(texts) or 'nothing'}")
    return figure(
        f"{escape(title)}{f'<br>{escape(note)}' if note else ''}",
        f"<svg role='img' aria-label='{label}' viewBox='0 0 {width:.0f} {height}' "
        f"style='max-width: {width / 14:.1f}rem'>{''.join(lines)}</svg>",
    )


def figure(caption: str, content: str, below: bool = False) -> str:
    """What is shown with its caption (html) above, or below it."""
    caption = f"<figcaption>{caption}</figcaption>"
    return f"<figure>{content + caption if below else caption + content}</figure>"


def picture(image: np.ndarray, text: str = "", side: int = SIDE) -> str:
    """A BGR image as part of the page, `side` pixels wide or high at most; `text` is for those
    who do not see it."""
    ratio = min(side / max(image.shape[:2]), 1.0)
    size = max(round(image.shape[1] * ratio), 1), max(round(image.shape[0] * ratio), 1)
    if ratio < 1:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    content = base64.b64encode(encoded).decode()
    width, height = size
    return (
        f"<img alt='{escape(text)}' width='{width}' height='{height}' "
        f"src='data:image/jpeg;base64,{content}'>"
    )


def _short(name: str) -> str:
    return name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"
