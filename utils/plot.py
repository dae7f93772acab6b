"""The curves of a run, from its log.jsonl."""

import json
from pathlib import Path

import numpy as np

LABELS = {"AP": "AP (0.50:0.95)", "AP50": "AP50"}
NOT_LOSSES = frozenset(
    "mode epoch step lr size positives per_object unmatched disjoint grad_norm".split()
)
SMOOTHING = 40  # a loss curve is averaged over about this part of its records
MUTED = "0.35"
COLORS = ("#2563eb", "#f59e0b", "#10b981", "#a855f7", "#64748b", "#06b6d4")


def curves(folder: str | Path) -> Path | None:
    """Draws losses, AP and learning rate into curves.png; None without records or matplotlib."""
    folder = Path(folder)
    records = _read(folder / "log.jsonl")
    if not records:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    training = [record for record in records if record["mode"] == "train"]
    validation = [record for record in records if record["mode"] == "val"]
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


def _read(path: Path) -> list[dict]:
    """The records; a last line that was cut by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _draw_losses(axes, training: list[dict]):
    axes.set(title="training losses", xlabel="update")
    # A term may begin with a later stage: each curve has the steps at which it was recorded.
    names = dict.fromkeys(name for record in training for name in record if name not in NOT_LOSSES)
    highest = []
    for i, name in enumerate(sorted(names, key=lambda name: name != "loss")):
        points = [(record["step"], record[name]) for record in training if name in record]
        steps, values = np.array(points, float).T
        color = COLORS[i % len(COLORS)]
        smooth = _smooth(values)
        width = 2.2 if name == "loss" else 1.4
        if len(values) > SMOOTHING:
            axes.plot(steps, values, color=color, alpha=0.18, linewidth=0.8)
        label = "total" if name == "loss" else name.removeprefix("loss_")
        marker = "o" if len(values) < 3 else ""
        axes.plot(steps, smooth, marker=marker, color=color, linewidth=width, label=label)
        highest.append(smooth.max())
    if not names:
        _say_empty(axes, "nothing recorded yet")
        return
    axes.set_ylim(0, max(highest) * 1.08 or 1)
    axes.legend(frameon=False, ncols=2, fontsize=9, loc="upper right")


def _draw_scores(axes, validation: list[dict]):
    axes.set(title="validation", xlabel="epoch", ylim=(0, 1))
    if not validation:
        _say_empty(axes, "not evaluated yet")
        return
    epochs = [record["epoch"] for record in validation]
    best = max(validation, key=lambda record: record["AP"])
    for (name, label), color in zip(LABELS.items(), COLORS, strict=False):
        values = [max(record[name], 0) for record in validation]  # -1: nothing to find
        axes.plot(epochs, values, color=color, marker="o", markersize=3.5, label=label)
        axes.plot(best["epoch"], max(best[name], 0), "o", color=color, markersize=9, zorder=3)
    axes.axvline(best["epoch"], color=MUTED, linewidth=0.8, linestyle=":")
    top = max(max(record[name] for name in LABELS) for record in validation)
    axes.set_ylim(0, min(max(top * 1.3, 0.05), 1.05))
    axes.set_xlim(0, max(epochs) * 1.04)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(
        f"validation: best AP {best['AP']:.3f}, AP50 {best['AP50']:.3f} at epoch {best['epoch']}"
    )
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


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred running mean that shrinks towards both ends, so that it shows no false start."""
    half = len(values) // SMOOTHING // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, index[::-1]), half)
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)
