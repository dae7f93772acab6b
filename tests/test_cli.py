"""The commands as a user types them, each once in a process of its own, then in this one, which
saves the seconds of its start; on the first images of the synthetic set."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch

import demo as demo_script
import eval as eval_script
import export as export_script
import models
import pretrain as pretrain_script
import test as test_script
import train as train_script
from benchmark import PARTS
from benchmark import parse_arguments as parse_benchmark
from tests.calls import check_sentence
from tests.miniature import write_synthetic
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
SMALL = "--epochs 1 --limit 16 --img_size 64 --batch_size 4 --num_workers 0 --device cpu".split()
TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(*command, timeout=200, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_synthetic(folder / "datasets", 16)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """A run's folder, made by train.py."""
    flags = ["-d", "synthetic", "-v", "yolox-nano", "--root", folder / "datasets"]
    flags += ["--tfboard"] if TENSORBOARD else []
    done = run("train.py", *flags, "--save_folder", folder / "runs", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder / "runs" / "synthetic" / "yolox-nano" / "1"


def test_a_run_leaves_what_the_docs_say(folder, trained):
    names = "args.json env.txt log.jsonl timing.jsonl train.log last.pth best.pth results.json"
    for name in (*names.split(), "metrics.json", "curves.png", "report.html", "detections"):
        assert (trained / name).exists(), name
    assert (trained / "tensorboard").exists() == TENSORBOARD
    assert len(list((trained / "detections").rglob("*.jpg"))) == 16
    said = (folder / "said.txt").read_text()
    for expected in (str(trained), "curves.png", "detections", "test.py --weight", "maxDets=100 ]"):
        assert expected in said
    assert json.loads((trained / "args.json").read_text())["recipe"]["img_size"] == 64
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["mode"] for line in lines] == ["train", "val"]


def test_eval_knows_the_checkpoints_data_and_size(folder, trained):
    done = run("eval.py", "--weight", trained / "best.pth", "--limit", 4, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in done.stdout
    assert "4 images" in done.stdout


def test_pictures_are_written_where_there_is_no_screen(call, trained):
    flags = ["--weight", trained / "best.pth", "--limit", 2, "--show", "--conf", 0.01]
    code, out, err = call("test", *flags, "--save", call.folder / "pictures")
    assert code == 0, err
    pictures = sorted((call.folder / "pictures").rglob("*.jpg"))
    assert len(pictures) == 2 and cv2.imread(str(pictures[0])).shape == (224, 224, 3)
    assert "no window" in out and str(call.folder / "pictures") in out


def test_the_python_interface_of_the_readme(trained):
    model = models.load(trained / "best.pth", conf=0.0)
    found = model.detect(cv2.imread(str(next((trained / "detections").rglob("*.jpg")))))
    assert found["boxes"].shape == (len(found["scores"]), 4) and len(found["labels"]) > 0
    assert {model.classes[label] for label in found["labels"]} <= set(model.classes)


def test_a_finished_run_goes_on_with_more_epochs_only(folder, call, trained):
    call.refused("--epochs", "train", "--resume", trained)
    call.refused("--batch_size", "train", "--resume", trained, "--batch_size", 2)
    call.refused("no unfinished run", "train", "--resume", "--save_folder", folder / "runs")
    copy = shutil.copytree(trained, call.folder / "copy")
    flags = ["--resume", copy, "--epochs", 2, "--num_workers", 0, "--device", "cpu"]
    code, out, err = call("train", *flags)
    assert code == 0, err
    assert "schedule recomputed" in out
    epochs = [json.loads(line)["epoch"] for line in (copy / "log.jsonl").read_text().splitlines()]
    assert epochs == [1, 1, 2, 2]


def test_fine_tuning_from_a_checkpoint_of_other_classes(folder, call, trained, monkeypatch):
    (call.folder / "names.txt").write_text("circle\nstar\n")
    flags = ["-d", "coco", "--root", folder / "datasets" / "synthetic", "--classes", "names.txt"]
    opened, read = [], models.read
    monkeypatch.setattr(models, "read", lambda path: opened.append(path) or read(path))
    weight = str(trained / "best.pth")
    code, out, err = call("train", *flags, "--weight", weight, *SMALL)
    assert code == 0, err
    assert "another number of classes: head.cls_preds.0.bias" in out
    assert "2 classes" in out and "yolox-nano" in out
    assert opened.count(weight) == 1


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train.py -v yolox-nanno", "did you mean yolox-nano"),
        ("train.py -d vocc -v yolox-nano", "did you mean voc"),
        ("train.py -d voc -v yolox-nano --root /nowhere", "/nowhere"),
        ("train.py -v yolox-nano --img_size 100", "multiple of 32"),
        ("train.py -v yolox-nano --batchsize 1", "did you mean --batch_size"),
        ("train.py -v yolox-nano --epochs 0", "not a whole number of 1 or more"),
        ("train.py -v yolox-nano --lr -1", "not a number of 0 or more"),
        ("eval.py --weight best.pth --conf 2", "not a number from 0 to 1"),
        ("train.py -d coco -v yolox-nano --root {root}/nowhere", "there is no folder"),
        ("train.py -v yolox-nano --weight nothing.pth --root {root}", "nothing.pth"),
        ("train.py -v yolox-nano --backbone cspdarknet-nanno", "did you mean cspdarknet-nano"),
        ("train.py --resume {root}", "last.pth"),
        ("eval.py --weight yolox_s.pth", "releases/download/0.1.1rc0/yolox_s.pth"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(command, expected, folder, call):
    script, *flags = command.format(root=folder / "datasets").split()
    call.refused(expected, script.removesuffix(".py"), *flags, "--device", "cpu")


def test_a_mistake_ends_the_process(folder):
    done = run("test.py", "--weight", folder, "--device", "cpu")
    assert done.returncode == 2, done.stdout + done.stderr
    check_sentence(done.stderr, "is a folder")


def test_help_of_a_process_explains_every_flag():
    done = run("demo.py", "--help")
    assert done.returncode == 0
    check_help(done.stdout)


@pytest.mark.parametrize("script", ["train", "pretrain", "eval", "test", "export", "benchmark"])
def test_help_explains_every_flag(script, call):
    code, out, _ = call(script, "--help")
    assert code == 0
    check_help(out)


@pytest.mark.parametrize("part", PARTS)
def test_help_of_a_benchmark_explains_every_flag(part, call):
    with pytest.raises(SystemExit) as end:
        parse_benchmark(part, ["--help"])
    assert not end.value.code
    check_help(call.capsys.readouterr().out)


def check_help(text: str):
    assert max(map(len, text.splitlines())) <= 100
    for line in text.split("\n\n", 1)[1].splitlines():
        assert not re.fullmatch(r"  (-\w, )?--\w+( \w+)?", line), f"no help: {line}"


COMMANDS = "pretrain|train|eval|test|demo|export|benchmark"


def commands() -> list[str]:
    """Every call of a script in the pages' blocks."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                call = re.search(rf"({COMMANDS})\.py\b.*", line.split(" #")[0])
                if call:
                    found.append(call.group())
    return found


@pytest.mark.parametrize("command", commands())
def test_the_pages_commands_are_understood(command, monkeypatch):
    scripts = {
        "train.py": train_script,
        "pretrain.py": pretrain_script,
        "eval.py": eval_script,
        "test.py": test_script,
        "demo.py": demo_script,
        "export.py": export_script,
    }
    name, *flags = shlex.split(command)
    if name == "benchmark.py":
        parse_benchmark(flags[0].removeprefix("--"), flags[1:])
        return
    monkeypatch.setattr(sys, "argv", [name, *flags])
    args = scripts[name].parse_arguments()
    if name == "train.py" and args.resume is None and not args.weight:
        train_script.choose_recipe(args, train_script.named_weight(args))
    if name == "pretrain.py" and args.resume is None:
        pretrain_script.choose_recipe(args)


TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node 2".split()
RANKS = """
import os, sys
import engine, train
from utils import cli, dist
ill = os.environ.get("ILL")
if ill and dist.local_rank() == 1:
    update = engine.Trainer.update
    def fail(self, *rest):
        if self.position.update == 2:
            if ill == "raise":
                raise RuntimeError("this process is ill")
            os.kill(os.getpid(), 9)
        return update(self, *rest)
    engine.Trainer.update = fail
if __name__ == "__main__":
    cli.run_main(train.main)
"""


def two_ranks(folder: Path, ill: str) -> tuple[int, str, float]:
    program = folder / "ranks.py"
    program.write_text(RANKS)
    flags = ["-d", "synthetic", "-v", "yolox-nano", "--root", folder / "datasets", *SMALL]
    flags = [*flags, "--num_workers", 1, "--batch_size", 2, "--save_folder", folder / f"two{ill}"]
    began = time.monotonic()
    environment = {**os.environ, "ILL": ill, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(program), *map(str, flags)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def test_two_processes_train(folder, trained):
    code, said, _ = two_ranks(folder, "")
    assert code == 0, said
    assert said.count("Average Precision") == 6  # one process talks
    assert (folder / "two" / "synthetic" / "yolox-nano" / "1" / "metrics.json").exists()


def test_two_processes_evaluate_as_one_does(folder, call, trained):
    flags = ["--weight", trained / "best.pth", "--limit", 7, "--device", "cpu", "--conf", 0]
    _, one, _ = call("eval", *flags, "--out", folder / "one.json")
    two = run(*TORCHRUN, "eval.py", *flags, "--out", folder / "two.json")
    tables = [
        [line for line in said.splitlines() if "Average" in line or line.startswith("AP ")]
        for said in (one, two.stdout)
    ]
    assert len(tables[0]) == 13 and tables[0] == tables[1], two.stdout + two.stderr
    found = (folder / "one.json").read_text()
    assert len({entry["image_id"] for entry in json.loads(found)}) == 7
    assert (folder / "two.json").read_text() == found


@pytest.mark.parametrize("ill", ["raise", "kill"])
def test_a_process_that_dies_ends_the_others_within_a_minute(ill, folder, trained):
    code, said, seconds = two_ranks(folder, ill)
    assert code != 0 and seconds < 90, seconds
    assert "this process is ill" in said or "SIGKILL" in said


def test_reading_a_checkpoint_that_is_cut_is_a_users_error(trained, tmp_path):
    cut = tmp_path / "cut.pth"
    cut.write_bytes((trained / "best.pth").read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut"):
        models.load(cut)
    assert torch.load(trained / "best.pth", weights_only=True)["classes"]
