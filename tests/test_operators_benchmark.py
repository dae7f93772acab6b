"""The benchmark of cuda_ops: what it compares is the same, and its table is made."""

import sys

import pytest
import torch

from benchmarks import memory, operators

CPU = torch.device("cpu")


def test_all_peers_compute_the_same():
    cases = [
        operators.dcnv3_case(2, (5, 6, 8, 2), CPU, torch.float64),
        operators.corr_case(2, (18, 24, 5), CPU, torch.float64),
    ]
    for case in cases:
        double = tuple(tensor.double() for tensor in case.inputs)
        expected = case.peers["twin"](*double)
        for name, function in case.peers.items():
            assert torch.allclose(function(*double), expected, rtol=0, atol=1e-9), name


def test_the_table(capsys):
    case = operators.corr_case(1, (16, 16, 4), CPU, torch.float32)
    operators.report(case, CPU, rounds=1, speed=1e9)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[3] for row in rows] == ["1", "1"]
    assert [row[2] for row in rows] == ["forward", "forward + backward"]
    given, made = (2 * 4 + 2) * 16 * 16 * 4, 4 * 81 * 16 * 16 * 4
    assert operators.compulsory(case) == {
        "forward": given + made,
        "forward + backward": 3 * given + 2 * made,
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_memory_of_all_pairs_is_that_of_the_volume():
    arguments = ("all pairs", "forward", 1, (48, 64, 8), CPU)
    most = memory.in_fresh_process(operators.measure_memory, *arguments)
    volume = (48 * 64) ** 2 * 4
    assert most == pytest.approx((1 + 1 / 4 + 1 / 16 + 1 / 64) * volume, rel=0.1)
