"""Reads pickled checkpoints and arrays without running any of the code that they name.

A pickle is a program: it names functions and has them called. Here a name is never looked up. Those
of tensors and numbers lead to the functions of this file, every other one to `Record`, which keeps
attributes and does nothing. So files that torch's safe loader refuses (a NumPy number, an argparse
namespace, whole modules) give their weights, and hostile ones can do no harm.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGES.values()}
NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")  # the NumPy types that are plain numbers
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file of torch < 1.6


class Record(dict):
    """Stands for an object of any class: keeps its attributes, has no behaviour."""

    __hash__ = object.__hash__

    def __new__(cls, *_args, **_kwargs):
        return super().__new__(cls)

    def __init__(self, *_args, **_kwargs):
        super().__init__()

    def __setstate__(self, state):
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)

    def append(self, _item):  # subclasses of list are filled by these two
        pass

    def extend(self, _items):
        pass


class Ordered(dict):
    """Stands for OrderedDict; the attributes that modules attach to it are dropped."""

    def __setstate__(self, _state):
        pass


class Array:
    """Stands for a NumPy array or, before its state is known, a NumPy type."""

    def __init__(self, *_args):
        self.state = ()

    def __setstate__(self, state):
        self.state = state


class NumberType:
    """Stands for a NumPy type: its code, and the byte order that follows as state."""

    def __init__(self, code, *_flags):
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1]

    def numpy(self) -> np.dtype:
        code = self.code if isinstance(self.code, str) else ""
        if not NUMBER.fullmatch(code) or self.order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"NumPy type {code!r} is no plain number")
        return np.dtype(code.lstrip("<>=|")).newbyteorder(self.order)


class Call:
    """One of the functions below as a pickle sees it: it can be called, not changed."""

    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def __setstate__(self, _state):
        raise pickle.UnpicklingError("a function has no state")


class Rebuilt:
    """Holds a tensor while the file is read, so that nothing can be attached to it."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __setstate__(self, _state):
        pass


class Storage(NamedTuple):
    bytes: Tensor  # uint8, one dimension
    dtype: torch.dtype


def _tensor(storage, offset, size, stride, *rest) -> Rebuilt:
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], torch.dtype) else storage.dtype
    # as_strided checks the bounds
    return Rebuilt(storage.bytes.view(dtype).as_strided(size, stride, offset))


def _typed(function, _type, args, _state):
    return function(*args) if isinstance(function, Call) else Record()


def _number(dtype, data):
    if not isinstance(dtype, NumberType):
        raise pickle.UnpicklingError("a number of unknown type")
    return np.frombuffer(data, dtype.numpy(), 1)[0].item()


def _latin1(text, _encoding="latin1"):
    return text.encode("latin1")


KNOWN = {
    "collections.OrderedDict": Ordered,
    "torch._utils._rebuild_tensor": Call(_tensor),
    "torch._utils._rebuild_tensor_v2": Call(_tensor),
    "torch._utils._rebuild_tensor_v3": Call(_tensor),
    "torch._utils._rebuild_parameter": Call(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": Call(lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": Call(_typed),
    "torch.Size": Call(tuple),
    "builtins.set": Call(list),
    "__builtin__.set": Call(list),
    "_codecs.encode": Call(_latin1),
    "numpy.dtype": NumberType,
    **{f"numpy.{core}.multiarray.scalar": Call(_number) for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    **{f"torch.{name}": dtype for name, dtype in (STORAGES | DTYPES).items()},
    **{f"torch.storage.{name}": dtype for name, dtype in STORAGES.items()},
}


class Reader(pickle.Unpickler):
    """Makes tensors, numbers and records; the classes that a file names are never looked up."""

    def __init__(self, file: BinaryIO, storage=None, encoding: str = "ASCII"):
        super().__init__(file, encoding=encoding)
        self.storage = storage  # function (key, dtype, number of elements) -> uint8 Tensor

    def find_class(self, module, name):
        return KNOWN.get(f"{module}.{name}", Record)

    def persistent_load(self, pid):
        if pid[0] == "module":  # torch < 1.6 kept a module's class and source
            return pid[1]
        kind, dtype, key, _location, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(pid[5:]):
            raise pickle.UnpicklingError("a tensor of unknown kind")
        return Storage(self.storage(str(key), dtype, count), dtype)


def read_inert(path: Path, zipped: bool):
    """The content of a file of torch.save: plain containers, numbers, tensors, state dicts."""
    try:
        return _plain(_read_zip(path) if zipped else _read_legacy(path), {})
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file may fail in any way
        raise UserError(
            f"{path} is no checkpoint, or damaged ({type(error).__name__}: {error})"
        ) from error


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of numbers in a pickled dict, also of Python 2, or in what it holds under "blobs",
    as Caffe2's do; nothing else of it."""
    try:
        with open(path, "rb") as file:
            content = Reader(file, encoding="latin1").load()  # bytes of Python 2 are text here
        content = content.get("blobs", content)
        arrays = {k: _array(*v.state) for k, v in content.items() if isinstance(v, Array)}
        if any(array is None for array in arrays.values()):
            raise pickle.UnpicklingError("an array of objects")
        return arrays
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a damaged or hostile file may fail in any way
        raise UserError(
            f"{path} is no .pkl of arrays, or damaged ({type(error).__name__}: {error})"
        ) from error


def _as_bytes(buffer: bytearray) -> Tensor:
    return torch.frombuffer(buffer, dtype=torch.uint8) if buffer else torch.empty(0).byte()


def _read_zip(path: Path):
    """A file of torch >= 1.6: an archive of one pickle and a raw record for each storage."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("constants.pkl") for name in names):
            raise UserError(f"{path} is a TorchScript program; a checkpoint of weights is needed")
        pickled = next((name for name in names if name.split("/")[-1] == "data.pkl"), None)
        if pickled is None:
            raise UserError(f"{path} is an archive without a checkpoint in it")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise UserError(f"{path} was written in big-endian order; save it again elsewhere")
        seen = {}

        def storage(key, _dtype, _count):
            if key not in seen:
                seen[key] = _as_bytes(bytearray(archive.read(f"{folder}data/{key}")))
            return seen[key]

        with archive.open(pickled) as file:
            return Reader(file, storage).load()


def _read_legacy(path: Path):
    """A file of torch < 1.6: pickles in a row, then the storages one after another."""
    limit = path.stat().st_size
    seen = {}

    def storage(key, dtype, count):
        if key not in seen:
            if not 0 <= count * dtype.itemsize <= limit:
                raise pickle.UnpicklingError("a tensor larger than the file")
            seen[key] = (bytearray(count * dtype.itemsize), dtype)
        return _as_bytes(seen[key][0])

    with open(path, "rb") as file:
        if Reader(file, storage).load() != LEGACY_MAGIC:
            raise pickle.UnpicklingError("it does not begin as one")
        for _ in range(2):  # version, system
            Reader(file, storage).load()
        content = Reader(file, storage).load()
        for key in Reader(file, storage).load():
            buffer, dtype = seen[str(key)]
            count = int.from_bytes(file.read(8), "little")
            if count * dtype.itemsize != len(buffer) or file.readinto(buffer) != len(buffer):
                raise EOFError("the file ends inside a tensor")
        return content


def _plain(value, memo: dict):
    """Containers, numbers and tensors in place of records; modules become state dicts."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Record) and {"_parameters", "_modules"} <= value.keys():
        return _module_state(value, "")
    if isinstance(value, dict):
        memo[id(value)] = result = {}
        result.update({k: _plain(v, memo) for k, v in value.items() if isinstance(k, str | int)})
        return result
    if isinstance(value, list):
        memo[id(value)] = result = []
        result.extend(_plain(item, memo) for item in value)
        return result
    if isinstance(value, tuple | set | frozenset) and not isinstance(value, Storage):
        return tuple(_plain(item, memo) for item in value)
    if isinstance(value, Array):
        return _array(*value.state)
    if isinstance(value, Rebuilt):
        return value.tensor
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return str(value) if isinstance(value, torch.dtype) else None


def _array(_version, shape, dtype, fortran, data) -> Tensor | None:
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(dtype, NumberType) or not isinstance(data, bytes):
        return None  # an array of objects
    array = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _module_state(module: dict, prefix: str) -> dict[str, Tensor]:
    """The state dict of a pickled module, from its records."""
    unsaved = module.get("_non_persistent_buffers_set") or ()
    buffers = {k: v for k, v in (module.get("_buffers") or {}).items() if k not in unsaved}
    state = {
        f"{prefix}{name}": value.tensor
        for name, value in {**module["_parameters"], **buffers}.items()
        if isinstance(value, Rebuilt)
    }
    for name, child in module["_modules"].items():
        if isinstance(child, Record) and {"_parameters", "_modules"} <= child.keys():
            state.update(_module_state(child, f"{prefix}{name}."))
    return state
