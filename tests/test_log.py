import builtins
import itertools
import json
import re
import sys

import pytest

from utils import log, plot
from utils.errors import UserError
from utils.log import Progress, RunLog


def fill(run, steps):
    for step in steps:
        run.say(f"step {step}: größer")
        run.record({"mode": "train", "step": step, "loss": 1 / (step + 1)})
        run.timing({"step": step, "seconds": 0.1})


def test_files_hold_what_was_said(tmp_path, capsys):
    fill(RunLog(tmp_path / "run"), range(3))
    assert capsys.readouterr().out.splitlines()[2] == "step 2: größer"
    folder = tmp_path / "run"
    assert (folder / "train.log").read_text("utf-8").splitlines()[2] == "step 2: größer"
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert records[1] == {"mode": "train", "step": 1, "loss": 0.5}
    assert len((folder / "timing.jsonl").read_text().splitlines()) == 3


def test_other_processes_write_nothing(tmp_path, capsys):
    run = RunLog(tmp_path / "run", main=False, tfboard=True)
    fill(run, range(3))
    run.scalars(1, {"loss": 1.0})
    run.cut({})
    run.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_whole_files(tmp_path):
    RunLog(tmp_path).write("args.json", "{}\n")
    RunLog(tmp_path).write("args.json", "[]\n")
    RunLog(tmp_path, main=False).write("args.json", "")
    assert (tmp_path / "args.json").read_text() == "[]\n"


def test_cut_and_go_on_equals_never_stopped(tmp_path):
    straight, resumed = RunLog(tmp_path / "a"), RunLog(tmp_path / "b")
    fill(straight, range(6))
    fill(resumed, range(3))
    position = resumed.position()
    fill(resumed, range(3, 5))  # lost: after the last checkpoint
    with open(tmp_path / "b" / "log.jsonl", "a") as file:
        file.write('{"mode": "tr')  # the crash
    resumed = RunLog(tmp_path / "b")
    resumed.cut(json.loads(json.dumps(position)))
    fill(resumed, range(3, 6))
    for name in log.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_cut_of_files_that_are_gone_or_shorter(tmp_path):
    run = RunLog(tmp_path)
    fill(run, range(3))
    position = run.position()
    (tmp_path / "timing.jsonl").unlink()
    (tmp_path / "train.log").write_text("edited")
    run.cut(position)
    assert (tmp_path / "train.log").read_text() == "edited"
    run.cut({})
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_the_newest_number_of_a_name(tmp_path):
    run = RunLog(tmp_path)
    for record in ({"loss": 2.0, "missed": 3.0}, {"loss": 1.0}):
        run.record(record)
    assert (run.last("loss"), run.last("missed"), run.last("AP")) == (1.0, 3.0, None)


def test_every_write_is_on_disk_at_once(tmp_path):
    run = RunLog(tmp_path)
    run.record({"step": 1})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("call", ["say", "record", "timing"])
def test_full_disk(tmp_path, monkeypatch, call):
    run = RunLog(tmp_path)
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda _name, *rest, **kw: real("/dev/full", *rest, **kw))
    with pytest.raises(UserError, match="No space left.*--save_folder"):
        {
            "say": lambda: run.say("x"),
            "record": lambda: run.record({}),
            "timing": lambda: run.timing({}),
        }[call]()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        RunLog(tmp_path / "file" / "run")


def tensorboard_events(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_forgets_what_was_cut(tmp_path):
    pytest.importorskip("tensorboard")
    run = RunLog(tmp_path, tfboard=True)
    for step in range(3):
        run.scalars(step, {"loss": float(step)})
    position = run.position()
    run.scalars(3, {"loss": 99.0})
    run.scalars(4, {"loss": 99.0})
    run.close()
    run = RunLog(tmp_path, tfboard=True)
    run.cut(position)
    run.scalars(3, {"loss": 3.0})
    run.close()
    assert tensorboard_events(tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_tensorboard_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        RunLog(tmp_path, tfboard=True)
    RunLog(tmp_path).scalars(1, {"loss": 1.0})


def seconds_pass(monkeypatch, each):
    """A clock that is this much later whenever it is asked."""
    ticks = itertools.count(0, each)
    monkeypatch.setattr(log.time, "monotonic", lambda: next(ticks))


def test_progress_in_lines_now_and_then(capsys, monkeypatch):
    seconds_pass(monkeypatch, log.LINE_SECONDS / 10)
    with Progress(200, "epoch 1") as bar:
        for i in range(200):
            bar.note(loss=float(i), size=640)
            bar.advance()
    lines = capsys.readouterr().out.splitlines()
    assert 10 <= len(lines) <= 20
    assert re.fullmatch(r"epoch 1: \d+/200, [\d:]+ left, loss \d+, size 640", lines[4])


def test_time_left_of_a_resumed_loop(capsys, monkeypatch):
    seconds_pass(monkeypatch, log.LINE_SECONDS + 1)
    bar = Progress(100, "x", done=90)
    bar.advance(5)
    left = int(2 * (log.LINE_SECONDS + 1))  # it took two looks at the clock for half of the rest
    assert log._clock(left) in capsys.readouterr().out


def test_short_loops_say_nothing(capsys):
    for total in (0, 1, 20):
        bar = Progress(total, "x")
        for _ in range(total):
            bar.advance()
    assert capsys.readouterr().out == ""


def test_progress_can_be_hidden(tmp_path, capsys):
    bar = RunLog(tmp_path, main=False).progress(1, "x")
    bar.advance()
    assert capsys.readouterr().out == ""


def test_progress_through_items(capsys, monkeypatch):
    seconds_pass(monkeypatch, log.LINE_SECONDS + 1)
    assert list(log.progress("abc", "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("letters: 3/3")


@pytest.mark.parametrize("installed", [True, False])
def test_progress_on_a_terminal(monkeypatch, capsys, installed):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(20, "epoch 1") as bar:
        bar.note(loss=0.5)
        for i in range(20):
            bar.advance()
            if i == 10:
                log.say("a line between")
    out = capsys.readouterr().out
    assert "a line between" in out
    assert ("\r" in out) == installed


def test_curves(tmp_path):
    pytest.importorskip("matplotlib")
    run = RunLog(tmp_path)
    assert plot.curves(tmp_path) is None  # nothing recorded
    run.record({"mode": "train", "epoch": 1, "step": 10, "lr": 0.1, "loss": 2.0, "iou": 1.0})
    assert plot.curves(tmp_path) == tmp_path / "curves.png"
    first = (tmp_path / "curves.png").read_bytes()
    for epoch in range(1, 4):
        step = 10 + 10 * epoch
        losses = {"loss": 2.0 / epoch, "iou": 1.0 / epoch, "l1": 0.5, "size": [64, 64]}
        run.record({"mode": "train", "epoch": epoch, "step": step, "lr": 0.1, **losses})
        run.record({"mode": "val", "epoch": epoch, "step": step, "AP": -1.0, "AP50": 0.1 * epoch})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"mode": "tr')  # cut by a crash
    assert plot.curves(tmp_path).read_bytes() != first


def test_curves_without_matplotlib(tmp_path, monkeypatch):
    RunLog(tmp_path).record({"mode": "val", "epoch": 1, "step": 1, "AP": 0.1, "AP50": 0.2})
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert plot.curves(tmp_path) is None
