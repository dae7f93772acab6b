"""The compiled kernels: their library, the devices it serves, what is said where it is missing.

Nothing here fails. What no kernel serves runs as plain PyTorch, and one line says why.
"""

import contextlib
import logging
from functools import cache
from typing import NamedTuple

import torch

from cuda_ops.sources import LIBRARY, compiled, digest

COMMAND = "python cuda_ops/setup.py build_ext --inplace"
OPS = torch.library.Library("cuda_ops", "DEF")  # the schemas stand in dcnv3.py and corr.py


class Kernels(NamedTuple):
    """What was loaded: kinds of device with kernels, and why CPU or CUDA has none."""

    devices: tuple[str, ...]
    missing: str


def load() -> Kernels:
    """Loads the library that fits, that with CUDA if there are two."""
    found = compiled()
    fitting = [path for path in found if f"_{digest()}." in path.name]
    if not fitting:
        why = "was compiled from other sources or for another torch"
        return Kernels((), f"{found[0].name} {why}" if found else "nothing is compiled")
    failed = ""
    for path in reversed(fitting):
        try:
            torch.ops.load_library(path)
        except OSError as error:
            failed = f"{path.name} cannot be loaded ({str(error).splitlines()[0]})"
            continue
        if path.name.startswith(f"{LIBRARY}_cuda_"):
            return Kernels(("cpu", "cuda"), "")
        return Kernels(("cpu",), failed or f"{path.name} was compiled for the CPU alone")
    return Kernels((), failed)


KERNELS = load()


def serves(device: torch.device) -> bool:
    """Whether compiled kernels run on this device."""
    return device.type in KERNELS.devices


@cache
def announce(operator: str, device: str):
    """Says, once for each operator and kind of device, that plain PyTorch is used, and why."""
    why = f"{KERNELS.missing}; to compile it: {COMMAND}"
    if device not in ("cpu", "cuda"):
        why = f"there are no kernels for {device}"
    text = f"{operator} on {device} runs as plain PyTorch, slower: {why}"
    logging.getLogger("cuda_ops").warning(text)


def autocasts(device: str) -> bool:
    """Whether autocast is on for a kind of device, which may not know it at all."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def no_autocast(device: str):
    """A context without autocast."""
    return torch.autocast(device, enabled=False) if autocasts(device) else contextlib.nullcontext()


def pair(x: float, y: float, like: torch.Tensor) -> torch.Tensor:
    """[x, y] in the format and on the device of `like`; of numbers that a graph can hold: what
    torch.tensor gives is a constant, which exporting within an exported graph refuses."""
    return torch.stack((like.new_full((), x), like.new_full((), y)))


def refuse_second_derivative(operator: str):
    """Raises: without this the second derivative would be 0 without a word."""
    raise RuntimeError(f"{operator} has no second derivative; {operator}_twin has")
