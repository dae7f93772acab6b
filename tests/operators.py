"""What the tests of the native operators share: where each operator can run here."""

from typing import NamedTuple

import pytest
import torch

from cuda_ops import library


class Place(NamedTuple):
    """An implementation of an operator: the twin or the compiled kernel, on a device."""

    kernel: bool
    device: str

    def of(self, operator, twin):
        """The function that is meant."""
        return operator if self.kernel else twin


def _place(kernel: bool, device: str):
    compiled = device in library.KERNELS.devices
    gpu = device == "cpu" or torch.cuda.is_available()
    reason = "no GPU" if not gpu else f"{library.KERNELS.missing}: {library.COMMAND}"
    skip = pytest.mark.skipif(not gpu or (kernel and not compiled), reason=reason)
    name = f"{'kernel' if kernel else 'twin'}-{device}"
    return pytest.param(Place(kernel, device), id=name, marks=skip)


TWINS = [_place(False, "cpu"), _place(False, "cuda")]
KERNELS = [_place(True, "cpu"), _place(True, "cuda")]
PLACES = TWINS + KERNELS


def here() -> list[Place]:
    """All places that exist on this machine."""
    return [param.values[0] for param in PLACES if not param.marks[0].args[0]]


def near(actual: torch.Tensor, expected: torch.Tensor, limit: float):
    """Within `limit` of the largest expected entry, and nowhere without a number."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max().item() if actual.numel() else 0.0
    assert difference <= limit * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
