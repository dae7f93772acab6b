"""Curves of several runs, the axes they are drawn over, and the tables of times and numbers."""

import sys

import numpy as np
import pytest

from utils import cli, history, plot
from utils.columns import aligned
from utils.errors import UserError
from utils.log import RunLog


def write_run(folder, *, epochs=3, updates=20, lr=0.1, seconds=2.0, numbers=("AP", "AP50")):
    """A run with two records an epoch and one evaluation; epoch e takes 2 * e * `seconds`."""
    log = RunLog(folder)
    for epoch in range(1, epochs + 1):
        for part in (1, 2):
            step = (epoch - 1) * updates + part * updates // 2
            values = {"loss": 10.0 - step / 10, "iou": 3.0, "grad_norm": None if step < 20 else 2.0}
            at = {"epoch": epoch, "step": step}
            log.record({"mode": "train", **at, "lr": lr, "size": [64, 64], **values})
            took = {"seconds": seconds * epoch, "images_per_second": 10.0, "waiting": 0.25}
            log.timing({**at, **took, "memory_mb": 100 * epoch})
        scores = {name: epoch * 0.1 + i * 0.2 for i, name in enumerate(numbers)}
        log.record({"mode": "val", "epoch": epoch, "step": epoch * updates, **scores})
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    def command(*flags) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plot", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            cli.run_main(plot.main)
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return command


def test_points_over_updates_epochs_and_time(tmp_path):
    run = history.read(write_run(tmp_path))
    steps, losses = history.points(run, "loss")
    assert steps.tolist() == [10, 20, 30, 40, 50, 60] and losses[0] == 9.0
    assert history.points(run, "AP")[0].tolist() == [20, 40, 60]
    assert history.points(run, "loss", "epoch")[0].tolist() == [0.5, 1, 1.5, 2, 2.5, 3]
    assert history.points(run, "AP", "epoch")[0].tolist() == [1, 2, 3]
    # Epoch e takes 4 * e seconds.
    assert history.points(run, "AP", "time")[0] * 60 == pytest.approx([4, 12, 24])
    assert history.points(run, "loss", "time")[0] * 60 == pytest.approx([2, 4, 8, 12, 18, 24])
    # What was not finite is no point, and lists are no numbers.
    assert history.points(run, "grad_norm")[0].tolist() == [20, 30, 40, 50, 60]
    assert "size" not in history.keys(run.training)


def test_an_unfinished_epoch_is_as_long_as_the_others(tmp_path):
    RunLog(write_run(tmp_path)).record({"mode": "train", "epoch": 4, "step": 65, "loss": 1.0})
    run = history.read(tmp_path / "log.jsonl")
    assert history.points(run, "loss", "epoch")[0][-1] == 3.25
    took = {"seconds": 1.0, "images_per_second": 1.0, "waiting": 0.0, "memory_mb": 1}
    RunLog(tmp_path).timing({"epoch": 4, "step": 65, **took})
    assert [epoch.number for epoch in history.epochs(history.read(tmp_path))] == [1, 2, 3]


def test_a_missing_number_is_answered_with_all_of_them(tmp_path, command):
    folder = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="did you mean loss.*AP, AP50, grad_norm, iou, loss, lr"):
        history.points(history.read(folder), "los")
    code, _, err = command(folder, "--keys", "los", "--out", tmp_path / "a.png")
    assert code == 2 and "AP50" in err and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("{root}/nothing",), "nothing"),
        (("{root}/run", "--out", "{root}/a.gif"), ".svg"),
        (("{root}/run", "--out", "{root}/nowhere/a.svg"), "cannot be written"),
        (("{root}/run", "{root}/run", "--legend", "a", "b", "c"), "6 curves"),
        (("{root}/run", "--x", "hours"), "hours"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(flags, words, tmp_path, command):
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "run")
    code, _, err = command(*(flag.format(root=tmp_path) for flag in flags))
    assert code == 2 and words in err and "Traceback" not in err


def test_runs_are_called_by_what_differs(tmp_path):
    for name in ("a/voc/yolox-s/1", "b/voc/yolox-s/1", "b/voc/yolox-s/2"):
        write_run(tmp_path / name, epochs=1)

    def names(*paths):
        return [run.name for run in history.read_all([tmp_path / path for path in paths])]

    assert names("a/voc/yolox-s/1", "b/voc/yolox-s/1") == ["a", "b"]
    assert names("b/voc/yolox-s/1", "b/voc/yolox-s/2/log.jsonl") == ["1", "2"]
    assert names("a/voc/yolox-s/1", "b/voc/yolox-s/2") == ["a/voc/yolox-s/1", "b/voc/yolox-s/2"]
    assert names("b/voc/yolox-s/2") == ["2"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_of_two_runs(suffix, tmp_path, command):
    pytest.importorskip("matplotlib")
    runs = [write_run(tmp_path / "slow"), write_run(tmp_path / "fast", lr=0.2)]
    out = tmp_path / f"curves.{suffix}"
    flags = [
        "--keys",
        "loss",
        "iou",
        "AP",
        "lr",
        "--title",
        "two runs",
        "--smooth",
        3,
        "--x",
        "epoch",
    ]
    code, said, err = command(*runs, *flags, "--out", out)
    assert code == 0 and str(out) in said, err
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    code, _, _ = command(*runs, *flags, "--legend", "one", "two", "--out", out)
    assert code == 0 and out.read_bytes() != first


def test_panels_and_names_of_curves(tmp_path):
    run = history.read(write_run(tmp_path))
    panels = [plot._panel(run, key) for key in ("loss", "iou", "lr", "AP")]
    assert panels == [plot.LOSSES, plot.LOSSES, "lr", plot.SCORES]
    keys = ["loss", "AP"]
    assert plot._labels(["a"], keys, ()) == keys
    assert plot._labels(["a", "b"], keys, ()) == ["a loss", "a AP", "b loss", "b AP"]
    assert plot._labels(["a", "b"], keys, "wxyz") == list("wxyz")


def test_running_means_keep_their_ends():
    values = np.array([0.0, 3.0, 6.0, 9.0, 0.0])
    assert plot._smooth(values, 1).tolist() == values.tolist()
    assert plot._smooth(values, 3).tolist() == [0, 3, 6, 5, 0]


def test_times(tmp_path, command):
    folder = write_run(tmp_path / "run")
    code, said, _ = command(folder, "--times")
    assert code == 0
    head, row = said.splitlines()
    assert head.split()[:3] == ["run", "epochs", "minutes"]
    # 4, 8 and 12 s; 60 updates in 24 s; a deviation of sqrt(32 / 3).
    wanted = "run 3 0.4 12.00 s (3) 4.00 s (1) 8.00 s 3.27 s 0.4000 10.0 25.0% 300"
    assert row.split() == wanted.split()
    (folder / "timing.jsonl").unlink()
    code, _, err = command(folder, "--times")
    assert code == 2 and "timing.jsonl" in err
    code, _, err = command(folder, "--x", "time")
    assert code == 2 and "--x step" in err


def test_best_numbers_side_by_side(tmp_path, command):
    write_run(tmp_path / "a")
    other = write_run(tmp_path / "b", numbers=("accuracy",))
    RunLog(other).record({"mode": "val", "epoch": 4, "step": 80, "accuracy": 0.0})
    code, said, _ = command(tmp_path / "a", tmp_path / "b", "--table")
    assert code == 0
    assert [line.split() for line in said.splitlines()] == [
        "run epochs best AP AP50 accuracy last loss".split(),
        "a 3 3 0.3000 0.5000 - 4".split(),
        "b 4 3 - - 0.3000 4".split(),
    ]


def test_columns():
    assert aligned([["name", "n"], ["a", "10.5"]]) == ["name     n", "a     10.5"]
    assert aligned([["a", "b"], ["cc", "d"]], texts=2) == ["a   b", "cc  d"]


def test_losses_below_zero_are_drawn(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    axes = figures.Figure().subplots()
    for values, limits in (
        ([-0.25, -1.0], (-1.08, 0.0)),
        ([2.0, -0.5], (-0.54, 2.16)),
        ([2.0, 1.0], (0.0, 2.16)),
    ):
        records = [{"step": step, "loss": value} for step, value in enumerate(values)]
        plot._draw_losses(axes, records)
        assert axes.get_ylim() == pytest.approx(limits)


def test_curves_of_a_run_without_ap(tmp_path):
    pytest.importorskip("matplotlib")
    write_run(tmp_path, numbers=("accuracy", "recall"))
    assert plot.curves(tmp_path) == tmp_path / "curves.png"
