"""Builds device code with g++ and calls it with tensors; see cuda_on_cpu/device.h."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "cuda_on_cpu"
SOURCES = FOLDER.parent.parent / "cuda_ops" / "src"
CHECKS = "alignment,float-cast-overflow,signed-integer-overflow,shift,bounds,integer-divide-by-zero"
SEEDS = (0, 1, 2)  # threads take turns forwards, backwards, in any order
MARGIN = 512  # bytes around each array in which nothing may be read or written
ARENA = 1 << 22  # bytes
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

MISSING = None
if not sys.platform.startswith("linux"):
    MISSING = "the emulator of CUDA runs under Linux only"
elif not shutil.which("g++"):
    MISSING = "the emulator of CUDA is built with g++, which is not here"


def build(name: str, folder: Path) -> ctypes.CDLL:
    """The library of cuda_on_cpu/NAME.cpp, its device code watched."""
    # Fibers jump between stacks, which the checks of _FORTIFY_SOURCE take for a fault.
    runtime = _compiled("runtime", folder, "-O2", "-U_FORTIFY_SOURCE")
    watched = _compiled(name, folder, "-O1", f"-fsanitize=thread,{CHECKS}")
    library = folder / f"{name}.so"
    subprocess.run(["g++", "-shared", str(watched), str(runtime), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def _compiled(name: str, folder: Path, *flags: str) -> Path:
    made = folder / f"{name}.o"
    if not made.exists():
        # Else libraries that are loaded together would share templates' shared memory.
        flags = ("-fno-gnu-unique", "-Wno-unknown-pragmas", *flags)
        command = ["g++", "-std=c++20", "-fPIC", *flags]
        command += [f"-I{FOLDER}", f"-I{SOURCES}", "-c", str(FOLDER / f"{name}.cpp")]
        subprocess.run([*command, "-o", str(made)], check=True)
    return made


class Arena:
    """Memory with room around each array, in which device code of one launch works."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        self.memory = torch.full((ARENA,), 0xFF, dtype=torch.uint8)
        self.used = -self.memory.data_ptr() % 16
        library.watch_arena(ctypes.c_uint64(self.memory.data_ptr()), ctypes.c_size_t(ARENA))

    def put(self, values: Tensor, shift: int = 0) -> Tensor:
        """A contiguous copy, at an address that 16 divides, plus `shift` bytes."""
        place = self.empty(values.shape, values.dtype, shift)
        place.copy_(values)
        return place

    def empty(self, shape, dtype: torch.dtype, shift: int = 0) -> Tensor:
        """An array of NaN."""
        begin = self.used + MARGIN + shift
        count = torch.Size(shape).numel() * dtype.itemsize
        self.used = begin + count + (-count - shift) % 16
        assert self.used + MARGIN < ARENA, "a larger arena is needed"
        place = self.memory[begin : begin + count].view(dtype).view(shape)
        if count:
            address = ctypes.c_uint64(place.data_ptr())
            self.library.watch_array(address, ctypes.c_size_t(count))
        return place


def call(function, *arguments):
    """Calls with tensors (None: a null pointer), whole numbers and floats; a fault is an error."""
    function.restype = ctypes.c_char_p
    fault = function(*map(_converted, arguments))
    if fault:
        raise AssertionError(fault.decode())


def _converted(value):
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)
