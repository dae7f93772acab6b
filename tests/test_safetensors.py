"""Files of .safetensors, written here byte by byte."""

import json

import numpy as np
import pytest
import torch

from models import backbone_weights, rexnet
from utils import checkpoint
from utils.errors import UserError
from utils.safetensors import read_safetensors

ARRAYS = {
    "half": ("F16", np.array([[1.5, -2.0]], "<f2"), torch.tensor([[1.5, -2.0]]).half()),
    "flags": ("BOOL", np.array([1, 0, 1], "u1"), torch.tensor([True, False, True])),
    # After an odd number of bytes: not where a float may begin.
    "weight": ("F32", np.array([[1.0, 2.0], [3.0, 0.1]], "<f4"), torch.tensor([[1, 2], [3, 0.1]])),
    "brain": ("BF16", np.array([0x3F80, 0xC040], "<u2"), torch.tensor([1.0, -3.0]).bfloat16()),
    "steps": ("I64", np.array(7, "<i8"), torch.tensor(7)),
    "none": ("F32", np.zeros((0, 4), "<f4"), torch.zeros(0, 4)),
}


def written(arrays: dict, **spoilt) -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, array, *_) in arrays.items():
        end = len(data) + array.nbytes
        entry = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), end]}
        header[name] = entry | spoilt
        data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def test_every_kind_of_numbers(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(written(ARRAYS))
    for found in (read_safetensors(path), checkpoint.read(path)):
        assert found.keys() == ARRAYS.keys()
        for name, (*_, expected) in ARRAYS.items():
            assert found[name].dtype == expected.dtype and torch.equal(found[name], expected)
    found["weight"].add_(1)  # one's own memory
    assert torch.equal(read_safetensors(path)["weight"], ARRAYS["weight"][2])


def test_a_backbone_starts_from_such_a_file(tmp_path):
    network, other = rexnet.rexnet_1_0(), rexnet.rexnet_1_0()
    state = network.state_dict() | {"head.fc.bias": torch.zeros(1000)}
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    arrays = {name: (kinds[value.dtype], value.numpy()) for name, value in state.items()}
    (tmp_path / "model.safetensors").write_bytes(written(arrays))
    found, _ = backbone_weights.read(tmp_path / "model.safetensors", other, "rexnet-1.0")
    backbone_weights.load(other, found)
    after = other.state_dict()
    assert all(torch.equal(after[name], value) for name, value in network.state_dict().items())


SPOILT = {
    "cut in the numbers": (lambda file: file[:-3], "cut off"),
    "cut in the header": (lambda file: file[:40], "cut off"),
    "no json": (lambda file: file.replace(b'"dtype"', b'"dtype,'), "no safetensors file"),
    "a list": (lambda file: (8).to_bytes(8, "little") + b"[{}]    ", "no safetensors file"),
    "no shape": (lambda file: file.replace(b'"shape"', b'"shade"'), "no safetensors file"),
    "other numbers": (lambda file: written(ARRAYS, dtype="F8_E4M3"), "F8_E4M3; known are"),
    "a shape that needs more": (lambda file: written(ARRAYS, shape=[3, 5]), "bytes and not those"),
    "a side below zero": (lambda file: written(ARRAYS, shape=[-1]), "no safetensors file"),
    "a begin below zero": (lambda file: written(ARRAYS, data_offsets=[-4, 0]), "no safetensors"),
    "three offsets": (lambda file: written(ARRAYS, data_offsets=[0, 1, 2]), "no safetensors file"),
    "a table for a shape": (lambda file: written(ARRAYS, shape={}), "no safetensors file"),
    "a list for a kind": (lambda file: written(ARRAYS, dtype=["F32"]), "known are"),
    "ends before it begins": (lambda file: written(ARRAYS, data_offsets=[8, 4]), "bytes and not"),
    "ends after the file": (lambda file: written(ARRAYS, data_offsets=[0, 9999]), "cut off"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_files_are_refused(case, tmp_path):
    spoil, words = SPOILT[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoil(written(ARRAYS)))
    with pytest.raises(UserError, match=words) as raised:
        read_safetensors(path)
    assert str(path) in str(raised.value)
