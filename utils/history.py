"""What runs have recorded: numbers by update, epoch and time, the seconds of epochs, the best."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import cli
from utils.errors import UserError

AXES = {"step": "update", "epoch": "epoch", "time": "minutes of training"}
AT = ("mode", "epoch", "step")  # where a record stands; the others are what was measured
MAIN = ("AP", "AP50")  # what is looked at first, of runs that have them


class History(NamedTuple):
    """The records of one run, in their order."""

    name: str
    training: list[dict]
    validation: list[dict]
    timing: list[dict]


class Epoch(NamedTuple):
    """What training one epoch took; evaluations are not in it."""

    number: int
    updates: int
    seconds: float
    images: float
    waited: float  # seconds of it


def records(path: Path) -> list[dict]:
    """The records of a file, none where there is none; a last line that was cut by a crash is left
    out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def parts(lines: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """The records of training and those of evaluations, of a log.jsonl."""
    training, validation = (
        [line for line in lines if line["mode"] == mode] for mode in ("train", "val")
    )
    return training, validation


def read(path: str | Path, name: str = "") -> History:
    """The history of a run's folder, or of its log.jsonl."""
    path = Path(path)
    folder = path.parent if path.name == "log.jsonl" else path
    lines = records(folder / "log.jsonl")
    if not lines:
        what = "holds no records yet" if (folder / "log.jsonl").exists() else "is not there"
        raise UserError(
            f"{folder / 'log.jsonl'} {what}; name a run's folder, as in runs/voc/yolox-s/3"
        )
    return History(name or str(folder), *parts(lines), records(folder / "timing.jsonl"))


def read_all(paths: Sequence[str]) -> list[History]:
    """Histories named by the parts of their folders that differ."""
    folders = [
        Path(path).parent if Path(path).name == "log.jsonl" else Path(path) for path in paths
    ]
    names = [folder.absolute().parts for folder in folders]
    if len(set(names)) == 1:
        return [read(folder, name=folder.absolute().name) for folder in folders]
    while len({name[0] for name in names}) == 1 and min(map(len, names)) > 1:
        names = [name[1:] for name in names]
    while len({name[-1] for name in names}) == 1 and min(map(len, names)) > 1:
        names = [name[:-1] for name in names]
    return [read(*each) for each in zip(folders, map("/".join, names), strict=True)]


def keys(lines: Sequence[dict]) -> list[str]:
    """The names of the numbers in these records."""
    numbers = (
        name
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and name not in AT
    )
    return list(dict.fromkeys(numbers))


def main_keys(validation: Sequence[dict]) -> list[str]:
    """What validation is judged by: AP and AP50, or the first two numbers of other runs."""
    known = keys(validation)
    return [name for name in MAIN if name in known] or known[:2]


def points(run: History, key: str, axis: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """(where on the axis, values) of a number; a UserError lists the numbers there are."""
    known = {name: run.validation for name in keys(run.validation)}
    known |= {name: run.training for name in keys(run.training)}
    if key not in known:
        raise UserError(f"{run.name}: {cli.unknown('number', key, sorted(known))}")
    lines = [line for line in known[key] if isinstance(line.get(key), int | float)]
    steps = np.array([line["step"] for line in lines], float)
    values = np.array([line[key] for line in lines], float)
    if axis == "time":
        return _minutes(run, steps), values
    return (_epochs(run, lines) if axis == "epoch" else steps), values


def _epochs(run: History, lines: list[dict]) -> np.ndarray:
    """Epochs that were done at each of the records, with fractions."""
    ends = {line["epoch"]: line["step"] for line in run.training + run.validation}
    starts = {epoch: ends.get(epoch - 1, 0) for epoch in ends}
    longest = max(ends[epoch] - starts[epoch] for epoch in ends)
    # The last epoch may be an unfinished one: it is as long as the others.
    lengths = {epoch: ends[epoch] - starts[epoch] for epoch in ends} | {max(ends): longest}
    done = [
        line["epoch"] - 1 + (line["step"] - starts[line["epoch"]]) / max(lengths[line["epoch"]], 1)
        for line in lines
    ]
    return np.array(done)


def _minutes(run: History, steps: np.ndarray) -> np.ndarray:
    if not run.timing:
        raise UserError(f"{run.name}: no timing.jsonl beside its log; take --x step or epoch")
    known = np.array([line["step"] for line in run.timing], float)
    seconds = np.cumsum([line["seconds"] for line in run.timing])
    return np.interp(steps, np.append(0, known), np.append(0, seconds)) / 60


def epochs(run: History) -> list[Epoch]:
    """What each whole epoch took; the last one of a run that was stopped within it is left out."""
    found, done = [], 0
    for number in dict.fromkeys(line["epoch"] for line in run.timing):
        lines = [line for line in run.timing if line["epoch"] == number]
        seconds = [line["seconds"] for line in lines]
        images = sum(line["images_per_second"] * line["seconds"] for line in lines)
        waited = sum(line["waiting"] * line["seconds"] for line in lines)
        found.append(Epoch(number, lines[-1]["step"] - done, sum(seconds), images, waited))
        done = lines[-1]["step"]
    if len(found) > 1 and found[-1].updates < found[-2].updates:
        del found[-1]
    return found


def times_table(runs: Sequence[History]) -> list[list[str]]:
    """Rows of cells: the slowest and fastest epoch of each run, their spread, its speed."""
    rows = ["run epochs minutes slowest fastest mean spread s/update images/s waiting MB".split()]
    for run in runs:
        found = epochs(run)
        if not found:
            raise UserError(f"{run.name}: its timing.jsonl holds no epoch yet")
        seconds = np.array([epoch.seconds for epoch in found])
        slow, fast = found[seconds.argmax()], found[seconds.argmin()]
        total = seconds.sum()
        rows.append(
            [
                run.name,
                str(len(found)),
                f"{total / 60:.1f}",
                f"{slow.seconds:.2f} s ({slow.number})",
                f"{fast.seconds:.2f} s ({fast.number})",
                f"{seconds.mean():.2f} s",
                f"{seconds.std():.2f} s",
                f"{total / sum(epoch.updates for epoch in found):.4f}",
                f"{sum(epoch.images for epoch in found) / total:.1f}",
                f"{sum(epoch.waited for epoch in found) / total:.1%}",
                str(max(line["memory_mb"] for line in run.timing)),
            ]
        )
    return rows


def best(run: History) -> dict | None:
    """The record of the evaluation that the run's best.pth is of; None before the first one."""
    if not run.validation:
        return None
    first = main_keys(run.validation)[0]
    return max(run.validation, key=lambda line: line[first])


def best_table(runs: Sequence[History]) -> list[list[str]]:
    """Rows of cells: the best evaluation of each run, side by side."""
    found = [best(run) for run in runs]
    names = keys([line for line in found if line is not None])
    rows = [["run", "epochs", "best", *names, "last loss"]]
    for run, line in zip(runs, found, strict=True):
        last = max((each["epoch"] for each in run.training + run.validation), default=0)
        numbers = line or {}
        rows.append([run.name, str(last), str(numbers.get("epoch", "-"))])
        rows[-1] += [f"{numbers[name]:.4f}" if name in numbers else "-" for name in names]
        losses = [each["loss"] for each in run.training if "loss" in each]
        rows[-1].append(f"{losses[-1]:.4g}" if losses else "-")
    return rows
