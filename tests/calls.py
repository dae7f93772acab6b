"""Commands run as a user runs them, and files spoiled, for the tests of bad inputs."""

import sys
from pathlib import Path

import pytest

import benchmark
import demo
import eval as eval_script
import export
import pretrain
import test as test_script
import train as train_script
from data import check, convert
from utils import cli

SCRIPTS = {
    "train": train_script,
    "pretrain": pretrain,
    "eval": eval_script,
    "test": test_script,
    "demo": demo,
    "export": export,
    "benchmark": benchmark,
    "check": check,
    "convert": convert,
}
TINY = "-v yolox-nano --img_size 32 --batch_size 2 --num_workers 0 --device cpu".split()


def table(rows):
    return pytest.mark.parametrize("row", rows, ids=[row[0] for row in rows])


class Call:
    """Runs a command in this process as its `__main__` would."""

    def __init__(self, monkeypatch, capsys, folder):
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder

    def __call__(self, script: str, *flags) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            cli.run_main(SCRIPTS[script].main)
        said = self.capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    def refused(self, words, script: str, *flags) -> str:
        """The command ends with code 2 and a short sentence that holds all these words."""
        code, out, err = self(script, *flags)
        assert code == 2, (code, out, err)
        check_sentence(err, words)
        return err


def check_sentence(err: str, words):
    assert "Traceback" not in err and err.count("\n") <= 9, err
    for word in words if isinstance(words, tuple) else (words,):
        assert word in err, err


def spoil(path: Path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def cut(path: Path, share: float = 0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def empty(path: Path):
    path.write_bytes(b"")
