"""Checker of the golden cases of DCNv3's operator: output and gradients, wherever it can run."""

import torch
from places import Place, here, near

from cuda_ops import dcnv3, dcnv3_twin

LIMIT = 1e-10  # of the largest entry, in float64
PARTS = ("input", "offset", "mask")


def arguments(numbers: dict) -> dict:
    """A case's numbers as the operator's arguments."""
    names = ("kernel", "stride", "pad", "dilation")
    pairs = {name: (numbers[f"{name}_h"], numbers[f"{name}_w"]) for name in names}
    rest = {name: numbers[name] for name in ("group", "offset_scale")}
    return pairs | rest | {"remove_center": bool(numbers["remove_center"])}


def cases(case: dict, arrays: dict):
    """Yields (name, [input, offset, mask], arguments, gradient of the output, {part: wanted}); the
    parts are the output and the gradients of the three tensors."""
    stored = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name, numbers in case["cases"].items():
        tensors = [stored[f"{name}/{part}"] for part in PARTS]
        wanted = {"output": stored[f"{name}/output"]}
        for part in PARTS:
            if part != "offset" or numbers["offset_std"] > 0:  # it jumps on whole pixels
                wanted[part] = stored[f"{name}/grad_{part}"]
        yield name, tensors, arguments(numbers), stored[f"{name}/grad_output"], wanted


def check_place(case: dict, arrays: dict, place: Place):
    for name, tensors, numbers, grad, wanted in cases(case, arrays):
        leaves = [tensor.to(place.device, copy=True).requires_grad_() for tensor in tensors]
        output = place.of(dcnv3, dcnv3_twin)(*leaves, **numbers)
        output.backward(grad.to(place.device))
        found = dict(zip(PARTS, (leaf.grad for leaf in leaves), strict=True)) | {"output": output}
        for part, expected in wanted.items():
            near(found[part], expected, LIMIT, (name, place, part))


def check_core(case: dict, arrays: dict):
    for place in here():
        check_place(case, arrays, place)


CHECKERS = {"dcnv3_core": check_core}
