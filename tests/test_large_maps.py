"""The operators' kernels on a map of more numbers than 32 bits can count.

Nearly all of it stays untouched zeros, which take no memory."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import CPU_KERNEL

from cuda_ops import corr_lookup, dcnv3

HEIGHT, WIDTH, CHANNELS = 16384, 16400, 8
NEEDED = 10e9  # bytes that must be free to be given them


def free() -> int:
    """Bytes that Linux could still give; 0 elsewhere."""
    if not sys.platform.startswith("linux"):
        return 0
    lines = Path("/proc/meminfo").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("MemAvailable:")]
    return int(line.split()[1]) << 10


pytestmark = pytest.mark.skipif(free() < NEEDED, reason="needs Linux and 10 GB of free memory")


@pytest.fixture
def image() -> torch.Tensor:
    """[1, H, W, C], zero but for the last pixel's 0..7."""
    made = torch.from_numpy(np.zeros((1, HEIGHT, WIDTH, CHANNELS), np.float32))
    assert made.numel() > 2**31
    made[0, -1, -1] = torch.arange(8)
    return made


@pytest.mark.parametrize("place", CPU_KERNEL)
def test_dcnv3(image, place):
    offset = torch.tensor([WIDTH - 1.5, HEIGHT - 1.0]).view(1, 1, 1, 2).requires_grad_()
    mask = torch.ones(1, 1, 1, 1, requires_grad=True)
    output = dcnv3(image, offset, mask, kernel=1, stride=(HEIGHT, WIDTH), pad=0)
    assert output.flatten().tolist() == [channel / 2 for channel in range(8)]
    output.sum().backward()
    assert offset.grad.flatten().tolist() == [28, -14]
    assert mask.grad.item() == 14


@pytest.mark.parametrize("place", CPU_KERNEL)
def test_corr_lookup(image, place):
    fmap1 = torch.ones(1, CHANNELS, 1, 1, requires_grad=True)
    coords = torch.tensor([WIDTH - 1.0, HEIGHT - 1.0]).view(1, 2, 1, 1).requires_grad_()
    output = corr_lookup(fmap1, [image.permute(0, 3, 1, 2)], coords, 0, scale=1.0)
    assert output.item() == 28
    output.sum().backward()
    assert fmap1.grad.flatten().tolist() == list(range(8))
    assert coords.grad.flatten().tolist() == [-28, -28]
