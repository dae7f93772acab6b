"""Building the operators' library, and doing without it. Trivial sources stand in for the kernels:
what is tried is the way to build, not what is built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = ROOT / "cuda_ops"
SETUP = ["cuda_ops/setup.py", "build_ext", "--inplace"]
needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")

# Both operators, twice, forward and backward, without a compiled library.
USE = """
import torch
from cuda_ops import corr_lookup, dcnv3, library
print(library.KERNELS.devices)
for _ in range(2):
    maps = torch.randn(1, 4, 5, 8, requires_grad=True)
    dcnv3(maps, torch.rand(1, 4, 5, 36), torch.rand(1, 4, 5, 18), group=2).sum().backward()
    corr_lookup(maps, [maps], torch.rand(1, 2, 5, 8), 1).sum().backward()
    assert maps.grad.isfinite().all()
"""


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder with the package, its kernels replaced, nothing compiled."""
    ignore = shutil.ignore_patterns("kernels_*", "build", "__pycache__", "src")
    shutil.copytree(OPERATORS, tmp_path / "cuda_ops", ignore=ignore)
    source = tmp_path / "cuda_ops" / "src"
    source.mkdir()
    (source / "nothing.cpp").write_text("int nothing() { return 0; }\n")
    (source / "nothing_cuda.cu").write_text("__global__ void nothing_at_all() {}\n")
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """(exit status, all that was said) of a Python command."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "FORCE_CUDA": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def libraries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cuda_ops").glob("kernels_*"))


def broken_nvcc(folder: Path, release: str) -> Path:
    """A CUDA_HOME whose nvcc can tell its version and nothing else."""
    program = folder / "cuda" / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release {release}, V1" '
        '&& exit 0\necho "nvcc: this toolkit is broken"\nexit 1\n'
    )
    program.chmod(0o755)
    return folder / "cuda"


def test_without_a_library_plain_pytorch_works_and_says_so_once(copy):
    status, said = run(copy, "-c", USE)
    assert status == 0, said
    assert said.splitlines()[0] == "()"
    for operator in ("dcnv3", "corr_lookup"):
        assert (
            said.count(f"{operator} on cpu runs as plain PyTorch, slower: nothing is compiled") == 1
        )
    assert "python cuda_ops/setup.py build_ext --inplace" in said


@needs_compiler
@pytest.mark.parametrize(
    "folder, command",
    [
        (".", SETUP),
        (".", ["cuda_ops/setup.py", "build", "install"]),
        ("cuda_ops", ["setup.py", "build_ext", "--inplace"]),
        ("cuda_ops", ["setup.py", "build", "install"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_both_spellings_from_both_places(copy, folder, command):
    status, said = run(copy / folder, *command)
    assert status == 0, said
    assert "building for the CPU alone: FORCE_CUDA=0" in said
    [library] = libraries(copy)
    assert library.startswith("kernels_cpu_") and f"cuda_ops: {library} is ready" in said


@needs_compiler
def test_a_library_of_other_sources_is_not_loaded(copy):
    assert run(copy, *SETUP)[0] == 0
    [old] = libraries(copy)
    (copy / "cuda_ops" / "src" / "nothing.cpp").write_text("int nothing() { return 1; }\n")
    status, said = run(copy, "-c", USE)
    assert status == 0, said
    assert f"{old} was compiled from other sources or for another torch" in said
    assert run(copy, *SETUP)[0] == 0
    assert len(libraries(copy)) == 1 and libraries(copy) != [old]
    status, said = run(copy, "-c", "from cuda_ops import library; print(library.KERNELS.devices)")
    assert (status, said) == (0, "('cpu',)\n")


def test_a_library_that_cannot_be_loaded(copy):
    status, name = run(
        copy, "-c", "from cuda_ops.sources import *; print(f'{LIBRARY}_cpu_{digest()}.so', end='')"
    )
    (copy / "cuda_ops" / name).write_bytes(b"no library")
    status, said = run(copy, "-c", USE)
    assert status == 0, said
    assert f"{name} cannot be loaded" in said


def test_without_a_compiler(copy):
    status, said = run(copy, *SETUP, CXX="no-such-compiler")
    assert status == 1
    assert said.startswith("cuda_ops: no C++ compiler (no-such-compiler) found; install g++")
    assert len(said.splitlines()) == 1


@needs_compiler
def test_sources_that_do_not_compile(copy):
    (copy / "cuda_ops" / "src" / "nothing.cpp").write_text("int nothing( { return 0; }\n")
    status, said = run(copy, *SETUP)
    assert status == 1
    assert said.splitlines()[-1].startswith("cuda_ops: building failed")
    assert "nothing.cpp:1" in said and "Traceback" not in said and libraries(copy) == []


@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
def test_when_cuda_cannot_be_built_the_cpu_s_kernels_are(copy):
    home = broken_nvcc(copy, torch.version.cuda)
    status, said = run(copy, *SETUP, FORCE_CUDA="1", CUDA_HOME=str(home))
    assert status == 0, said
    assert "nvcc: this toolkit is broken" in said
    assert "building for CUDA failed" in said and "building for the CPU alone" in said
    assert libraries(copy)[0].startswith("kernels_cpu_")


@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
def test_a_toolkit_of_another_major_version(copy):
    home = broken_nvcc(copy, "9.2")
    status, said = run(copy, *SETUP, FORCE_CUDA="1", CUDA_HOME=str(home))
    assert status == 0, said
    wanted = f"nvcc is 9.2 and torch was built with CUDA {torch.version.cuda}"
    assert wanted in said and "their major versions must be the same" in said
    assert libraries(copy)[0].startswith("kernels_cpu_")


@needs_compiler
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
def test_with_nvcc_and_no_gpu(copy):
    status, said = run(copy, *SETUP, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="")
    assert status == 0, said
    assert "building for CPU and CUDA" in said
    [library] = libraries(copy)
    assert library.startswith("kernels_cuda_")
    status, said = run(copy, "-c", "from cuda_ops import library; print(library.KERNELS.devices)")
    assert (status, said) == (0, "('cpu', 'cuda')\n")
