"""Compile the kernels of cuda_ops; without them the operators run as plain PyTorch, slower.

    python cuda_ops/setup.py build_ext --inplace     # from the root of the repository
    cd cuda_ops && python setup.py build install     # the same

The library is put beside this file, nowhere else. With nvcc and a GPU it is built for CPU and CUDA,
else for the CPU. Environment: FORCE_CUDA=1 builds for CUDA where no GPU is (FORCE_CUDA=0: never),
TORCH_CUDA_ARCH_LIST chooses the kinds of GPU (default: those at hand, else all that torch is built
for, and PTX for later ones), CUDA_HOME and CXX the compilers.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Command, Extension, setup
from sources import FOLDER, LIBRARY, compiled, digest, headers, sources


def set_cuda_home():
    """Asks nvcc where its toolkit is, unless the user says it: what is found as nvcc may be a link
    or a script elsewhere, and torch would take its folder. Before torch's own look at it."""
    nvcc = shutil.which("nvcc")
    if nvcc and not os.environ.get("CUDA_HOME"):
        told = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
        top = re.search(r"^#\$ TOP=(.+?)\s*$", told, re.MULTILINE)
        if top:
            os.environ["CUDA_HOME"] = str(Path(top[1]).resolve())


set_cuda_home()
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # main says it in a sentence
from torch.utils import cpp_extension  # noqa: E402

WINDOWS = os.name == "nt"
# at::parallel_for is code in torch's headers. With OpenMP it takes torch's own threads; the library
# of GCC's OpenMP comes with torch for Linux. Others compile the loops for one thread.
LINUX = sys.platform == "linux" and "clang" not in os.environ.get("CXX", "")
OPTIMIZE = ["/O2"] if WINDOWS else ["-O3", "-fopenmp" if LINUX else "-fopenmp-simd"]


class Build(cpp_extension.BuildExtension):
    """build_ext that always puts the library beside its sources, in place of older ones."""

    def finalize_options(self):
        super().finalize_options()
        self.inplace = True

    def run(self):
        super().run()
        for path in compiled():
            if not path.name.startswith(f"{self.extensions[0].name}."):
                path.unlink()
        say(f"{compiled()[0].name} is ready")

    def get_export_symbols(self, extension):
        """None: the library is loaded by torch, it is no Python module."""
        return []


class Install(Command):
    """What is built is installed already."""

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
    made = make(
        f"{LIBRARY}_{'cuda' if cuda else 'cpu'}_{digest()}",
        sources(cuda),
        depends=headers(),
        extra_compile_args={"cxx": OPTIMIZE, "nvcc": ["-O3", "-lineinfo"]},
        py_limited_api=True,  # needs no Python at all: one library for every Python
    )
    if cuda:  # after the toolkit's own, which belong to its nvcc
        made.include_dirs += wheels_headers()
    return made


def wheels_headers() -> list[str]:
    """Folders of the CUDA headers that came with torch, if the toolkit lacks some."""
    if (Path(cpp_extension.CUDA_HOME) / "include" / "cusparse.h").exists():
        return []
    nvidia = Path(torch.__file__).parents[1] / "nvidia"
    return sorted({str(path.parent) for path in nvidia.rglob("cusparse.h")})


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
    names = [".".join(match.groups()) for match in found if match]
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(names or ["8.0", "9.0"]) + "+PTX"


def build(cuda: bool):
    """Runs the command that was given."""
    setup(
        name="cuda_ops_kernels",
        packages=[],
        ext_modules=[extension(cuda)],
        cmdclass={"build_ext": Build, "install": Install},
    )


def main():
    os.chdir(FOLDER)
    compiler = os.environ.get("CXX", "c++").split()[0]
    if not WINDOWS and not shutil.which(compiler):
        sys.exit(
            f"cuda_ops: no C++ compiler ({compiler}) found; install g++ or clang, or set CXX. "
            "Until then the operators run as plain PyTorch, slower."
        )
    why = without_cuda()
    say(f"building for the CPU alone: {why}" if why else "building for CPU and CUDA")
    if not why:
        choose_architectures()
        try:
            return build(cuda=True)
        except (Exception, SystemExit) as error:  # whatever the compiler found
            say(f"building for CUDA failed ({error}), see above; building for the CPU alone")
    try:
        build(cuda=False)
    except Exception as error:
        sys.exit(f"cuda_ops: building failed ({error}), see above; plain PyTorch is used instead")


if __name__ == "__main__":
    main()
