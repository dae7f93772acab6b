"""Curves as inline drawings, and matrices as tables of shaded cells."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from utils import page

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 300, 54, 14, 24, 42  # pixels
COLORS = 6  # --c0 ... of the page's style
STYLE = """
svg .axis, svg .grid { stroke: var(--line); fill: none; }
svg .grid { opacity: .6; }
svg .unit { fill: var(--soft); }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg polyline.faint { stroke: var(--soft); stroke-width: 1; opacity: .35; }
svg circle { stroke: var(--card); stroke-width: 2; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); stroke-dasharray: 7 3; }
.s2 { stroke: var(--c2); stroke-dasharray: 2 3; }
.s3 { stroke: var(--c3); stroke-dasharray: 9 3 2 3; }
.s4 { stroke: var(--c4); stroke-dasharray: 4 2; }
.s5 { stroke: var(--c5); stroke-dasharray: 12 4; }
ul.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; list-style: none;
  font: .85rem/1.6 system-ui, sans-serif; }
ul.legend svg { display: inline-block; width: 1.8rem; height: .6rem; margin: 0 .4rem 0 0; }
ul.legend line { stroke-width: 3; }
.matrix th, .matrix td { padding: .15rem .45rem; text-align: center; }
.matrix th[scope=row] { text-align: left; white-space: nowrap; }
.matrix thead th { vertical-align: bottom; font-weight: 400; }
.matrix .down { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
.matrix .none { color: var(--soft); }
"""


class Curve(NamedTuple):
    name: str
    x: Sequence[float]
    y: Sequence[float]


def curves(
    title: str,
    drawn: Sequence[Curve],
    x: str,
    y: str,
    *,
    faint: Sequence[Curve] = (),
    top: float | None = None,
    mark: tuple[float, float] | None = None,
    note: str = "",
) -> str:
    """A figure of curves, at most COLORS of them, over those that are `faint`; y begins at 0 and
    ends at `top` if given; `mark` is a point to draw."""
    every = [*drawn, *faint]
    left, right = min(min(c.x) for c in every), max(max(c.x) for c in every)
    right = right if right > left else left + 1
    most = top or max(max(c.y) for c in every) * 1.05 or 1.0

    def place(at, value):
        across = LEFT + (at - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - value / most * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    def line(curve, kind):
        points = " ".join(place(*point) for point in zip(curve.x, curve.y, strict=True))
        name = f"<title>{escape(curve.name)}</title>"
        return f"<polyline class='{kind}' points='{points}'>{name}</polyline>"

    parts = [_axes(left, right, most, x, y)]
    parts += [line(curve, "faint") for curve in faint]
    parts += [line(curve, f"s{i}") for i, curve in reversed(list(enumerate(drawn)))]
    if mark:
        across, down = place(*mark).split(",")
        parts.append(f"<circle cx='{across}' cy='{down}' r='6' fill='var(--c0)'/>")
    told = "; ".join(f"{c.name} ends at {c.y[-1]:.4g}, greatest {max(c.y):.4g}" for c in drawn)
    svg = (
        f"<svg role='img' aria-label='{escape(f'{title}. {x} against {y}: {told}')}' "
        f"viewBox='0 0 {WIDTH} {HEIGHT}'>{''.join(parts)}</svg>"
    )
    caption = f"{escape(title)}{f'<br>{escape(note)}' if note else ''}"
    names = [curve.name for curve in drawn]
    return page.figure(caption, svg + (_legend(names) if len(names) > 1 else ""))


def _axes(left: float, right: float, most: float, x: str, y: str) -> str:
    bottom, parts = HEIGHT - BOTTOM, []
    for value in _ticks(0, most):
        down = bottom - value / most * (bottom - TOP)
        parts.append(f"<path class='grid' d='M{LEFT} {down:.1f}H{WIDTH - RIGHT}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{down + 4:.1f}' text-anchor='end'>{value:g}</text>")
    for value in _ticks(left, right):
        across = LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        parts.append(
            f"<text x='{across:.1f}' y='{bottom + 16}' text-anchor='middle'>{value:g}</text>"
        )
    parts.append(f"<path class='axis' d='M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}'/>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f"<text class='unit' x='{middle}' y='{HEIGHT - 8}' text-anchor='middle'>{escape(x)}</text>"
        f"<text class='unit' x='0' y='11'>{escape(y)}</text>"
    )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers of the range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f"<li><svg aria-hidden='true' viewBox='0 0 30 6'><line class='s{i}' x1='0' y1='3' x2='30' "
        f"y2='3'/></svg>{escape(name)}</li>"
        for i, name in enumerate(names)
    )
    return f"<ul class='legend'>{items}</ul>"


def thinned(curve: Curve, count: int = 160) -> Curve:
    """The means of about so many stretches of a long curve."""
    if len(curve.x) <= 2 * count:
        return curve
    parts = [np.array_split(np.asarray(column, float), count) for column in (curve.x, curve.y)]
    x, y = ([float(part.mean()) for part in column] for column in parts)
    return Curve(curve.name, x, y)


def matrix(names: Sequence[str], counts: np.ndarray, rows: str, columns: str) -> str:
    """Counts [R, R] as a table: green where both are the same, red elsewhere, the more the deeper;
    the last column's share is that of the other errors."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    most, of_column = max(int(wrong.max(initial=0)), 1), counts.sum(0)
    heads = "".join(f"<th scope='col'><span class='down'>{escape(n)}</span></th>" for n in names)
    lines = []
    for i, name in enumerate(names):
        cells = []
        for j, count in enumerate(counts[i].tolist()):
            share = count / max(of_column[j], 1) if i == j else count / most
            color = "--c2" if i == j else "--c4"
            color = f"color-mix(in srgb, var({color}) {55 * share:.0f}%, transparent)"
            cells.append(
                f"<td style='background: {color}'>{count}</td>"
                if count
                else "<td class='none'>0</td>"
            )
        lines.append(f"<tr><th scope='row'>{escape(name)}</th>{''.join(cells)}</tr>")
    corner = f"<th scope='col'>{escape(rows)} ↓<br>{escape(columns)} →</th>"
    content = (
        f"<table class='matrix'><thead><tr>{corner}{heads}</tr></thead>{''.join(lines)}</table>"
    )
    return page.wide(content, f"{rows} against {columns}")
