"""Settings for all tests."""

import os

import pytest
import torch

# The tests' networks are tiny: threads would only wait for one another, in child processes too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_flush_denormal(True)  # untrained networks are full of denormals, which are slow


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
