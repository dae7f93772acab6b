"""Bad weights, full disks, two at once, interruptions: a sentence and exit code 2; nothing that a
file holds is executed, and nothing is lost. Rows are as in test_bad_inputs.py.
"""

import argparse
import collections
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import train as train_script
from tests.calls import TINY, check_sentence, cut, empty, table
from tests.miniature import write_voc
from utils import checkpoint, run_folder, video, vis

ROOT = Path(__file__).parent.parent
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


# ---- checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(set, run): a run of one epoch on the miniature set."""
    folder = tmp_path_factory.mktemp("trained")
    write_voc(folder / "set", test="b")
    flags = ["train.py", "-d", "voc", "--root", folder / "set", *TINY, "--epochs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(sys, "argv", [*map(str, flags), "--save_folder", str(folder / "runs")])
        assert train_script.main() == 0
    return folder / "set", folder / "runs" / "voc" / "yolox-nano" / "1"


def whole_module(path):
    torch.save(nn.Linear(2, 2), path)


def zip_slip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../slipped/data.pkl", pickle.dumps({"a": 1}))
        archive.writestr("../../slipped.txt", "x")


def foreign(path):
    torch.save({"model": {"layer1.weight": torch.zeros(3)}}, path)


def other_shapes(path):
    content = torch.load(path, weights_only=True)
    name = "backbone.stem.conv.conv.weight"
    content["model"][name] = torch.zeros(5, 5)
    torch.save(content, path)


WEIGHTS = [  # spoils a copy of best.pth
    ("half a file", cut, "cut off"),
    ("an empty file", empty, "is empty"),
    ("text", lambda p: p.write_text("hello\n" * 99), "no checkpoint"),
    ("a web page", lambda p: p.write_text("<!DOCTYPE html><html>not found"), "web page"),
    (
        "safetensors",
        lambda p: p.write_bytes(struct.pack("<Q", 16) + b'{"a":{"shape":1}}'),
        "safetensors",
    ),
    ("a folder", lambda p: (p.unlink(), p.mkdir()), "is a folder"),
    ("a list", lambda p: torch.save([1, 2], p), "holds a list"),
    ("no weights in it", lambda p: torch.save({"epoch": 3}, p), "no weights"),
    ("a module of another model", whole_module, "no model known"),
    ("weights of another model", foreign, "no model known"),
    ("names that climb out of the archive", zip_slip, "no weights"),
    ("a picture", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "no checkpoint"),
    ("weights of another shape", other_shapes, ("1 reshaped", "stem.conv.conv.weight")),
]


@table(WEIGHTS)
@pytest.mark.parametrize("script", ["train", "eval", "test"])
def test_weights_that_are_refused(row, script, call, trained):
    shutil.copy(trained[1] / "best.pth", call.folder / "weights.pth")
    row[1](call.folder / "weights.pth")
    flags = ["-d", "voc", "--root", trained[0], "--weight", "weights.pth", "--device", "cpu"]
    words = row[2] if isinstance(row[2], tuple) else (row[2],)
    call.refused(words, script, *flags)
    assert {path.name for path in call.folder.iterdir()} <= {
        "weights.pth",
        "cache",
        "runs",
        "detections",
    }
    assert not list(call.folder.parent.rglob("slipped*"))


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def shell(marker):
    return Calls(os.system, f"touch {marker}")


def evaluated(marker):
    return Calls(eval, f"open({str(marker)!r}, 'w')")


def executed(marker):
    return Calls(exec, f"open({str(marker)!r}, 'w')")


def started(marker):
    return Calls(subprocess.Popen, ["touch", str(marker)])


def nested(marker):
    return collections.OrderedDict(w=torch.ones(2), deep=[{"x": (shell(marker),)}])


def listed(marker):
    return argparse.Namespace(hooks=[evaluated(marker)], names={"a"})


PROGRAMS = [shell, evaluated, executed, started, nested, listed]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_that_are_programs_do_nothing(program, zipped, call, trained):
    marker = call.folder / "marker"
    hostile = {"model": {"w": torch.ones(2)}, "args": program(marker)}
    for content in (hostile, program(marker)):
        torch.save(content, "evil.pth", _use_new_zipfile_serialization=zipped)
        flags = ["-d", "voc", "--root", trained[0], "--weight", "evil.pth", "--device", "cpu"]
        call.refused("", "eval", *flags)
        call.refused("", "train", *flags)
    shutil.copytree(trained[1], "run")
    torch.save(hostile, "run/last.pth", _use_new_zipfile_serialization=zipped)
    call.refused("last.pth", "train", "--resume", "run", "--device", "cpu")
    time.sleep(0.05)
    assert not marker.exists()
    pickle.loads(pickle.dumps(shell(marker)))  # the trap itself works
    assert marker.exists()


def test_another_model_than_named(call, trained):
    flags = ["-d", "voc", "--root", trained[0], "--weight", trained[1] / "best.pth"]
    call.refused(("holds yolox-nano, not yolox-s", "-v"), "train", *flags, "-v", "yolox-s")


def test_another_number_of_classes(call, trained):
    """Evaluation refuses and shows both lists; training starts the head anew and says so."""
    shutil.copytree(trained[0], "set")
    for path in (Path("set") / "VOCdevkit/VOC2007/Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("<name>dog<", "<name>cat<"))
    Path("set/classes.txt").write_text("cat\n")
    flags = ["-d", "voc", "--root", "set", "--weight", trained[1] / "best.pth", "--device", "cpu"]
    words = ("1 classes (cat)", "the model 20 (aeroplane, ", "--classes")
    call.refused(words, "eval", *flags, "--classes", "set/classes.txt")
    code, out, err = call("train", *flags, "--num_workers", 0, "--vis_targets")
    assert code == 0, err
    assert "another number of classes: head.cls_preds.0.bias" in out and "untrained" in out


# ---- results of detections, and sources of pictures


def results(**changes):
    entry = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    return json.dumps([{**entry, **changes}])


RESULTS = [
    ("no json", "hello", "no whole json"),
    ("half a json", results()[:-20], "no whole json"),
    ("an object", "{}", "not a list"),
    ("a list of numbers", "[1, 2]", "entry 0"),
    ("no score", results(score=None), ("entry 0", "score")),
    ("a score of NaN", results(score=float("nan")), ("entry 0", "score")),
    ("a box of three", results(bbox=[1, 2, 3]), ("entry 0", "bbox")),
    ("a box of negative size", results(bbox=[1, 2, -3, 4]), "negative size"),
    ("an image that is not there", results(image_id=99), ("image ids 99", "another set")),
    ("a category that is not there", results(category_id=99), "category ids 99"),
]


@table(RESULTS)
def test_results_that_are_refused(row, call, trained):
    Path("found.json").write_text(row[1])
    flags = ["-d", "voc", "--root", trained[0], "--results", "found.json"]
    words = row[2] if isinstance(row[2], tuple) else (row[2],)
    call.refused(("found.json", *words), "eval", *flags)


SOURCES = [  # flags of demo.py; FILE is a text, EMPTY a folder
    ("nothing", "--source gone", ("gone", "no such file")),
    ("an empty folder", "--source EMPTY", "no image or video"),
    ("a pattern of nothing", "--source *.tif", "no image or video"),
    ("an empty list", "--source list.txt", "list is empty"),
    ("a camera that is not there", "--source 97", "camera 97 cannot be opened"),
    ("a text named .mp4", "--source text.mp4", ("text.mp4", "not a video")),
    ("an empty video", "--source empty.mp4", "empty.mp4"),
    ("a text named .jpg", "--source text.jpg", ("text.jpg", "not an image")),
    ("an empty image", "--source empty.png", ("empty.png", "empty")),
    ("pictures below a file", "--source a.png --save FILE/x", "FILE"),
    ("a class unknown", "--source a.png --classes catt", ("catt", "cat")),
]


@table(SOURCES)
def test_sources_that_are_refused(row, call, trained):
    for name in ("FILE", "text.mp4", "text.jpg"):
        Path(name).write_text("neither picture nor video")
    for name in ("list.txt", "empty.mp4", "empty.png"):
        Path(name).touch()
    Path("EMPTY").mkdir()
    vis.save("a.png", np.zeros((32, 32, 3), np.uint8))
    flags = [*row[1].split(), "--weight", trained[1] / "best.pth", "--device", "cpu"]
    call.refused(row[2], "demo", *flags)


def test_an_unreadable_picture_among_others_is_skipped_and_counted(call, trained):
    for name in ("a", "b"):
        vis.save(f"photos/{name}.png", np.zeros((32, 32, 3), np.uint8))
    cut(Path("photos/b.png"))
    flags = ["--source", "photos", "--weight", trained[1] / "best.pth", "--device", "cpu"]
    code, out, err = call("demo", *flags, "--save", "drawn")
    assert code == 0, err
    assert "b.png" in out + err and len(list(Path("drawn").glob("*"))) == 1


def test_a_codec_that_is_not_there(call, trained, monkeypatch):
    """Without any codec a sentence; without the first one the second is used."""
    with video.Writer("film", 10) as writer:
        for _ in range(3):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    flags = ["--source", writer.path, "--weight", trained[1] / "best.pth", "--device", "cpu"]
    monkeypatch.setattr(video, "CODECS", (("NONE", ".mp4"),))
    call.refused(("no video writer", "NONE in .mp4"), "demo", *flags, "--save", "drawn")
    monkeypatch.setattr(video, "CODECS", (("NONE", ".mp4"), ("MJPG", ".avi")))
    code, _, err = call("demo", *flags, "--save", "drawn")
    assert code == 0, err
    assert [path.name for path in Path("drawn").iterdir()] == ["film.avi"]


RESUMED = [  # spoils a copy of a finished run
    ("half a last.pth", lambda run: cut(run / "last.pth"), "cut off"),
    ("an empty last.pth", lambda run: empty(run / "last.pth"), "is empty"),
    ("no last.pth", lambda run: (run / "last.pth").unlink(), "no last.pth"),
    (
        "best.pth in its place",
        lambda run: shutil.copy(run / "best.pth", run / "last.pth"),
        ("weights, not the state", "--weight"),
    ),
    ("all of it done", lambda run: None, "--epochs"),
    ("an earlier release's", lambda run: forget_schedule(run), ("earlier release", "--weight")),
]


def forget_schedule(run):
    """Makes the run one of before recipes had a schedule of their own."""
    saved = torch.load(run / "last.pth", weights_only=True)
    del saved["recipe"]["schedule"]
    torch.save(saved, run / "last.pth")


@table(RESUMED)
def test_runs_that_cannot_go_on(row, call, trained):
    shutil.copytree(trained[1], "run")
    row[1](Path("run"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*") if path.is_file()}
    call.refused(row[2], "train", "--resume", "run", "--device", "cpu")
    for path, content in before.items():
        assert path.name == run_folder.LOCK or path.read_bytes() == content


# ---- disks that are full


def full(*_args, **_options):
    raise OSError(errno.ENOSPC, "No space left on device")


FULL = [("at write", "save", 3), ("at flush", "fsync", 4), ("at rename", "replace", 5)]


@table(FULL)
def test_a_disk_that_fills_up_during_a_training(row, call, trained, monkeypatch):
    """The run ends with the checkpoints before as they were, and goes on once there is room."""
    _, step, number = row
    saves, real_save = [], checkpoint.save

    def save(path, content):
        saves.append((path, path.exists() and path.read_bytes()))
        with pytest.MonkeyPatch.context() as patch:
            if len(saves) == number:
                patch.setattr(torch if step == "save" else os, step, full)
            real_save(path, content)

    monkeypatch.setattr(checkpoint, "save", save)
    flags = ["-d", "voc", "--root", trained[0], *TINY, "--epochs", 2]
    call.refused(("best.pth" if number == 3 else "last.pth", "No space left"), "train", *flags)
    folder, (path, before) = Path("runs/voc/yolox-nano/1"), saves[-1]
    assert len(saves) == number and checkpoint.read(folder / "last.pth")
    assert path.read_bytes() == before if before else not path.exists()
    assert not list(folder.glob(".*.tmp"))
    monkeypatch.setattr(checkpoint, "save", real_save)
    if number == 4:  # one is enough: it takes a second
        code, _, err = call("train", "--resume", "--device", "cpu")
        assert code == 0 and (folder / "metrics.json").is_file(), err


@pytest.mark.parametrize("name", ["train.log", "log.jsonl", "timing.jsonl", "args.json"])
def test_a_disk_that_fills_up_under_the_log(name, call, trained, monkeypatch):
    real_open, opened = open, []

    def open_here(file, mode="r", *rest, **options):
        if name in str(file) and mode[0] in "aw":
            opened.append(file)
            return real_open("/dev/full", mode.replace("a", "w"))
        return real_open(file, mode, *rest, **options)

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    monkeypatch.setattr("builtins.open", open_here)
    monkeypatch.setattr("io.open", open_here)
    flags = ["-d", "voc", "--root", trained[0], *TINY, "--epochs", 1]
    call.refused((name, "No space left", "--save_folder"), "train", *flags)
    assert opened


LIMITED = """
import resource, signal, sys
import train
from utils import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
cli.run_main(train.main)
"""


@POSIX
def test_a_limit_of_file_sizes(call, trained):
    flags = ["-d", "voc", "--root", trained[0], *TINY, "--epochs", 1]
    done = child("-c", LIMITED, *flags, "--save_folder", call.folder / "runs")
    assert done.returncode == 2, done.stderr
    check_sentence(done.stderr, ("last.pth", "File too large"))
    assert not list((call.folder / "runs").rglob("*.pth")) + list(call.folder.rglob(".last*"))


def child(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        **options,
    )


# ---- two at once, and interruptions


def hold(folder, held):
    run_folder.claim(Path(folder))
    held.set()
    time.sleep(60)


def test_two_processes_in_one_run(call, trained):
    shutil.copytree(trained[1], "run")
    held = CONTEXT.Event()
    holder = CONTEXT.Process(target=hold, args=("run", held))
    holder.start()
    assert held.wait(60)
    flags = ["--resume", "run", "--epochs", 2, "--device", "cpu"]
    call.refused(("run is in use", f"process {holder.pid}"), "train", *flags)
    holder.kill()
    holder.join()
    code, _, err = call("train", *flags)  # the lock is gone with its process
    assert code == 0, err


def take_numbers(folder, names):
    names.put([int(run_folder.numbered(Path(folder)).name) for _ in range(20)])


def test_two_new_runs_at_once_get_folders_of_their_own(tmp_path):
    names = CONTEXT.Queue()
    both = [CONTEXT.Process(target=take_numbers, args=(tmp_path / "runs", names)) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(names.get(timeout=60) + names.get(timeout=60)) == list(range(1, 41))
    for process in both:
        process.join()


@POSIX
@pytest.mark.parametrize("signum", [signal.SIGINT])
def test_ctrl_c_at_once(signum, tmp_path):
    """While the data are read there is nothing to save: a word, and the usual code."""
    command = [sys.executable, "train.py", "-d", "synthetic", "--root", str(tmp_path / "sets")]
    command += ["--device", "cpu", "--save_folder", str(tmp_path / "runs")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    # A job in the background ignores the signal, and its children would as well.
    handler = signal.signal(signum, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, **pipes)
    finally:
        signal.signal(signum, handler)
    with process:
        assert process.stdout.readline().startswith("device")
        while not list(tmp_path.glob("sets/.*/*")):
            time.sleep(0.01)
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum and "Traceback" not in err, err
    assert not list((tmp_path / "sets").iterdir()) and not (tmp_path / "runs").exists()
