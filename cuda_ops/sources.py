"""The sources of the kernels, and the letters that tell one state of them from another."""

import hashlib
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
LIBRARY = "kernels"  # name of what is compiled: kernels_cpu_DIGEST or kernels_cuda_DIGEST


def sources(cuda: bool) -> list[str]:
    """What is compiled, relative to this folder."""
    suffixes = (".cpp", ".cu") if cuda else (".cpp",)
    found = [path for path in (FOLDER / "src").iterdir() if path.suffix in suffixes]
    return sorted(path.relative_to(FOLDER).as_posix() for path in found)


def headers() -> list[str]:
    """What the sources include."""
    return sorted(str(path) for path in (FOLDER / "src").glob("*.[hc]*h"))


def digest() -> str:
    """Eight letters that change with the sources and with torch: only what was compiled from these,
    for this torch, is loaded."""
    found = hashlib.sha256(torch.__version__.encode())
    for path in sorted((FOLDER / "src").iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:8]


def compiled() -> list[Path]:
    """The libraries in this folder, of whatever sources."""
    found = FOLDER.glob(f"{LIBRARY}_*")
    return sorted(path for path in found if path.suffix in (".so", ".pyd"))
