"""The study of YOLOF's switches, without its trainings."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import recipes
import train as train_script
from docs import yolof_switches
from docs.runs import finished
from docs.yolof_switches import ROWS, flags_of, numbers_of, row, train
from utils.errors import UserError


def runs(*aps):
    return [{"AP": ap, "AP50": 2 * ap, "unmatched": 0.5} for ap in aps]


def write_run(folder: Path):
    """What a finished run leaves behind, as far as the study looks at it."""
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"AP": 0.25, "AP50": 0.5, "AP75": 0.2}))
    lines = [{"mode": "train", "unmatched": value} for value in (9.0, 7.0, 2.0, 1.0)]
    lines.insert(2, {"mode": "eval", "AP": 0.25})
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name in ("last.pth", "best.pth", "results.json"):
        (folder / name).write_text("[]")


def test_a_line_of_the_table():
    line = row("topk 8", runs(0.1, 0.2, 0.3), runs(0.15, 0.15))
    assert line == "| topk 8 | `--topk 8` | 0.400 ± 0.200 | 0.200 ± 0.100 | +0.050 | 0.50 |"
    assert (
        row("official", runs(0.1), runs(0.1))
        == "| official | defaults | 0.200 | 0.100 | +0.000 | 0.50 |"
    )
    assert row("sgd", runs(0.1), []).split(" | ")[-2] == "-"


def test_the_numbers_of_a_run(tmp_path):
    write_run(tmp_path / "run")
    assert numbers_of(tmp_path / "run") == {"AP": 0.25, "AP50": 0.5, "unmatched": 1.5}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_training_that_starts(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *flags_of(name, 2)])
    recipe, given = train_script.choose_recipe(train_script.parse_arguments(), None)
    assert (recipe.version, recipe.sides, recipe.seed) == ("yolof-r18-c5", (256, 256), 2)
    # 200 images in batches of 2: what the caption counts.
    assert recipe.batch_size * 300 == 200 * recipes.total_epochs(recipe)
    monkeypatch.setattr(sys, "argv", ["train.py", *flags_of("official", 2)])
    official = train_script.choose_recipe(train_script.parse_arguments(), None)
    assert ((recipe, given) == official) == (name == "official")


def test_a_run_is_trained_once_and_its_weights_do_not_stay(monkeypatch, tmp_path):
    commands, code = [], 0

    def run(command, **_options):
        commands.append(command)
        if not code:
            folder = Path(command[command.index("--save_folder") + 1])
            write_run(folder / "voc" / "yolof-r18-c5" / "1")
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr("docs.runs.subprocess.run", run)
    monkeypatch.chdir(tmp_path)  # train.py is found from anywhere
    for _ in range(2):
        folder = train(tmp_path, "set", "sgd, accumulate 4", 3)
    assert len(commands) == 1 and Path(commands[0][1]).is_file()
    assert folder == tmp_path / "sgd_accumulate_4" / "3" / "voc" / "yolof-r18-c5" / "1"
    assert not list(tmp_path.rglob("*.pth")) and (folder / "results.json").exists()
    code = 1
    with pytest.raises(UserError, match="ended with 1; see .*sgd.1.output.txt"):
        train(tmp_path, "set", "sgd", 1)
    assert finished(tmp_path / "sgd" / "1") == []


def test_the_table_says_what_is_compared(monkeypatch, capsys, tmp_path):
    def launch(_script, save_folder, _flags, **_options):
        folder = save_folder / "voc" / "yolof-r18-c5" / "1"
        write_run(folder)
        if save_folder.parent.name == "sgd":
            found = {"AP": 0.125, "AP50": 0.5}
            (folder / "metrics.json").write_text(json.dumps(found))
        return folder

    monkeypatch.setattr(yolof_switches, "launch", launch)
    flags = ["--root", "set", "--save_folder", str(tmp_path), "--only", "official", "sgd"]
    monkeypatch.setattr(sys, "argv", ["yolof_switches.py", *flags, "sgd, accumulate 4"])
    yolof_switches.main()
    *_, caption, empty, _, _, official, sgd, accumulated = capsys.readouterr().out.splitlines()
    assert "300 batches of 2 images, 3 seeds" in caption and "75" in caption and not empty
    assert "| +0.000 |" in official and "| -0.125 |" in sgd and "| +0.125 |" in accumulated
