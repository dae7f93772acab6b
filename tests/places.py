"""What the tests of the native operators share: where each operator can run here, windows of the
lookup, how numbers are compared, stored cases."""

import json
import math
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from cuda_ops import library

GOLDEN = Path(__file__).parent / "golden"
SUMS = {"cpu": 2e-6, "cuda": 1e-5}  # of the largest entry, what sums in float32 may differ by

# Radius and the window's other numbers; the last two do not fit into one tile of the CUDA kernels.
WINDOWS = {
    "one position": dict(radius=0),
    "plain": dict(radius=2),
    "apart": dict(radius=2, window_stride=2),
    "apart, sparse": dict(radius=2, window_stride=3, sparse=True),
    "scaled": dict(radius=1, scale=-2.0),
    "wide": dict(radius=6),
    "wide, apart": dict(radius=3, window_stride=2),
}


class Place(NamedTuple):
    """An implementation of an operator: the twin or the compiled kernel, on a device."""

    kernel: bool
    device: str

    def of(self, operator, twin):
        """The function that is meant."""
        return operator if self.kernel else twin

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "no GPU"
        if self.kernel and self.device not in library.KERNELS.devices:
            return f"{library.KERNELS.missing}: {library.COMMAND}"
        return ""


def _param(kernel: bool, device: str):
    place = Place(kernel, device)
    skip = pytest.mark.skipif(bool(place.missing()), reason=place.missing())
    return pytest.param(place, id=f"{'kernel' if kernel else 'twin'}-{device}", marks=skip)


CPU_KERNEL, CUDA_KERNEL = [_param(True, "cpu")], [_param(True, "cuda")]
TWINS = [_param(False, "cpu"), _param(False, "cuda")]
KERNELS = CPU_KERNEL + CUDA_KERNEL
PLACES = TWINS + KERNELS


def here() -> list[Place]:
    """All places that exist on this machine."""
    places = [param.values[0] for param in PLACES]
    return [place for place in places if not place.missing()]


def stored(name: str) -> tuple[dict, dict]:
    """A golden file's description and its arrays."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return json.loads((GOLDEN / f"{name}.json").read_text()), dict(file)


def near(actual: torch.Tensor, expected: torch.Tensor, limit: float, what=""):
    """Within `limit` of the largest expected entry, and nowhere without a number."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.shape == expected.shape, what
    if actual.numel():
        difference = (actual - expected).abs().max().item()
        assert difference <= limit * expected.abs().max().item(), (what, difference)


def near_all(actual, expected, limit: float):
    """The same for tensors in pairs, each in its own format."""
    for one, other in zip(actual, expected, strict=True):
        near(one, other, limit)


def near_once_rounded(actual, expected, device: str = "cpu"):
    """The same for sums in float32 (float64: in float64) that were then rounded to their format: by
    no more than half of its last digit."""
    for one, other in zip(actual, expected, strict=True):
        sums = 1e-12 if one.dtype == torch.float64 else SUMS[device]
        near(one, other, torch.finfo(one.dtype).eps / 2 + sums)


@contextmanager
def threads(count: int):
    """PyTorch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_for_any_threads(run):
    """`run()` makes the same tensors, bit by bit, with any number of threads."""
    found = []
    for count in (1, 2, 3, 8):
        with threads(count):
            found.append(run())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def on_late_streams(run, tensors: list[torch.Tensor]):
    """`run(tensors)` makes on two streams what it makes on the first, of inputs that are written
    late: what is launched on another stream reads NaN."""
    wanted = run(tensors)
    late = {torch.cuda.Stream(): [] for _ in range(2)}
    torch.cuda.synchronize()
    for stream, copies in late.items():
        with torch.cuda.stream(stream):
            run(tensors)  # a first call may wait for all streams, for its memory
            copies += [torch.full_like(tensor, math.nan) for tensor in tensors]
    torch.cuda.synchronize()
    found = []
    for stream, copies in late.items():
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # cycles, tens of milliseconds
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor)
            found.append(run(copies))
    torch.cuda.synchronize()
    for made in found:
        near_all(made, wanted, 1e-5)
