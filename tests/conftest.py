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


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs a command as a user in a folder of his own would, who has no display."""
    from tests.calls import Call  # which imports every command

    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")  # of the help's lines
    monkeypatch.chdir(tmp_path)
    return Call(monkeypatch, capsys, tmp_path)
