"""The comparison of the backbones: how long each trains, what is measured once, what is printed."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

import models
import recipes
from docs import runs, zoo
from utils.errors import UserError
from utils.history import History
from utils.log import RunLog

ROWS = [
    zoo.Row("yolox", "small", 912_159, 0.523, 12.34, 6.5, 40, 181.4, 0.8),
    zoo.Row("yolox", "big", 25_000_000, 12.0, 120.0, 90.0),
    zoo.Row("yolof", "small", 2_000_000, 1.0, 20.0, 10.0, 30, 178.6, 0.75),
]


def trial(*seconds, epochs=2, every=10) -> History:
    """A run with a record of these seconds every ten updates, in so many equal epochs."""
    lines = [
        {"epoch": 1 + i * epochs // len(seconds), "step": (i + 1) * every, "seconds": took}
        for i, took in enumerate(seconds)
    ]
    return History("trial", [], [], lines)


def test_epochs_fit_the_time():
    # 0.2 s an update after the first ten, 20 updates an epoch: 4 s.
    assert zoo.epochs_for(trial(9.0, 2.0, 2.0, 2.0), 180) == 45
    assert zoo.epochs_for(trial(9.0, 2.0, 2.0, 2.0), 42) in (10, 11)
    assert zoo.epochs_for(trial(9.0, 1.0, 2.0, 3.0), 40) == 10
    assert zoo.epochs_for(trial(50.0, 50.0), 10) == 1


def test_tables():
    lines = zoo.tables(ROWS)
    assert [line for line in lines if line.startswith("yolo")] == [
        "yolox-nano",
        "yolox-nano, not trained",
        "yolof-r18-c5",
    ]
    assert "| small | 0.91 M | 0.523 | 12.3 | 6.5 | 40 | 181 | 0.800 |" in lines
    assert "| big | 25.00 M | 12.000 | 120.0 | 90.0 |" in lines
    for at, line in enumerate(lines):
        if set(line) == {"|", "-"}:
            assert lines[at - 1].count("|") == line.count("|") == lines[at + 1].count("|")


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    zoo.draw(ROWS, tmp_path / "zoo.png")
    first = (tmp_path / "zoo.png").read_bytes()
    zoo.draw([*ROWS, ROWS[0]._replace(backbone="other", ap50=0.4)], tmp_path / "zoo.png")
    assert (tmp_path / "zoo.png").read_bytes() != first


@pytest.mark.parametrize("name", [n for n in (*zoo.TRAINED, *zoo.COUNTED) if n in models.BACKBONES])
def test_every_backbone_has_a_recipe(name):
    assert not set(zoo.TRAINED) & set(zoo.COUNTED)
    for detector, version in zoo.DETECTORS.items():
        recipe = recipes.with_backbone(recipes.RECIPES[version], name)
        assert recipe.detector == detector and recipe.backbone == name


class Calls:
    """Answers the commands with the files that they would write."""

    def __init__(self):
        self.made = []

    def __call__(self, script, flags, output, **_):
        self.made.append((script, *flags))
        given = dict(zip(flags, flags[1:], strict=False))
        output.parent.mkdir(parents=True, exist_ok=True)
        if script == "train.py":
            return self.train(Path(given["--save_folder"]), int(given["--epochs"]))
        times = {"forward": {"median": 5.0}, "postprocess": {"median": 1.0}}
        whole = {"parameters": 1000, "macs": 2_000_000}
        Path(given["--out"]).write_text(json.dumps({"results": [{**times, **whole}]}))

    def train(self, parent: Path, epochs: int):
        folder = parent / "voc" / "yolox-resnet18" / "1"
        log = RunLog(folder)
        for step in range(1, epochs + 1):
            at = {"epoch": step, "step": 10 * step}
            log.record({"mode": "train", **at, "loss": 1.0})
            log.timing({**at, "seconds": 2.0})
        for name in ("last.pth", "best.pth"):
            (folder / name).write_bytes(b"")
        (folder / "metrics.json").write_text('{"AP50": 0.5}')


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    calls = Calls()
    for module in (zoo, runs):
        monkeypatch.setattr(module, "command", calls)
    args = argparse.Namespace(save_folder=str(tmp_path), root="voc", seconds=10)
    found = zoo.row("yolox", "resnet18", ["a.jpg"], 3, args)
    assert found == ("yolox", "resnet18", 1000, 0.002, 6.0, 6.0, 5, 10.0, 0.5)
    scripts = [call[:2] for call in calls.made]
    assert scripts == [
        ("benchmark.py", "flops"),
        ("benchmark.py", "inference"),
        ("benchmark.py", "inference"),
        ("train.py", "-v"),
        ("train.py", "-v"),
    ]
    assert [call[call.index("--epochs") + 1] for call in calls.made[3:]] == ["2", "5"]
    assert list(tmp_path.rglob("*.pth")) == []
    assert zoo.row("yolox", "resnet18", ["a.jpg"], 3, args) == found and len(calls.made) == 5
    longer = zoo.row(
        "yolox", "resnet18", ["a.jpg"], 3, argparse.Namespace(**vars(args) | {"seconds": 20})
    )
    assert longer.epochs == 10 and len(calls.made) == 6


def test_a_command_that_fails_names_its_output(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    (tmp_path / "fails.py").write_text("import sys; print(sys.argv[1:]); sys.exit(2)")
    with pytest.raises(UserError, match="fails.py ended with 2.*output.txt"):
        runs.command("fails.py", ["--flag"], tmp_path / "output.txt")
    assert (tmp_path / "output.txt").read_text() == "['--flag']\n"


def test_squares(tmp_path):
    class Records:
        def __len__(self):
            return 1

        def path(self, _):
            return tmp_path / "in.png"

    zoo.vis.save(tmp_path / "in.png", np.zeros((40, 60, 3), np.uint8))
    (path,) = zoo.squares(tmp_path / "squares", Records())
    assert zoo.read_image(path).shape == (zoo.SIDE, zoo.SIDE, 3)
