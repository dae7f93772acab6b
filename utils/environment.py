"""What a run ran on."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from utils import cli


def environment() -> str:
    """Versions, devices and commit, for a run's env.txt."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run(
        [*git, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    lines = [
        f"python {platform.python_version()}, {platform.platform()}",
        *(f"{name} {version}" for name, version in cli.package_versions().items()),
        f"devices {torch.cuda.device_count()} CUDA, {os.cpu_count()} CPU cores",
        f"commit {commit.stdout.strip() or 'unknown'}",
    ]
    return "\n".join(lines) + "\n"
