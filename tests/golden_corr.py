"""Checker of the golden cases of the correlation lookup: output and gradients, wherever it can run.

The gradient of the output is drawn from a seed made of the names of file and case.
"""

import zlib

import numpy as np
import torch
from places import Place, here, near

from cuda_ops import corr_lookup, corr_lookup_twin, corr_pyramid

LIMIT = 1e-10  # of the largest entry, in float64
PARTS = ("fmap1", "fmap2", "coords")


def cases(case: dict, arrays: dict):
    """Yields (name, [fmap1, fmap2, coords], (radius, levels), gradient of the output, {part:
    wanted}); the parts are the output and the gradients of the three tensors."""
    stored = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name, numbers in case["cases"].items():
        tensors = [stored[f"{name}/{part}"] for part in PARTS]
        wanted = {"output": stored[f"{name}/output"]}
        wanted |= {part: stored[f"{name}/grad_{part}"] for part in PARTS}
        if numbers["coords"] == "integer":
            del wanted["coords"]  # the derivative jumps on whole pixels
        seed = zlib.crc32(f"{case['name']}.{name}.grad_output".encode()) & 0x7FFFFFFF
        grad = np.random.RandomState(seed).standard_normal(wanted["output"].shape)
        window = (numbers["radius"], numbers["num_levels"])
        yield name, tensors, window, torch.from_numpy(grad), wanted


def check_place(case: dict, arrays: dict, place: Place):
    for name, tensors, (radius, levels), grad, wanted in cases(case, arrays):
        leaves = [tensor.to(place.device, copy=True).requires_grad_() for tensor in tensors]
        fmap1, fmap2, coords = leaves
        lookup = place.of(corr_lookup, corr_lookup_twin)
        output = lookup(fmap1, corr_pyramid(fmap2, levels), coords, radius)
        output.backward(grad.to(place.device))
        found = dict(zip(PARTS, (leaf.grad for leaf in leaves), strict=True)) | {"output": output}
        for part, expected in wanted.items():
            near(found[part], expected, LIMIT, (name, place, part))


def check_corr_lookup(case: dict, arrays: dict):
    for place in here():
        check_place(case, arrays, place)


CHECKERS = {"corr_lookup": check_corr_lookup}
