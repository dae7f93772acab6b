"""Which number formats a processor computes in."""

import torch


def cpu_computes_bf16() -> bool:
    """Whether bfloat16 is faster than float32 here; any CPU can emulate it."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
