"""Building the operators' library, and doing without it. Trivial sources stand in for the kernels:
what is tried is the way to build, not what is built."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import CPU_KERNEL

from cuda_ops import sources

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
    maps, others = torch.randn(2, 1, 4, 5, 8).requires_grad_().unbind()
    offset = torch.rand(1, 4, 5, 36, requires_grad=True)
    coords = torch.rand(1, 2, 5, 8, requires_grad=True)
    first = dcnv3(maps, offset, torch.rand(1, 4, 5, 18), group=2).square().sum()
    second = corr_lookup(maps, [others], coords, 1).square().sum()
    for slope in torch.autograd.grad(first + second, (maps, others, offset, coords)):
        assert slope.isfinite().all() and slope.any()
"""
REASON = "from cuda_ops import library; print(library.KERNELS.devices, library.KERNELS.missing)"


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
def test_both_spellings_from_both_places(copy):
    """Each time of other sources, whose library takes the place of the one before."""
    spellings = [
        (".", SETUP),
        (".", ["cuda_ops/setup.py", "build", "install"]),
        ("cuda_ops", ["setup.py", "build_ext", "--inplace"]),
        ("cuda_ops", ["setup.py", "build", "install"]),
    ]
    old = None
    for count, (folder, command) in enumerate(spellings):
        source = f"int nothing() {{ return {count}; }}\n"
        (copy / "cuda_ops" / "src" / "nothing.cpp").write_text(source)
        if count == 1:
            status, said = run(copy, "-c", REASON)
            assert status == 0, said
            why = "was compiled from other sources or for another torch"
            assert said == f"() {old} {why}\n"
        status, said = run(copy / folder, *command)
        assert status == 0, said
        assert "building for the CPU alone: FORCE_CUDA=0" in said
        assert libraries(copy) != [old]
        [old] = libraries(copy)
        assert old.startswith("kernels_cpu_")
        assert f"cuda_ops: {old.split('.')[0]} is ready" in said
    status, said = run(copy, "-c", REASON)
    assert (status, said.split()[0]) == (0, "('cpu',)"), said


def test_a_library_that_cannot_be_loaded(copy, monkeypatch):
    monkeypatch.setattr(sources, "FOLDER", copy / "cuda_ops")
    name = f"{sources.LIBRARY}_cpu_{sources.digest()}.so"
    (copy / "cuda_ops" / name).write_bytes(b"no library")
    status, said = run(copy, "-c", REASON)
    assert status == 0, said
    assert said.startswith(f"() {name} cannot be loaded (")


@needs_compiler
def test_as_an_editable_package_and_beside_an_editor_s_files(copy):
    """`pip install -e cuda_ops --no-build-isolation` goes this way; hidden files are no sources."""
    source = copy / "cuda_ops" / "src"
    (source / ".#nothing.cpp").symlink_to("nowhere")
    (source / ".ipynb_checkpoints").mkdir()
    (source / ".DS_Store").write_bytes(b"")
    (copy / "wheel").mkdir()
    command = "from setuptools import build_meta; build_meta.__legacy__.build_editable('../wheel')"
    status, said = run(copy / "cuda_ops", "-c", command)
    assert status == 0, said
    assert [path.suffix for path in (copy / "wheel").iterdir()] == [".whl"]
    status, said = run(copy, "-c", REASON)
    assert (status, said.split()[0]) == (0, "('cpu',)"), said


@pytest.mark.skipif(sys.platform != "linux", reason="one thread everywhere else")
@pytest.mark.parametrize("place", CPU_KERNEL)
def test_the_cpu_s_kernels_are_parallel(place):
    """A library without OpenMP computes the same, on one thread."""
    [*_, library] = [path for path in sources.compiled() if f"_{sources.digest()}." in path.name]
    assert b"GOMP_parallel" in library.read_bytes()


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
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
def test_without_nvcc(copy):
    status, said = run(copy, *SETUP, FORCE_CUDA="1", CUDA_HOME=str(copy / "nowhere"))
    assert status == 0, said
    assert "building for the CPU alone: no nvcc found (install the CUDA toolkit, or set" in said


@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(copy):
    home = broken_nvcc(copy, torch.version.cuda)
    status, said = run(copy, *SETUP, FORCE_CUDA="", CUDA_HOME=str(home))
    assert status == 0, said
    assert "building for the CPU alone: no GPU found (FORCE_CUDA=1 builds for CUDA all" in said


@needs_compiler
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU, whose kind alone is built for"
)
def test_with_nvcc_and_no_gpu(copy):
    """For all kinds of GPU and later ones, with headers that only torch's own packages may have."""
    source = copy / "cuda_ops" / "src" / "nothing_cuda.cu"
    source.write_text("#include <cusparse.h>\n" + source.read_text())
    status, said = run(copy, *SETUP, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="")
    assert status == 0, said
    assert "building for CPU and CUDA" in said
    [library] = libraries(copy)
    assert library.startswith("kernels_cuda_")
    assert re.search(r"code=compute_\d+", said)
    assert len(set(re.findall(r"code=sm_(\d+)", said))) > 1
