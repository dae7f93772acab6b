"""The compiled kernels: their library, the devices it serves, what is said where it is missing.

Nothing here fails. What no kernel serves runs as plain PyTorch, and one line says why.
"""

import logging
from functools import cache
from typing import NamedTuple

import torch

from cuda_ops.sources import LIBRARY, compiled, digest

COMMAND = "python cuda_ops/setup.py build_ext --inplace"
OPS = torch.library.Library("cuda_ops", "DEF")  # the schemas stand in dcnv3.py and corr.py


class Kernels(NamedTuple):
    """What was loaded: kinds of device with kernels, and why others have none."""

    devices: tuple[str, ...]
    missing: str


def load() -> Kernels:
    """Loads the library, if one fits."""
    found = compiled()
    fitting = [path for path in found if f"_{digest()}." in path.name]
    if not fitting:
        why = "was compiled from other sources or for another torch"
        return Kernels((), f"{found[0].name} {why}" if found else "nothing is compiled")
    path = fitting[-1]  # that with CUDA, if there are two
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return Kernels((), f"{path.name} cannot be loaded ({str(error).splitlines()[0]})")
    devices = ("cpu", "cuda") if path.name.startswith(f"{LIBRARY}_cuda_") else ("cpu",)
    return Kernels(devices, f"{path.name} was compiled for {' and '.join(devices)} only")


KERNELS = load()


def serves(device: torch.device) -> bool:
    """Whether compiled kernels run on this device."""
    return device.type in KERNELS.devices


@cache
def announce(operator: str, device: str):
    """Says, once for each operator and kind of device, that plain PyTorch is used, and why."""
    logging.getLogger("cuda_ops").warning(
        f"{operator} on {device} runs as plain PyTorch, slower: {KERNELS.missing}; "
        f"to compile them: {COMMAND}"
    )
