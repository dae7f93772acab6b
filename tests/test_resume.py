"""A run that is killed or stopped, and goes on, ends with the bits of one that never was.

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

from tests.miniature import write_synthetic

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("KILLS", "2"))
IMAGES = 48
FLAGS = (
    f"-d synthetic -v yolox-nano --img_size 64 --epochs {max(4, KILLS)} --batch_size 4 "
    "--accumulate 2 --eval_epoch 2 --device cpu"
).split()


# Also saves inside epochs, every 0.3 seconds, so that kills fall between such saves too.
PROGRAM = """
import engine, train
from utils import cli
engine.SAVE_SECONDS = 0.3
if __name__ == "__main__":
    cli.run_main(train.main)
"""


def start(folder: Path, root: Path, *flags) -> subprocess.Popen:
    own = () if "--resume" in flags else (*FLAGS, "--root", str(root))
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "--save_folder", str(folder), *own, *flags],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
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
            content.pop("log", None)  # how long timing.jsonl is
        same(*contents)
    assert (one / "results.json").read_text() == (other / "results.json").read_text()
    assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()
    logs = [(run / "log.jsonl").read_text() for run in (one, other)]
    assert logs[0] == logs[1] and "step" in json.loads(logs[0].splitlines()[0])
    told = [(run / "train.log").read_text().splitlines()[1:] for run in (one, other)]
    assert [line.replace(str(one), "") for line in told[0]] == [
        line.replace(str(other), "") for line in told[1]
    ]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_synthetic(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_root) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    code = finish(folder, data_root)
    assert code == 0, (folder / "output.txt").read_text()
    return folder / "synthetic" / "yolox-nano" / "1"


def position(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)["position"]


def test_a_run_that_is_stopped_and_goes_on_ends_with_the_same_bits(
    uninterrupted, data_root, tmp_path
):
    """Killed, then ended by Ctrl-C, in turn with two processes that read images and with none."""
    rng, folder = random.Random(0), tmp_path / "synthetic" / "yolox-nano" / "1"
    last, output = folder / "last.pth", tmp_path / "output.txt"
    run = start(tmp_path, data_root, "--num_workers", "2")
    while not last.exists():
        assert run.poll() is None, output.read_text()
        time.sleep(0.05)
    for stop in range(KILLS + 1):
        time.sleep(rng.uniform(0.0, 0.3))
        assert run.poll() is None, output.read_text()
        if stop < KILLS:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        else:
            os.kill(run.pid, signal.SIGINT)
            assert run.wait(timeout=60) == 130
            assert f"--resume {folder}" in output.read_text()
        before, named = position(last), [] if stop < KILLS else [str(folder)]
        workers = str(2 * (stop % 2))
        run = start(tmp_path, data_root, "--resume", *named, "--num_workers", workers)
        # Until the resumed run has moved on, a kill would only repeat the one before.
        while run.poll() is None and position(last) == before:
            time.sleep(0.05)
    assert run.wait(timeout=300) == 0, output.read_text()
    same_runs(uninterrupted, folder)
