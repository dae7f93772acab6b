"""The sources of the kernels, and the letters that tell one state of them from another."""

import hashlib
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
LIBRARY = "kernels"  # name of what is compiled: kernels_cpu_DIGEST or kernels_cuda_DIGEST
CPU, CUDA, HEADERS = (".cpp",), (".cu",), (".h", ".cuh")


def files(suffixes: tuple[str, ...]) -> list[Path]:
    """The sources of these kinds; editors and systems leave hidden files among them."""
    found = (FOLDER / "src").iterdir()
    return sorted(p for p in found if p.suffix in suffixes and p.name[0] != "." and p.is_file())


def digest() -> str:
    """Eight letters that change with the sources and with torch: only what was compiled from these,
    for this torch, is loaded."""
    found = hashlib.sha256(torch.__version__.encode())
    for path in files(CPU + CUDA + HEADERS):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:8]


def compiled() -> list[Path]:
    """The libraries in this folder, of whatever sources."""
    found = FOLDER.glob(f"{LIBRARY}_*")
    return sorted(path for path in found if path.suffix in (".so", ".pyd"))
