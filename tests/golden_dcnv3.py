"""Checker of the golden cases of DCNv3's operator: output and gradients, wherever it can run."""

import torch
from operators import here

from cuda_ops import dcnv3, dcnv3_twin

LIMIT = 1e-10  # float64, of values around 1


def arguments(numbers: dict) -> dict:
    """A case's numbers as the operator's arguments."""
    names = ("kernel", "stride", "pad", "dilation")
    pairs = {name: (numbers[f"{name}_h"], numbers[f"{name}_w"]) for name in names}
    rest = {name: numbers[name] for name in ("group", "offset_scale")}
    return pairs | rest | {"remove_center": bool(numbers["remove_center"])}


def check_core(case: dict, arrays: dict):
    assert here()
    for name, numbers in case["cases"].items():
        for place in here():
            tensors = {
                part: torch.from_numpy(arrays[f"{name}/{part}"]).to(place.device)
                for part in ("input", "offset", "mask")
            }
            for tensor in tensors.values():
                tensor.requires_grad_()
            output = place.of(dcnv3, dcnv3_twin)(**tensors, **arguments(numbers))
            output.backward(torch.from_numpy(arrays[f"{name}/grad_output"]).to(place.device))
            found = {"output": output.detach()}
            found |= {f"grad_{part}": tensor.grad for part, tensor in tensors.items()}
            for part, value in found.items():
                if part == "grad_offset" and numbers["offset_std"] == 0:
                    continue  # not stored: on whole pixels the derivative jumps
                wanted = torch.from_numpy(arrays[f"{name}/{part}"])
                difference = (value.cpu() - wanted).abs().max().item()
                assert difference <= LIMIT, (name, place, part, difference)


CHECKERS = {"dcnv3_core": check_core}
