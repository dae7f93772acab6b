"""Compile the kernels of cuda_ops; without them the operators run as plain PyTorch, slower.

    python cuda_ops/setup.py build_ext --inplace     # from the root of the repository
    cd cuda_ops && python setup.py build install     # the same

The library is put beside this file, where it is looked for. With nvcc and a GPU it is built for CPU
and CUDA, else for the CPU. Environment: FORCE_CUDA=1 builds for CUDA where no GPU is (FORCE_CUDA=0:
never), TORCH_CUDA_ARCH_LIST chooses the kinds of GPU (default: those found; without any, all that
torch is built for, and PTX for later ones), CUDA_HOME and CXX the compilers.
"""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Command, Extension, setup
from sources import CPU, CUDA, FOLDER, LIBRARY, compiled, digest, files


def set_cuda_home():
    """Asks nvcc where its toolkit is, unless the user says it: what is found as nvcc may be a link
    or a script elsewhere, and torch would take its folder. Before torch's own look at it."""
    nvcc = shutil.which("nvcc")
    if nvcc and not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")):
        told = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
        top = re.search(r"^#\$ TOP=(.+?)\s*$", told, re.MULTILINE)
        if top:
            os.environ["CUDA_HOME"] = str(Path(top[1]).resolve())


set_cuda_home()
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # main says it in a sentence
from torch.utils import cpp_extension  # noqa: E402

WINDOWS = os.name == "nt"
OLDEST = 7  # major number of the kinds of GPU that are built for unasked
# at::parallel_for is code in torch's headers. With OpenMP it takes torch's own threads; the library
# of GCC's OpenMP comes with torch for Linux. Others compile the loops for one thread.
LINUX = sys.platform == "linux" and "clang" not in os.environ.get("CXX", "")
OPTIMIZE = ["/O2"] if WINDOWS else ["-O3", "-fopenmp" if LINUX else "-fopenmp-simd"]


class Build(cpp_extension.BuildExtension):
    """build_ext that always puts the library beside its sources, in place of older ones."""

    def finalize_options(self):
        super().finalize_options()
        self.inplace = True
        self.force = True  # flags may have changed, as the kinds of GPU

    def run(self):
        super().run()
        for path in compiled():
            if f"_{digest()}." not in path.name:
                with contextlib.suppress(PermissionError):  # Windows, while it is in use
                    path.unlink()
        say(f"{self.extensions[0].name} is ready")

    def get_export_symbols(self, extension):
        """None: the library is loaded by torch, it is no Python module."""
        return []


class Install(Command):
    """What is built is installed already. For the command alone: pip's own steps set fields of
    setuptools' class."""

    description = "the same as build: the library lies beside setup.py"
    user_options = []

    def initialize_options(self):
        pass

    def finalize_options(self):
        pass

    def run(self):
        self.run_command("build_ext")


def say(text: str):
    print(f"cuda_ops: {text}", flush=True)


def extension(cuda: bool) -> Extension:
    """The library of all operators."""
    make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    sources = files(CPU + CUDA if cuda else CPU)
    made = make(
        f"{LIBRARY}_{'cuda' if cuda else 'cpu'}_{digest()}",
        [path.relative_to(FOLDER).as_posix() for path in sources],
        extra_compile_args={"cxx": OPTIMIZE, "nvcc": ["-O3", "-lineinfo"]},
        py_limited_api=True,  # needs no Python at all: one library for every Python
    )
    if cuda:  # after the toolkit's own, which belong to its nvcc
        made.include_dirs += wheels_headers()
    return made


def wheels_headers() -> list[str]:
    """Folders of the CUDA headers that came with torch, if the toolkit lacks some. The kernels need
    none of these, some of torch's headers do."""
    if (Path(cpp_extension.CUDA_HOME) / "include" / "cusparse.h").exists():
        return []
    nvidia = Path(torch.__file__).parents[1] / "nvidia"
    return sorted(str(path) for path in nvidia.glob("*/include"))


def without_cuda() -> str:
    """Why only the CPU's kernels are built; empty if CUDA's can be."""
    force = os.environ.get("FORCE_CUDA", "")
    if force == "0":
        return "FORCE_CUDA=0"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not cpp_extension.CUDA_HOME or not nvcc().exists():
        return "no nvcc found (install the CUDA toolkit, or set CUDA_HOME)"
    if not torch.cuda.is_available() and force != "1":
        return "no GPU found (FORCE_CUDA=1 builds for CUDA all the same)"
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    toolkit = ".".join(release.groups()) if release else "of an unknown version"
    if toolkit.split(".")[0] != torch.version.cuda.split(".")[0]:
        return (
            f"nvcc is {toolkit} and torch was built with CUDA {torch.version.cuda}: their major "
            "versions must be the same (install the other toolkit or the other torch)"
        )
    return ""


def nvcc() -> Path:
    return Path(cpp_extension.CUDA_HOME) / "bin" / ("nvcc.exe" if WINDOWS else "nvcc")


def choose_architectures():
    """Without a GPU and a choice of the user's: all that torch is built for, and PTX."""
    if torch.cuda.is_available() or os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return
    found = [re.fullmatch(r"sm_(\d+)(\d)", name) for name in torch.cuda.get_arch_list()]
    names = [f"{m[1]}.{m[2]}" for m in found if m and int(m[1]) >= OLDEST]
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(names or ["8.0", "9.0"]) + "+PTX"


def build(cuda: bool) -> str:
    """Runs the command that was given; what went wrong, if anything did."""
    try:
        setup(
            name="cuda_ops_kernels",
            packages=[],
            ext_modules=[extension(cuda)],
            cmdclass={"build_ext": Build} | ({"install": Install} if "install" in sys.argv else {}),
            script_args=sys.argv[1:] or ["build_ext"],
        )
    except SystemExit as error:  # setuptools' own way to end
        if str(error.code).startswith("usage"):
            raise
        return str(error.code or "")
    except Exception as error:  # whatever the compilers say
        return str(error) or type(error).__name__
    return ""


def main():
    os.chdir(FOLDER)
    compiler = (os.environ.get("CXX") or "c++").split()[0]
    if not WINDOWS and not shutil.which(compiler):
        sys.exit(
            f"cuda_ops: no C++ compiler ({compiler}) found; install g++ or clang, or set CXX. "
            "Until then the operators run as plain PyTorch, slower."
        )
    why = without_cuda()
    say(f"building for the CPU alone: {why}" if why else "building for CPU and CUDA")
    if not why:
        choose_architectures()
        failed = build(cuda=True)
        if not failed:
            return
        say(f"building for CUDA failed ({failed}), see above; building for the CPU alone")
    failed = build(cuda=False)
    if failed:
        sys.exit(f"cuda_ops: building failed ({failed}), see above; plain PyTorch is used instead")


if __name__ == "__main__":
    main()
