"""Every file that replaces one is written whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from utils import checkpoint, coco_results
from utils.errors import UserError
from utils.files import replace_file
from utils.log import RunLog


def to_log(path: Path, value: int):
    RunLog(path.parent).write(path.name, json.dumps([value]))


def to_results(path: Path, value: int):
    coco_results.write(path, [value])


def to_checkpoint(path: Path, value: int):
    checkpoint.save(path, {"value": value})


WRITERS = [to_log, to_results, to_checkpoint]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(write, step, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file.json"
    write(path, 1)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open" if step == "open" else f"os.{step}", full)
        with pytest.raises(UserError, match="file.json: No space left.*unharmed"):
            write(path, 2)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["file.json"]
    write(path, 2)
    assert path.read_bytes() != before and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("write", WRITERS)
def test_contents_reach_the_disk_before_the_name(write, tmp_path, monkeypatch):
    done = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(
            os, step, lambda *rest, real=real, step=step: done.append(step) or real(*rest)
        )
    write(tmp_path / "file.json", 1)
    assert done == (["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"])


def test_an_error_of_the_program_is_not_the_disk_s(tmp_path):
    def wrong(file):
        file.write(b"half")
        raise RuntimeError("no tensor")

    with pytest.raises(RuntimeError, match="no tensor"):
        replace_file(tmp_path / "file.json", wrong)
    assert os.listdir(tmp_path) == []


def test_an_unmakeable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*another folder"):
        replace_file(tmp_path / "file" / "x.json", lambda file: file.write(b""))
