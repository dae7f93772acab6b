"""What the compiler makes of the CUDA kernels: registers, spills, shared memory, width of loads.

    python cuda_ops/report.py                  # needs nvcc 12 or later, no GPU
    python cuda_ops/report.py --arch 90

One row for each kernel and kind of GPU. "16-byte" counts the loads from global memory that fetch 16
bytes or more, of all such loads in the kernel's text. Ends with 1 if a kernel spills registers, or
if one that is made for vectors has no such load.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from setup import wheels_headers  # before torch looks for the toolkit
from sources import CUDA, files
from torch.utils import cpp_extension

HEADINGS = ("kernel", "sm", "registers", "spilled", "stack", "shared", "16-byte loads")
ENTRY = r"Compiling entry function '(\w+)' for 'sm_(\w+)'"
STACK = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
LOAD = r"\bld((?:\.[\w:]+)+)\s"  # ld.global.nc.v4.f32
NOT_GLOBAL = {"param", "shared", "local", "const"}
WIDTH = r"Li(\d+)E"  # numbers in a kernel's vector: its template's first int, as names have it


class Kernel(NamedTuple):
    name: str  # mangled
    arch: str
    registers: int
    spilled: int  # bytes stored and loaded again
    stack: int  # bytes
    shared: int  # bytes, without those of the launch
    wide: int  # loads of 16 bytes or more
    loads: int

    def faults(self) -> list[str]:
        """What it should not do."""
        width = re.search(WIDTH, self.name)
        faults = [f"spills {self.spilled} bytes"] if self.spilled else []
        if width and int(width[1]) > 1 and self.wide == 0:
            faults.append("has no 16-byte loads")
        return faults


def load_widths(ptx: str) -> dict[str, list[int]]:
    """{kernel: bytes of each load from global memory} of a PTX file."""
    widths = {}
    for part in re.split(r"^\s*(?=\.(?:visible|weak)?[ .]*(?:entry|func)\b)", ptx, flags=re.M):
        entry = re.match(r"\.(?:visible|weak)?[ .]*entry\s+(\w+)", part)
        if not entry:
            continue
        found = [words[1:].split(".") for words in re.findall(LOAD, part)]
        widths[entry[1]] = [width(words) for words in found if not NOT_GLOBAL & {*words}]
    return widths


def width(words: list[str]) -> int:
    """Bytes of a load, from the words of its instruction: v4.f32 are 16."""
    bits = int(re.fullmatch(r"[a-z]+(\d+)", words[-1])[1])
    vector = [int(word[1:]) for word in words if re.fullmatch(r"v\d", word)]
    return bits // 8 * (vector[0] if vector else 1)


def kernels_of(log: str, ptx: str) -> list[Kernel]:
    """The kernels of one file, from the assembler's report and the text that it assembled."""
    widths, found = load_widths(ptx), []
    for part in re.split(r"(?=ptxas info\s*: Compiling entry)", log):
        entry = re.search(ENTRY, part)
        if not entry:
            continue
        stack, stores, loads = map(int, re.search(STACK, part).groups())
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        shared = int(shared[1]) if shared else 0
        own = widths[entry[1]]
        wide = sum(size >= 16 for size in own)
        found.append(
            Kernel(*entry.groups(), registers, stores + loads, stack, shared, wide, len(own))
        )
    return found


def compile_file(source: Path, arch: str, folder: Path) -> list[Kernel]:
    """Compiles to PTX as the build does, then assembles."""
    ptx = folder / f"{source.stem}.ptx"
    command = [tool("nvcc"), "-O3", "-std=c++20", *cpp_extension.COMMON_NVCC_FLAGS, "-ptx"]
    command += [f"-arch=compute_{arch}", str(source), "-o", str(ptx)]
    for include in [*cpp_extension.include_paths("cuda"), *wheels_headers()]:
        command += ["-isystem", include]
    subprocess.run(command, check=True)
    assemble = [tool("ptxas"), "-v", f"-arch=sm_{arch}", str(ptx), "-o", str(folder / "out.cubin")]
    log = subprocess.run(assemble, check=True, capture_output=True, text=True)
    return kernels_of(log.stdout + log.stderr, ptx.read_text())


def tool(name: str) -> str:
    """A program of the CUDA toolkit."""
    home = cpp_extension.CUDA_HOME
    if not home or not (Path(home) / "bin" / name).exists():
        sys.exit(f"cuda_ops: no {name} found; install the CUDA toolkit, or set CUDA_HOME")
    return str(Path(home) / "bin" / name)


def plain_names(names: list[str]) -> list[str]:
    """Names as in the source, without their parameters; mangled where there is no c++filt."""
    if not shutil.which("c++filt"):
        return names
    result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    lines = result.stdout.splitlines()
    lines = [
        re.sub(r"\(anonymous namespace\)::|\bvoid |\w+::|\((\w+)\)(?=\w)", "", x) for x in lines
    ]
    return [line.split("(")[0] for line in lines]


def table(kernels: list[Kernel]) -> str:
    names = plain_names([kernel.name for kernel in kernels])
    rows = [HEADINGS]
    for name, kernel in zip(names, kernels, strict=True):
        numbers = (kernel.registers, kernel.spilled, kernel.stack, kernel.shared)
        rows.append((name, kernel.arch, *map(str, numbers), f"{kernel.wide} of {kernel.loads}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {x:>{size}}" for x, size in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", nargs="+", default=["80", "90"], help="kinds of GPU (80 90)")
    arguments = parser.parse_args()
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        for source in files(CUDA):
            for arch in arguments.arch:
                kernels += compile_file(source, arch, Path(folder))
    print(table(kernels))
    names = plain_names([kernel.name for kernel in kernels])
    faults = [
        f"{name} for sm_{kernel.arch} {fault}"
        for name, kernel in zip(names, kernels, strict=True)
        for fault in kernel.faults()
    ]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
