"""The page that tells what a detector finds, misses and mistakes: report.html."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from report import charts, sections, training
from report.analysis import SCORE, analyze
from report.pictures import Pictures
from utils import page
from utils.evaluator import Evaluator

PAGE = "report.html"  # its usual name
STYLE = (
    charts.STYLE
    + """
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: 1rem 0;
  list-style: none; font: inherit; }
a { color: var(--bar); }
.tiles { display: grid; gap: .6rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(7rem, 1fr)); }
.tiles div { padding: .5rem .8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts div { display: flex; flex-wrap: wrap; gap: 0 .8rem; } .facts dd { margin: 0; }
.facts dt { color: var(--soft); min-width: 7rem; } .facts dd { overflow-wrap: anywhere; }
pre { overflow-x: auto; font: 13px/1.5 ui-monospace, monospace; }
section p { max-width: 46rem; }
table + p, .wide + p { margin-top: .5rem; }
.pictures.large { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.pictures.small { grid-template-columns: repeat(auto-fill, minmax(min(9rem, 46%), 1fr)); }
td.text, th.text { min-width: 16rem; text-align: left; white-space: normal; }
.charts.broad { grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)); }
@media print {
  nav { display: none; }
  .pictures.large, .charts, .charts.broad { grid-template-columns: 1fr 1fr; }
  .pictures.small { grid-template-columns: repeat(6, 1fr); gap: .4rem; }
}
"""
)


def write_report(
    path: str | Path,
    evaluator: Evaluator,
    records,
    *,
    title: str,
    read: Callable[[Path], np.ndarray],
    folder: str | Path | None = None,
    train=None,
    facts: dict[str, str] | None = None,
):
    """Writes the page on the detections of a filled evaluator.

    `records` are those of the set, `read(path)` reads one of its images; `folder` is that of the
    run, if there is one, `train` the records it learnt from; `facts` are shown by their names.
    """
    analysis = analyze(evaluator.truth, evaluator.found(), evaluator.classes)
    pictures = Pictures(analysis, records, read)
    run = training.read(folder)
    numbers, names = evaluator.compute(), evaluator.classes
    parts = [
        ("Numbers", "-: there is no object of this kind.", sections.scores(evaluator)),
        ("Classes", "", sections.classes(numbers)),
        (
            "Curves",
            "The best precision at each recall or a greater one, and what a threshold brings.",
            sections.curves(analysis, names),
        ),
        (
            "Errors",
            "By TIDE's definitions (arXiv 2008.08115): which kind of error costs how much AP50.",
            sections.errors(analysis),
        ),
        (
            "Confusion",
            f"Counts at IoU 0.5 and a score from {SCORE} on. Boxes and objects are paired by their "
            "overlap, whatever their classes. Last column: boxes on nothing; last row: missed.",
            sections.confused(analysis),
        ),
        ("Sizes and shapes", "", sections.sizes(analysis)),
        (
            "Worst images",
            f"Those with most errors from a score of {SCORE} on. Dashed: annotated.",
            _grid(pictures.worst(), "large"),
        ),
        (
            "Missed objects",
            f"No box of their class with a score from {SCORE} on finds them; the largest first.",
            _grid(pictures.missed(), "small"),
        ),
        (
            "Most confident false boxes",
            "Red: the box; white: annotated objects. Some may be missing in the annotation.",
            _grid(pictures.false(), "small"),
        ),
    ]
    if run is not None:
        drawn = sections.charts_of(training.figures(run), "broad")
        parts.append(("Training", training.unmatched(run), drawn))
    data = sections.statistics(evaluator.truth, records, train)
    about = sections.recipe(run.recipe if run else {}, facts or {}, run.environment if run else "")
    parts += [("Data", "", data), ("Recipe and environment", "", about)]
    parts = [(heading, text, content) for heading, text, content in parts if content]
    links = "".join(f"<li><a href='#{_anchor(part[0])}'>{part[0]}</a></li>" for part in parts)
    summary, *_ = records.summary().splitlines()
    tiles = sections.tiles(numbers, analysis, len(records))
    page.write(
        path,
        title,
        [
            "<a class='skip' href='#main'>To the content</a>",
            f"<header><h1>{escape(title)}</h1>",
            f"<p class='soft'>{escape(summary)}</p></header>",
            f"<nav aria-label='Sections'><ul>{links}</ul></nav><main id='main'>{tiles}",
            *(_section(*part) for part in parts),
            "</main>",
        ],
        STYLE,
    )


def _section(heading: str, text: str, content: str) -> str:
    anchor = _anchor(heading)
    text = f"<p class='soft'>{escape(text)}</p>" if text else ""
    return (
        f"<section aria-labelledby='{anchor}'><h2 id='{anchor}'>{escape(heading)}</h2>"
        f"{text}{content}</section>"
    )


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _grid(figures: list[str], kind: str) -> str:
    if not figures:
        return "<p>None.</p>"
    return f"<div class='pictures {kind}'>{''.join(figures)}</div>"
