"""A killed run that is resumed ends with the bits of one that was never killed.

`KILLS=10 pytest tests/test_resume.py` kills ten times at random moments; the suite kills twice.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("KILLS", "2"))
FLAGS = (
    "-d synthetic -v yolox-nano --img_size 64 --limit 48 --epochs 3 --batch_size 8 --accumulate 2 "
    "--eval_epoch 2 --device cpu"
).split()


def start(folder: Path, root: Path, *flags) -> subprocess.Popen:
    command = [sys.executable, "train.py", "--save_folder", str(folder), *flags]
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(
            [*command, *(() if "--resume" in flags else (*FLAGS, "--root", str(root)))],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(folder: Path, root: Path, *flags) -> int:
    return start(folder, root, *flags).wait(timeout=300)


def same(a, b, where="checkpoint"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where


def same_runs(one: Path, other: Path):
    """Checkpoints and logs of two runs, without the clock and the folders' names."""
    for name in ("last.pth", "best.pth"):
        contents = [torch.load(run / name, weights_only=True) for run in (one, other)]
        for content in contents:
            content.pop("arguments")
            content.pop("log", None)
        same(*contents)
    logs = [(run / "log.jsonl").read_text() for run in (one, other)]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_root) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    code = finish(folder, data_root)
    assert code == 0, (folder / "output.txt").read_text()
    return folder / "synthetic" / "yolox-nano" / "1"


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_and_resume_until_the_end(workers, uninterrupted, data_root, tmp_path):
    rng = random.Random(workers)
    flags = ["--num_workers", str(workers)]
    run = start(tmp_path, data_root, *flags)
    last = tmp_path / "synthetic" / "yolox-nano" / "1" / "last.pth"
    while not last.exists():
        assert run.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.0, 2.5))
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        if torch.load(last, weights_only=True)["finished"]:
            break
        run = start(tmp_path, data_root, "--resume", *flags)
        time.sleep(rng.uniform(2.0, 5.0))
    assert run.wait(timeout=300) in (0, 2, -signal.SIGKILL), (tmp_path / "output.txt").read_text()
    same_runs(uninterrupted, last.parent)


def test_ctrl_c_saves_at_the_step_and_the_run_goes_on(uninterrupted, data_root, tmp_path):
    run = start(tmp_path, data_root)
    folder = tmp_path / "synthetic" / "yolox-nano" / "1"
    while not (folder / "best.pth").exists():
        assert run.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(timeout=60) in (130, 0)
    said = (tmp_path / "output.txt").read_text()
    if run.returncode == 130:
        assert "--resume" in said
        assert finish(tmp_path, data_root, "--resume", str(folder)) == 0
    same_runs(uninterrupted, folder)
