"""Reads .safetensors files: the length of a header (8 bytes, little-endian), the header in JSON,
and the numbers of all tensors, little-endian, one after the other.
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NOTES = "__metadata__"  # the one entry of the header that is no tensor
LENGTH = 8


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    content = bytearray(path.read_bytes())
    start = LENGTH + int.from_bytes(content[:LENGTH], "little")
    if start > len(content):
        raise UserError(_cut_off(path))
    try:
        header = json.loads(content[LENGTH:start])
        entries = {name: _entry(told) for name, told in header.items() if name != NOTES}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no safetensors file: its header cannot be read") from error
    if any(end > len(content) - start for *_, end in entries.values()):
        raise UserError(_cut_off(path))
    numbers = memoryview(content)[start:]
    return {name: _tensor(numbers, *entry, f"{path}: {name}") for name, entry in entries.items()}


def _entry(told: dict) -> tuple[str, list[int], int, int]:
    """(kind of numbers, shape, first byte, the byte after the last) of a tensor."""
    begin, end = _counts(told["data_offsets"])
    return str(told["dtype"]), _counts(told["shape"]), begin, end


def _counts(values: list) -> list[int]:
    if type(values) is not list or any(type(value) is not int or value < 0 for value in values):
        raise ValueError(f"{values} are no counts")
    return values


def _tensor(numbers: memoryview, kind: str, shape: list, begin: int, end: int, what: str) -> Tensor:
    if kind not in DTYPES:
        raise UserError(f"{what} holds numbers of kind {kind}; known are {', '.join(DTYPES)}")
    dtype = DTYPES[kind]
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize:
        raise UserError(f"{what} has {end - begin} bytes and not those of {shape} x {kind}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    # A copy: not every tensor lies where numbers of its kind may begin.
    return torch.frombuffer(bytearray(numbers[begin:end]), dtype=dtype).reshape(shape)


def _cut_off(path: Path) -> str:
    return f"{path} is cut off; its writing or download was interrupted"
