"""Checker of the golden case of the correlation lookup, with and without compiled kernels.

Its arrays are named CASE/...; the gradient of the output is drawn from a seed made of their names.
"""

import zlib

import numpy as np
import torch
from golden_cases import check_relative

from cuda_ops import corr_lookup, corr_lookup_twin, corr_pyramid

NEAR = 1e-10


def check_corr_lookup(case: dict, arrays: dict):
    for name, config in case["cases"].items():
        for lookup in (corr_lookup, corr_lookup_twin):
            check_one(case, name, config, arrays, lookup)


def check_one(case: dict, name: str, config: dict, arrays: dict, lookup):
    fmap1, fmap2, coords = (
        torch.from_numpy(arrays[f"{name}/{part}"]).requires_grad_()
        for part in ("fmap1", "fmap2", "coords")
    )
    pyramid = corr_pyramid(fmap2, config["num_levels"])
    output = lookup(fmap1, pyramid, coords, config["radius"])
    what = f"{name}, {lookup.__name__}"
    check_relative(output.detach(), arrays[f"{name}/output"], NEAR, what)
    seed = zlib.crc32(f"{case['name']}.{name}.grad_output".encode()) & 0x7FFFFFFF
    grad = np.random.RandomState(seed).standard_normal(output.shape)
    output.backward(torch.from_numpy(grad))
    checked = [("fmap1", fmap1), ("fmap2", fmap2)]
    if config["coords"] != "integer":  # where the derivative is one-sided
        checked.append(("coords", coords))
    for part, tensor in checked:
        expected = arrays[f"{name}/grad_{part}"]
        check_relative(tensor.grad, expected, NEAR, f"{what}, gradient of {part}")


CHECKERS = {"corr_lookup": check_corr_lookup}
