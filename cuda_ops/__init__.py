"""Operators with compiled kernels for CPU and CUDA, and a plain PyTorch twin of the same call."""

from cuda_ops.corr import corr_lookup, corr_lookup_twin, corr_pyramid
from cuda_ops.dcnv3 import DCNv3, dcnv3, dcnv3_twin

__all__ = ["DCNv3", "corr_lookup", "corr_lookup_twin", "corr_pyramid", "dcnv3", "dcnv3_twin"]
