"""Draw the curves of runs, or print what their epochs took and their best numbers.

    python -m utils.plot runs/voc/yolox-s/1 runs/voc/yolox-s/2 --keys loss AP50 --out curves.svg
    python -m utils.plot runs/voc/*/* --table
    python -m utils.plot runs/voc/yolox-s/1 --times

Every number of a run's log.jsonl has its curve; a name that is none is answered with all of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import cli, history
from utils.columns import aligned
from utils.errors import UserError
from utils.history import History
from utils.log import say

LABELS = {"AP": "AP (0.50:0.95)"}
NOT_LOSSES = frozenset(
    "mode epoch step lr size positives per_object unmatched disjoint grad_norm "
    "right within between view near far spread".split()  # the second line: of pretraining
)
LOSSES, SCORES = "training losses", "validation"  # the panels of several numbers
SUFFIXES = (".png", ".svg", ".pdf")
EXACT = (SCORES, "lr")  # panels of numbers without noise, which are not smoothed
COLUMNS = 3  # of panels
STYLES = ("-", "--", ":", "-.")
SMOOTHING = 40  # a loss curve is averaged over about this part of its records
MUTED = "0.35"
COLORS = ("#2563eb", "#f59e0b", "#10b981", "#a855f7", "#64748b", "#06b6d4")


def curves(folder: str | Path) -> Path | None:
    """Draws losses, AP and learning rate into curves.png; None without records or matplotlib."""
    folder = Path(folder)
    records = history.records(folder / "log.jsonl")
    if not records:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    training, validation = history.parts(records)
    figure = Figure(figsize=(15, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores, rate = figure.subplots(1, 3)
    _draw_losses(losses, training)
    _draw_scores(scores, validation)
    _draw_rate(rate, training)
    for axes in (losses, scores, rate):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
    path = folder / "curves.png"
    figure.savefig(path)
    return path


def _draw_losses(axes, training: list[dict]):
    axes.set(title="training losses", xlabel="update")
    # A term may begin with a later stage: each curve has the steps at which it was recorded.
    names = dict.fromkeys(name for record in training for name in record if name not in NOT_LOSSES)
    lowest, highest = 0.0, []
    for i, name in enumerate(sorted(names, key=lambda name: name != "loss")):
        points = [(record["step"], record[name]) for record in training if name in record]
        steps, values = np.array(points, float).T
        color = COLORS[i % len(COLORS)]
        smooth = _smooth(values, len(values) // SMOOTHING)
        width = 2.2 if name == "loss" else 1.4
        if len(values) > SMOOTHING:
            axes.plot(steps, values, color=color, alpha=0.18, linewidth=0.8)
        label = "total" if name == "loss" else name.removeprefix("loss_")
        marker = "o" if len(values) < 3 else ""
        axes.plot(steps, smooth, marker=marker, color=color, linewidth=width, label=label)
        lowest = min(lowest, smooth.min())  # cosines are below 0
        highest.append(smooth.max())
    if not names:
        _say_empty(axes, "nothing recorded yet")
        return
    top = max(*highest, 0) or (0 if lowest else 1)
    axes.set_ylim(lowest * 1.08, top * 1.08)
    axes.legend(frameon=False, ncols=2, fontsize=9, loc="upper right")


def _draw_scores(axes, validation: list[dict]):
    axes.set(title="validation", xlabel="epoch", ylim=(0, 1))
    if not validation:
        _say_empty(axes, "not evaluated yet")
        return
    names = history.main_keys(validation)
    epochs = [record["epoch"] for record in validation]
    best = max(validation, key=lambda record: record[names[0]])
    for name, color in zip(names, COLORS, strict=False):
        values = [max(record[name], 0) for record in validation]  # -1: nothing to find
        label = LABELS.get(name, name)
        axes.plot(epochs, values, color=color, marker="o", markersize=3.5, label=label)
        axes.plot(best["epoch"], max(best[name], 0), "o", color=color, markersize=9, zorder=3)
    axes.axvline(best["epoch"], color=MUTED, linewidth=0.8, linestyle=":")
    top = max(record[name] for record in validation for name in names)
    axes.set_ylim(0, min(max(top * 1.3, 0.05), 1.05))
    axes.set_xlim(0, max(epochs) * 1.04)
    axes.xaxis.get_major_locator().set_params(integer=True)
    shown = ", ".join(f"{name} {best[name]:.3f}" for name in names)
    axes.set_title(f"validation: best {shown} at epoch {best['epoch']}")
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)


def _draw_rate(axes, training: list[dict]):
    axes.set(title="learning rate", xlabel="update")
    if not training:
        _say_empty(axes, "nothing recorded yet")
        return
    steps, rates = zip(*((record["step"], record["lr"]) for record in training), strict=True)
    axes.plot(steps, rates, color=COLORS[2], linewidth=1.8)
    axes.set_ylim(0, max(rates) * 1.08 or 1)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)


def _say_empty(axes, text: str):
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def _smooth(values: np.ndarray, over: int) -> np.ndarray:
    """A centred running mean over about so many values that shrinks towards both ends, so that it
    shows no false start."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, index[::-1]), over // 2)
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


# ---- several runs ----


class Curve(NamedTuple):
    """One number of one run."""

    run: int  # which of the runs
    key: str
    label: str
    panel: str
    x: np.ndarray
    y: np.ndarray


def compare(
    runs: Sequence[History],
    keys: Sequence[str],
    path: Path,
    *,
    axis: str = "step",
    title: str = "",
    legend: Sequence[str] = (),
    smooth: int = 1,
):
    """Draws these numbers of the runs: losses in one panel, scores in another, the rest apart;
    what training recorded as running means over `smooth` records."""
    called = list(legend) if len(legend) == len(runs) else [run.name for run in runs]
    labels = iter(_labels(called, keys, legend))
    drawn = [
        Curve(at, key, next(labels), _panel(run, key), *history.points(run, key, axis))
        for at, run in enumerate(runs)
        for key in keys
    ]
    panels = list(dict.fromkeys(curve.panel for curve in drawn))
    figure, places = _figure(len(panels))
    for axes, panel in zip(places, panels, strict=True):
        own = [curve for curve in drawn if curve.panel == panel]
        names = list(dict.fromkeys(curve.key for curve in own))
        if len(names) == 1 and len(legend) != len(drawn):  # the title says it already
            own = [curve._replace(label=called[curve.run]) for curve in own]
        _draw_panel(axes, own, smooth=1 if panel in EXACT else smooth)
        axes.set_xlabel(history.AXES[axis])
        axes.set_title(LABELS.get(names[0], names[0]) if len(names) == 1 else panel, fontsize=11)
        if len(own) > 1:
            axes.legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=13)
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None


def _panel(run: History, key: str) -> str:
    """Where a number is drawn; what both kinds of records hold is training's."""
    if key not in history.keys(run.training):
        return SCORES
    return key if key in NOT_LOSSES else LOSSES


def _labels(called: Sequence[str], keys: Sequence[str], legend: Sequence[str]) -> list[str]:
    """What each curve is called, run by run; `legend` has a name for each of them or each run."""
    curves = len(called) * len(keys)
    if len(legend) not in (0, len(called), curves):
        raise UserError(
            f"--legend has {len(legend)} names; there are {len(called)} runs and {curves} curves, "
            "run by run: give as many names as of either"
        )
    if len(legend) == curves:
        return list(legend)
    if len(called) == 1 and not legend:
        return list(keys)
    return [f"{name} {key}" for name in called for key in keys]


def _figure(panels: int):
    """(an empty figure, its axes) for so many panels."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("curves are drawn by matplotlib: pip install matplotlib") from error
    columns = min(panels, COLUMNS)
    rows = -(-panels // columns)
    figure = Figure(figsize=(2 + 5.5 * columns, 0.4 + 4.2 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[panels:]:
        axes.set_axis_off()
    return figure, places[:panels]


def _draw_panel(axes, drawn: Sequence[Curve], *, smooth: int):
    """Runs differ in colour, and numbers of several runs in the kind of line."""
    names = list(dict.fromkeys(curve.key for curve in drawn))
    one_run = len({curve.run for curve in drawn}) == 1
    for curve in drawn:
        number = names.index(curve.key)
        color = COLORS[(number if one_run else curve.run) % len(COLORS)]
        style = "-" if one_run else STYLES[number % len(STYLES)]
        if smooth > 1:
            axes.plot(curve.x, curve.y, color=color, alpha=0.2, linewidth=0.8)
        marker = {"marker": "o", "markersize": 3.5} if len(curve.x) <= SMOOTHING else {}
        values = _smooth(curve.y, smooth)
        axes.plot(curve.x, values, style, color=color, label=curve.label, **marker)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m utils.plot",
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n")[-1],
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its log.jsonl")
    parser.add_argument(
        "--keys", nargs="+", metavar="NAME", help="numbers to draw (loss, and what is evaluated)"
    )
    parser.add_argument(
        "--x", choices=tuple(history.AXES), default="step", help="the axis below (step)"
    )
    parser.add_argument("--title", default="", metavar="TEXT", help="above the curves")
    parser.add_argument(
        "--legend",
        nargs="+",
        default=(),
        metavar="TEXT",
        help="a name for each run, or for each curve, run by run",
    )
    parser.add_argument(
        "--smooth",
        type=cli.whole(1),
        default=1,
        metavar="N",
        help="training's numbers as running means over N records, themselves pale behind (1)",
    )
    parser.add_argument(
        "--out", default="curves.png", metavar="FILE", help="png, svg or pdf (curves.png)"
    )
    parser.add_argument(
        "--times", action="store_true", help="print what epochs took, in place of a picture"
    )
    parser.add_argument(
        "--table", action="store_true", help="print the best numbers, in place of a picture"
    )
    cli.add_debug_flag(parser)
    return parser.parse_args()


def main():
    args = parse_arguments()
    runs = history.read_all(args.runs)
    tables = [history.best_table(runs)] if args.table else []
    tables += [history.times_table(runs)] if args.times else []
    for rows in tables:
        for line in aligned(rows):
            say(line)
    if tables and not args.given & {"out", "keys"}:
        return
    path = Path(args.out)
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out {path}: the name should end in {', '.join(SUFFIXES)}")
    first = history.main_keys(runs[0].validation)
    keys = args.keys or ["loss", *first]
    compare(
        runs,
        keys,
        path,
        axis=args.x,
        title=args.title,
        legend=args.legend,
        smooth=args.smooth,
    )
    say(f"curves: {path}")


if __name__ == "__main__":
    cli.run_main(main)
