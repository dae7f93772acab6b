"""What a run's folder tells of its training."""

import json
from dataclasses import dataclass
from pathlib import Path

from report import charts
from report.charts import Curve
from utils import history
from utils.plot import NOT_LOSSES

FIRST_TERMS = 5  # beside the loss itself


@dataclass(frozen=True)
class Training:
    recipe: dict
    environment: str
    updates: list[dict]  # lines of log.jsonl
    evaluations: list[dict]


def read(folder: str | Path | None) -> Training | None:
    """What the folder of a run holds; None if it is no run's, or if there is none."""
    folder = Path(folder or "")
    if not (folder / "args.json").is_file() or not (folder / "log.jsonl").is_file():
        return None
    recipe = json.loads((folder / "args.json").read_text(encoding="utf-8"))["recipe"]
    environment = folder / "env.txt"
    text = environment.read_text(encoding="utf-8") if environment.is_file() else ""
    return Training(recipe, text, *history.parts(history.records(folder / "log.jsonl")))


def figures(training: Training) -> list[str]:
    """Losses, scores, learning rate, and the objects that no location learnt."""
    updates, scored = training.updates, training.evaluations
    terms = dict.fromkeys(name for line in updates for name in line if name not in NOT_LOSSES)
    terms = sorted(terms, key=lambda name: name != "loss")[: FIRST_TERMS + 1]
    losses = [_column(updates, name) for name in terms]
    made = []
    if losses := [curve for curve in losses if curve.x]:
        highest = max(max(curve.y[len(curve.y) // 10 :]) for curve in losses)
        cut = [curve._replace(y=[min(value, highest) for value in curve.y]) for curve in losses]
        made.append(charts.curves("Losses in training", cut, "update", "loss"))
    if scored:
        names = history.main_keys(scored)
        scores = [_column(scored, name, "epoch", least=0.0) for name in names]
        best = max(scored, key=lambda line: line[names[0]])
        made.append(
            charts.curves(
                "Scores on the validation images",
                scores,
                "epoch",
                "",
                top=1.0,
                mark=(best["epoch"], max(best[names[0]], 0.0)),
                note=f"Best {names[0]} {best[names[0]]:.3f} at epoch {best['epoch']}.",
            )
        )
    for name, title in (
        ("lr", "Learning rate"),
        ("unmatched", "Objects of a batch that no location learns: they had no positive"),
        ("per_object", "Locations that learn an object, on average"),
    ):
        curve = _column(updates, name)
        if curve.x:
            made.append(charts.curves(title, [curve], "update", ""))
    return made


def unmatched(training: Training) -> str:
    """A sentence on the objects without a positive; "" where the log has no such number."""
    column = [line["unmatched"] for line in training.updates if "unmatched" in line]
    if not column:
        return ""
    text = f"{column[-1]:.2f} objects of a batch got no positive in the last updates"
    if column[-1] > 0:
        text += "; train.py --vis_targets draws such objects in red"
    return f"{text}."


def _column(lines: list[dict], name: str, x: str = "step", least: float | None = None) -> Curve:
    points = [(line[x], line[name]) for line in lines if line.get(name) is not None]
    values = [value if least is None else max(value, least) for _, value in points]
    return charts.thinned(Curve(name, [at for at, _ in points], values))
