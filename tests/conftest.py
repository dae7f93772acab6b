"""Settings for all tests."""

import pytest
import torch

torch.set_flush_denormal(True)  # untrained networks are full of denormals, which are slow


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
