import argparse
import collections
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from utils import checkpoint, unpickle
from utils.errors import UserError


def content(seed=0):
    torch.manual_seed(seed)
    return {
        "model": {"a.weight": torch.randn(3, 4), "a.steps": torch.tensor(7)},
        "optimizer": {"state": {0: {"momentum": torch.randn(3)}}, "groups": [{"lr": 0.1}]},
        "classes": ["cat", "dog"],
        "best": 0.25,
        "epoch": 3,
        "finished": False,
        "scaler": None,
        "size": (640, 640),
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


class Runs:
    """Pickles as a call of os.system that makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def zipped(value, path):
    torch.save(value, path)


FORMATS = pytest.mark.parametrize("write", [zipped, legacy])


# ---- saving


def test_round_trip(tmp_path):
    checkpoint.save(tmp_path / "new folder" / "last.pth", content())
    assert same(checkpoint.read(tmp_path / "new folder" / "last.pth"), content())
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["last.pth"]


def test_equal_contents_give_equal_bytes(tmp_path):
    one, other = content(), content()
    other["classes"] = ["".join(["ca", "t"]), "".join(["do", "g"])]
    other["more"], one["more"] = "".join(["ca", "t"]), "cat"
    other["model"] = collections.OrderedDict(
        (name, nn.Parameter(value, requires_grad=value.is_floating_point()))
        for name, value in other["model"].items()
    )
    checkpoint.save(tmp_path / "a.pth", one)
    checkpoint.save(tmp_path / "another name.pth", other)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "another name.pth").read_bytes()
    checkpoint.save(tmp_path / "c.pth", content(seed=1))
    assert (tmp_path / "a.pth").read_bytes() != (tmp_path / "c.pth").read_bytes()


@pytest.mark.parametrize(
    "value", [np.float64(0.5), {1, 2}, argparse.Namespace(), np.zeros(2), b"x"]
)
def test_only_plain_values_are_saved(tmp_path, value):
    with pytest.raises(TypeError, match="last.pth: extra: 0"):
        checkpoint.save(tmp_path / "last.pth", {"extra": [value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "last.pth"
    checkpoint.save(path, content())
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    if step == "open":
        monkeypatch.setattr("builtins.open", full)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match="last.pth.*No space left"):
        checkpoint.save(path, content(seed=1))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_full_device(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    path = tmp_path / "last.pth"
    checkpoint.save(path, content())
    before = path.read_bytes()
    real_open = open

    def on_full_device(name, mode="r", **options):
        return real_open("/dev/full" if "w" in mode else name, mode, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", on_full_device)
        for size in (10, 1_000_000):  # the write fails at the flush, or in the middle
            with pytest.raises(UserError, match="No space left"):
                checkpoint.save(path, {"model": torch.zeros(size)})
    assert path.read_bytes() == before


LIMITED = """
import resource, signal, sys, torch
from utils import checkpoint
from utils.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(sys.argv[1], {"model": torch.zeros(100_000)})
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_disk_that_fills_up_while_writing(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, content())
    before = path.read_bytes()
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def save_often(path, seed):
    for _ in range(30):
        checkpoint.save(path, content(seed))


def test_two_processes_save_to_one_path(tmp_path):
    path = tmp_path / "last.pth"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers = [context.Process(target=save_often, args=(path, seed)) for seed in (0, 1)]
    for worker in workers:
        worker.start()
    while not path.exists():
        pass
    for _ in range(20):
        found = checkpoint.read(path)
        assert same(found, content(0)) or same(found, content(1))
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


# ---- reading


@FORMATS
def test_a_program_is_not_run(tmp_path, write):
    marker = tmp_path / "marker"
    write({"model": {"w": torch.ones(2)}, "evil": Runs(marker)}, tmp_path / "evil.pth")
    found = checkpoint.read(tmp_path / "evil.pth")
    assert same(checkpoint.find_state(found), {"w": torch.ones(2)})
    assert not marker.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch MARKER'\ntR.",
        b'cbuiltins\nexec\n(S\'open("MARKER", "w")\'\ntR.',
        b"(S'touch MARKER'\nios\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch MARKER\x85R.",
        b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S'touch MARKER'\ntR.",
        b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch MARKER\x85\x81.",
    ],
)
def test_opcodes_that_call(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        archive.writestr("evil/data.pkl", program)
        archive.writestr("evil/version", "3\n")
    (tmp_path / "bare.pth").write_bytes(program)
    for name in ("evil.pth", "bare.pth"):
        with pytest.raises(UserError):
            checkpoint.find_state(checkpoint.read(tmp_path / name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare.pth", "evil.pth"]


def test_the_functions_of_the_reader_cannot_be_changed():
    state = pickle.dumps({"__defaults__": (1,), "function": None})[2:-1]
    for name in (
        "torch._utils\n_rebuild_tensor_v2",
        "numpy\ndtype",
        "some\nthing",
        "torch\nfloat32",
    ):
        program = b"\x80\x04c" + name.encode() + b"\n" + state + b"b."
        with pytest.raises((pickle.UnpicklingError, TypeError, AttributeError)):
            unpickle.Reader(io.BytesIO(program), None).load()
    assert unpickle.KNOWN["torch._utils._rebuild_tensor_v2"].function is unpickle._tensor


@FORMATS
def test_numbers_of_numpy_and_namespaces(tmp_path, write):
    write(
        {
            "state_dict": {"w": torch.arange(6.0).reshape(2, 3).T},
            "args": argparse.Namespace(lr=0.1, names=["a"], deep=argparse.Namespace(x=1)),
            "ap": np.float64(0.405),
            "big": np.int64(2**40),
            "array": np.arange(6, dtype=np.float32).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
            "objects": np.array([None, {}], dtype=object),
            "names": {"a"},
        },
        tmp_path / "public.pth",
    )
    found = checkpoint.read(tmp_path / "public.pth")
    assert found["args"] == {"lr": 0.1, "names": ["a"], "deep": {"x": 1}}
    assert found["ap"] == 0.405 and type(found["ap"]) is float
    assert found["big"] == 2**40 and type(found["big"]) is int
    assert torch.equal(found["array"], torch.arange(6.0).reshape(2, 3))
    assert found["fortran"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["objects"] is None
    state = checkpoint.find_state(found)
    assert same(state, {"w": torch.arange(6.0).reshape(2, 3).T})


def public_module(package):
    """A module whose classes live in a package that will be gone when the file is read."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.bn = nn.BatchNorm2d(4)
            self.register_buffer("grid", torch.zeros(2), persistent=False)
            self.anything = {"self": self, "kind": Block}

    Block.__module__, Block.__qualname__ = package.__name__, "Block"
    package.Block = Block
    return nn.Sequential(Block(), nn.ModuleList([nn.Linear(2, 2)]))


@FORMATS
@pytest.mark.parametrize("inside", [False, True])
def test_whole_modules_give_their_state(tmp_path, monkeypatch, write, inside):
    package = types.ModuleType("gone_package")
    monkeypatch.setitem(sys.modules, "gone_package", package)
    module = public_module(package)
    expected = dict(module.state_dict())
    path = tmp_path / "module.pth"
    write({"epoch": 3, "model": module} if inside else module, path)
    monkeypatch.delitem(sys.modules, "gone_package")
    assert same(checkpoint.find_state(checkpoint.read(path)), expected)


@FORMATS
def test_dtypes_views_and_shared_storage(tmp_path, write):
    base = torch.arange(12.0)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    kinds += [torch.int8, torch.uint8, torch.bool]
    state = {str(kind): torch.tensor([0, 1, 1]).to(kind) for kind in kinds}
    state |= {"view": base[4:8], "rows": base.view(3, 4)[1:, ::2], "base": base}
    state |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.0)}
    write({"model": state, "reason": np.float64(1)}, tmp_path / "x.pth")
    assert same(checkpoint.read(tmp_path / "x.pth")["model"], state)


@FORMATS
def test_damaged_files(tmp_path, write):
    path, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    for value in ({"model": {"w": torch.ones(500)}}, {"w": torch.ones(500), "n": np.float64(1)}):
        write(value, path)
        whole = path.read_bytes()
        for length in (1, 3, 10, len(whole) // 2, len(whole) - 30, len(whole) - 1):
            cut.write_bytes(whole[:length])
            with pytest.raises(UserError, match="cut.pth"):
                checkpoint.read(cut)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at .*gone.pth"):
        checkpoint.read(tmp_path / "gone.pth")
    with pytest.raises(UserError, match="is a folder"):
        checkpoint.read(tmp_path)
    for name, data in {
        "empty": b"",
        "text": b"hello\nworld\n" * 9,
        "html": b"<!DOCTYPE html>",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            checkpoint.read(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(UserError, match="photos.zip is an archive without"):
        checkpoint.read(tmp_path / "photos.zip")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        checkpoint.read(tmp_path / "list.pth")


def test_torchscript_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", pickle.dumps({}))
        archive.writestr("script/constants.pkl", pickle.dumps(()))
    with pytest.raises(UserError, match="TorchScript"):
        checkpoint.read(tmp_path / "script.pt")


# ---- weights


@pytest.mark.parametrize("key", ["ema", "model", "state_dict", "model_state", "params", None])
def test_find_state_by_key(key):
    state = {"module.a.weight": torch.ones(1), "module.module.b": torch.ones(2)}
    found = checkpoint.find_state({key: state, "epoch": 3} if key else state)
    assert list(found) == ["a.weight", "module.b"]


def test_find_state_prefers_the_average_and_looks_inside():
    average, raw = {"w": torch.ones(1)}, {"w": torch.zeros(1)}
    assert checkpoint.find_state({"model": raw, "ema": average})["w"] == 1
    assert checkpoint.find_state({"model": raw, "ema": {"model": average, "updates": 3}})["w"] == 1
    assert checkpoint.find_state({"model": raw, "ema": None})["w"] == 0
    assert "module.x" in checkpoint.find_state({"module.x": raw["w"], "y": raw["w"]})


def test_find_state_says_what_it_found():
    with pytest.raises(UserError, match="optimizer, epoch"):
        checkpoint.find_state({"optimizer": {"state": {}}, "epoch": 1})
    with pytest.raises(UserError, match="nothing"):
        checkpoint.find_state({})


def small():
    return nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 3)})


def test_load_weights():
    source, target = small(), small()
    assert checkpoint.load_weights(target, source.state_dict()) == []
    assert torch.equal(source["head"].weight, target["head"].weight)


def test_load_weights_refuses_and_leaves_the_model():
    source, target = small().state_dict(), small()
    before = target["body"].weight.clone()
    source["head.weight"] = torch.zeros(5, 2)
    source["extra"] = source.pop("body.bias")
    with pytest.raises(UserError) as error:
        checkpoint.load_weights(target, source)
    text = str(error.value)
    assert "1 missing: body.bias" in text and "1 unexpected: extra" in text
    assert "1 reshaped: head.weight [5, 2] where the model has [3, 2]" in text
    assert "2 of its 4 tensors" in text
    assert torch.equal(target["body"].weight, before)


def test_load_weights_allows_by_prefix():
    source, target = small().state_dict(), small()
    source["head.weight"], head = torch.zeros(5, 2), target["head"].weight.clone()
    del source["head.bias"]
    source["aux.x"] = torch.zeros(1)
    with pytest.raises(UserError, match="aux.x"):
        checkpoint.load_weights(target, source, allow=("head.",))
    skipped = checkpoint.load_weights(target, source, allow=("head.", "aux."))
    assert skipped == ["aux.x", "head.bias", "head.weight"]
    assert torch.equal(target["body"].weight, source["body.weight"])
    assert torch.equal(target["head"].weight, head)


def test_long_lists_are_cut():
    with pytest.raises(UserError, match="and 3 more"):
        checkpoint.load_weights(
            small(), {**small().state_dict(), **dict.fromkeys("abcdefgh", torch.ones(1))}
        )
