"""Which number formats a processor computes in, and how exactly."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cudnn

X86 = ("x86_64", "amd64", "i686")


def cpu_computes_bf16() -> bool:
    """Whether bfloat16 is faster than float32 here; any CPU can emulate it."""
    if not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in X86:  # oneDNN takes it with any AVX-512, and emulates it
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, GPUs compute with all the digits of float32: TF32, their default, keeps ten bits."""
    precision = torch.get_float32_matmul_precision()
    with cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
