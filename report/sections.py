"""The sections of the page on what was found: texts, tables and charts, a function each."""

from collections.abc import Sequence
from html import escape

import numpy as np

from report import charts, confusion, groups
from report.analysis import SCORE, Analysis
from report.charts import Curve
from report.errors import FALSE, KINDS, UNFOUND
from report.precision import RECALLS, average
from utils import page
from utils.evaluator import LINES, TINY_LINES, Evaluator
from utils.voc_map import RULES

MOST_BARS = 40  # classes in one chart; of more, the best and the worst half of them
FAINT = 40  # classes whose curves are drawn behind the mean
LEVELS = 200  # of the score, at which the curves over it are drawn
COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, np.inf)  # bins of objects in an image


def tiles(numbers: dict, analysis: Analysis, images: int) -> str:
    """The few numbers that one looks for first."""
    best = analysis.thresholds
    shown = {name: _number(numbers[name]) for name in ("AP", "AP50", "AP75")}
    if len(best.scores):
        shown["best F1"] = f"{best.f1[best.best]:.3f}"
        shown["at a score from"] = f"{best.scores[best.best]:.2f}"
    shown |= {"images": str(images), "objects": str(int(analysis.truth.counted.sum()))}
    return f"<dl class='tiles'>{_pairs(shown)}</dl>"


def scores(evaluator: Evaluator) -> str:
    """COCO's numbers, VOC's two, and the notes."""
    numbers = evaluator.compute()
    lines = {**LINES, **(TINY_LINES if evaluator.of_videos else {})}
    rows = [["number", "value", "IoU", "size of objects", "at most, of a class in an image"]]
    for name, line in lines.items():
        iou = "0.50 to 0.95" if line.iou is None else f"{line.iou:.2f}"
        rows.append([name, _number(numbers[name]), iou, line.size, str(line.limit)])
    for rule, column in zip(RULES, evaluator.voc().T, strict=True):
        some = column[column >= 0]
        value = float(some.mean()) if len(some) else -1.0
        rows.append([rule, _number(value), "0.50, VOC's pixels", "all", "any number"])
    notes = "".join(f"<li>{escape(note)}</li>" for note in numbers["notes"])
    more = evaluator.extra_table()
    return (
        page.table(rows, "COCO's and VOC's numbers")
        + (f"<pre>{escape(more)}</pre>" if more else "")
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def classes(numbers: dict) -> str:
    """AP of each class as bars, best first, and all its numbers in a table."""
    rows = sorted(numbers["per_class"], key=lambda row: -row["AP"])
    some = [(row["name"], row["AP"]) for row in rows if row["objects"]]
    parts = {"AP of each class": some}
    if len(some) > MOST_BARS:
        half = MOST_BARS // 2
        parts = {f"AP of the best {half} classes": some[:half]}
        parts[f"AP of the worst {half} classes"] = some[-half:]
    heads = ("AP", "AP50", "AP75", "AR100")
    table = [["class", *heads, "objects", "detections"]]
    for row in rows:
        values = [_number(row[head]) for head in heads]
        table.append([row["name"], *values, str(row["objects"]), str(row["detections"])])
    listed = page.table(table, "Numbers of each class")
    if len(rows) > MOST_BARS:
        listed = f"<details><summary>All {len(rows)} classes</summary>{listed}</details>"
    drawn = [page.bars(title, bins, digits=3) for title, bins in parts.items() if bins]
    return charts_of(drawn) + listed


def curves(analysis: Analysis, names: Sequence[str]) -> str:
    """Precision against recall, and what a threshold on the score brings."""
    drawn = []
    for iou, of_classes in analysis.curves.items():
        some = np.flatnonzero(of_classes[:, 0] >= 0)
        if not len(some):
            return "<p>There is no object to find, so there is no curve.</p>"
        each = [Curve(names[label], RECALLS, of_classes[label]) for label in some.tolist()]
        mean = Curve("mean of the classes", RECALLS, of_classes[some].mean(0))
        few = 1 < len(each) < charts.COLORS
        drawn.append(
            charts.curves(
                f"Precision and recall at IoU {iou:.2f}",
                [mean, *(each if few else [])],
                "recall",
                "precision",
                faint=[] if few or len(each) == 1 else each[:FAINT],
                top=1.0,
                note=f"The mean's area is AP{round(100 * iou)}, {average(of_classes):.3f}."
                + ("" if few or len(each) == 1 else " Grey: single classes."),
            )
        )
    passed = analysis.thresholds
    if not len(passed.scores):
        return charts_of(drawn, "broad")
    best = passed.scores[passed.best]
    levels = np.linspace(min(0.0, passed.scores.min()), passed.scores.max(), LEVELS)
    levels = np.unique(np.append(levels, best))
    # The last detection that still passes.
    at = len(passed.scores) - 1 - np.searchsorted(passed.scores[::-1], levels)
    columns = {"F1": passed.f1, "precision": passed.precision, "recall": passed.recall}
    drawn.append(
        charts.curves(
            "F1, precision and recall by the least score, all classes together",
            [Curve(name, levels, column[at]) for name, column in columns.items()],
            "least score",
            "",
            top=1.0,
            mark=(best, passed.f1[passed.best]),
            note=f"Best at {best:.2f}: F1 {passed.f1[passed.best]:.3f}, precision "
            f"{passed.precision[passed.best]:.3f}, recall {passed.recall[passed.best]:.3f}.",
        )
    )
    return charts_of(drawn, "broad")


def errors(analysis: Analysis) -> str:
    """Each kind of error, how often it happens and what its repair would bring."""
    found = analysis.errors
    strong = np.bincount(found.kinds[analysis.strong & (found.kinds >= 0)], minlength=len(KINDS))
    counts = {**dict(zip(KINDS, strong.tolist(), strict=True)), "missed": int(found.missed.sum())}
    rows = [
        ["error", "AP50 gained", f"from score {SCORE} on", "what it is, and how it is repaired"]
    ]
    for name, text in KINDS.items():
        rows.append([name, f"{found.gains[name]:.3f}", str(counts[name]), text])
    rows.append([FALSE, f"{found.gains[FALSE]:.3f}", str(sum(strong.tolist())), "all are left out"])
    lost = int(analysis.truth.counted.sum() - analysis.match.right.sum())
    rows.append([UNFOUND, f"{found.gains[UNFOUND]:.3f}", str(lost), "none of them is counted"])
    bins = [(name, max(found.gains[name], 0.0)) for name in KINDS]
    return (
        charts_of([page.bars("AP50 gained if one kind of error did not happen", bins, digits=3)])
        + page.table(rows, "Kinds of errors", texts=(3,))
        + "<p class='soft'>The gains do not add up: each is that of one repair alone. Missed and "
        "not found are objects, without regard to the score.</p>"
    )


def confused(analysis: Analysis) -> str:
    """The matrix of confusions and its greatest entries."""
    whole = analysis.confusion
    pairs = [f"<li>{escape(a)} as {escape(b)}: {n}</li>" for a, b, n in whole.pairs()[:10]]
    shown = confusion.shortened(whole)
    most = "<h3>Most often confused</h3><ul>" + "".join(pairs) + "</ul>" if pairs else ""
    return charts.matrix(shown.names, shown.counts, "detected as", "really") + most


def sizes(analysis: Analysis) -> str:
    """AP50 of each size and each shape."""
    parts = []
    for title, found in (
        ("AP50 by the side of a square of the object's area", analysis.sizes),
        ("AP50 by the object's width and height", analysis.shapes),
    ):
        parts.append(page.bars(title, [(group.name, group.ap50) for group in found], digits=3))
    rows = [["objects", "AP50", "how many", "found by any detection"]]
    for group in (*analysis.sizes, *analysis.shapes):
        share = f"{group.found} ({group.found / group.objects:.0%})"
        rows.append([group.name, f"{group.ap50:.3f}", str(group.objects), share])
    return charts_of(parts) + page.table(rows, "AP50 by size and shape")


def statistics(truth, records, train=None) -> str:
    """What the set holds; beside it the training set's counts, if its records are given."""
    names, sizes_hw = records.classes, records.sizes
    counts = truth.objects()
    order = np.argsort(-counts, kind="stable")[:MOST_BARS].tolist()
    sides = np.sqrt(np.maximum(truth.areas[truth.counted], 0))
    in_image = np.bincount(truth.images[truth.counted], minlength=len(truth.image_ids))
    drawn = [
        page.bars("Objects of each class", [(names[i], counts[i]) for i in order]),
        page.bars("Side in pixels of a square of the object's area", _bins(sides, groups.SIDES)),
        page.bars("Objects in an image", _bins(in_image, COUNTS, whole=True)),
    ]
    if train is not None:
        of_train = np.bincount(train.labels, minlength=len(names))
        bins = [(names[i], of_train[i]) for i in np.argsort(-of_train, kind="stable").tolist()]
        drawn.insert(1, page.bars("Objects of each class in training", bins[:MOST_BARS]))
    aside = int((~truth.counted).sum())
    text = f"{len(truth.image_ids)} images, {int(counts.sum())} objects that count"
    text += f", {aside} that do not (crowds, difficult ones, regions)" if aside else ""
    if len(sizes_hw):
        (h, w), (most_h, most_w) = sizes_hw.min(0).tolist(), sizes_hw.max(0).tolist()
        text += f"; images of {w} x {h}"
        text += f" to {most_w} x {most_h} pixels" if (h, w) != (most_h, most_w) else " pixels"
    _, *notes = records.summary().splitlines()
    notes = "".join(f"<li>{escape(note.strip())}</li>" for note in notes)
    return f"<p>{text}.</p>{f'<ul>{notes}</ul>' if notes else ''}{charts_of(drawn)}"


def recipe(values: dict, facts: dict[str, str], environment: str) -> str:
    """How the detector was made and scored."""
    parts = [f"<dl class='facts'>{_pairs(facts)}</dl>"] if facts else []
    if values:
        rows = [["field", "value"], *([name, text] for name, text in _flat(values))]
        listed = page.table(rows, "The recipe", texts=(1,))
        parts.append(f"<details><summary>The whole recipe</summary>{listed}</details>")
    if environment:
        parts.append(
            "<details><summary>What it was trained on</summary>"
            f"<pre>{escape(environment.strip())}</pre></details>"
        )
    return "".join(parts)


def _flat(values: dict, before: str = ""):
    """(dotted name, value) of each leaf."""
    for name, value in values.items():
        inner = value
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            inner = {str(number): item for number, item in enumerate(value, start=1)}
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", str(value)


def _bins(values: np.ndarray, edges, whole: bool = False) -> list[tuple[str, int]]:
    counts = np.histogram(values, edges)[0].tolist()
    names = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        last = high - 1 if whole else high
        name = f"{low:g}" if low == last else f"{low:g} to {last:g}"
        names.append(f"{low:g} or more" if high == np.inf else name)
    some = np.flatnonzero(counts)
    shown = slice(some[0], some[-1] + 1) if len(some) else slice(0, 1)
    return list(zip(names, counts, strict=True))[shown]


def _pairs(shown: dict[str, str]) -> str:
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in shown.items()
    )


def charts_of(figures: Sequence[str], kind: str = "") -> str:
    """Figures side by side; `kind` "broad" for those that need room."""
    return f"<div class='charts {kind}'>{''.join(figures)}</div>" if figures else ""


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"
