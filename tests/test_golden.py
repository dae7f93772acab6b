"""Outputs of the public reference implementations, repeated through the converter of checkpoints.

One test for each case of GOLDEN_DIR (default: tests/golden), by its kind; see golden_cases.py.
"""

import json
import os
from pathlib import Path

import golden_backbone
import golden_corr
import golden_dcnv3
import golden_mstf
import golden_repvgg
import golden_yolof
import golden_yolof_net
import golden_yoloft
import golden_yolox
import numpy as np
import pytest

FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")
CHECKERS = golden_yolox.CHECKERS | golden_yolof.CHECKERS | golden_yolof_net.CHECKERS
CHECKERS |= golden_dcnv3.CHECKERS | golden_corr.CHECKERS | golden_yoloft.CHECKERS
CHECKERS |= golden_mstf.CHECKERS | golden_backbone.CHECKERS | golden_repvgg.CHECKERS


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_golden(path):
    case = json.loads(path.read_text())
    if case["kind"] not in CHECKERS:
        pytest.skip(f"kind {case['kind']} has no checker yet")
    with np.load(path.with_suffix(".npz")) as file:
        arrays = dict(file)
    CHECKERS[case["kind"]](case, arrays)
