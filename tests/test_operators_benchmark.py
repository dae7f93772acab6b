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
        operators.lookup_case(2, (18, 24, 5), CPU, torch.float64),
    ]
    for case in cases:
        found = {}
        for name, (function, inputs) in case.peers.items():
            peer = operators.Peer(function, tuple(tensor.double() for tensor in inputs))
            found[name] = operators.forward(peer)()
            passes = operators.forward_backward(peer)(), operators.backward(peer)()
            assert all(map(torch.equal, *passes)), (case.name, name)
        assert all(torch.allclose(x, found["twin"], rtol=0, atol=1e-9) for x in found.values())


# Seconds of each round: quartiles of the kernel's are 1, 2 and 3 ms.
SECONDS = {
    "kernel": [0.001, 0.003, 0.002],
    "twin": [0.008, 0.006, 0.100],
    "all pairs": [0.003, 0.003],
}


def rows_of(case, device: str, speed: float | None, capsys) -> list[list[str]]:
    operators.report(case, torch.device(device), 3, speed)
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


def test_rows_of_the_table(monkeypatch, capsys):
    monkeypatch.setattr(operators, "seconds_of", lambda case, *rest: dict(SECONDS))
    cells = ["3, 3, 2", "2.000 (1.000 to 3.000)", "8.000", "3.000", "4.00", "1.50"]
    case = operators.corr_case(1, (16, 16, 4), CPU, torch.float32)
    start = ["corr 1 x 4 x 16 x 16, radius 4, 4 levels", "float32"]
    assert rows_of(case, "cpu", None, capsys) == [
        [*start, "forward", *cells],
        [*start, "forward + backward", *cells],
    ]
    assert rows_of(case, "cuda", 1e9, capsys) == [
        [*start, "forward", *cells, "-", "-"],
        [*start, "backward", *cells, "-", "-"],
    ]


def test_rows_of_an_operator_alone_have_a_limit(monkeypatch, capsys):
    two = {name: SECONDS[name] for name in ("kernel", "twin")}
    monkeypatch.setattr(operators, "seconds_of", lambda case, *rest: two)
    case = operators.dcnv3_case(1, (5, 10, 8, 2), CPU, torch.float16)
    given = 50 * (8 * 2 + 2 * 9 * (2 * 4 + 2))  # offsets are in float32
    made = 50 * 8 * 2
    assert operators.compulsory(case) == {"forward": given + made, "backward": 2 * given + made}
    start = ["dcnv3 1 x 5 x 10 x 8, 2 groups", "float16"]
    cells = ["3, 3", "2.000 (1.000 to 3.000)", "8.000", "-", "4.00", "-"]
    assert rows_of(case, "cuda", 1e7, capsys) == [
        [*start, "forward", *cells, "1.060", "53%"],
        [*start, "backward", *cells, "2.040", "102%"],
    ]
    lookup = operators.lookup_case(1, (16, 16, 4), CPU, torch.float32)
    pixels, levels = 16 * 16, 256 + 64 + 16 + 4
    given, made = 4 * (4 * (pixels + levels) + 2 * pixels), 4 * 4 * 81 * pixels
    assert operators.compulsory(lookup) == {"forward": given + made, "backward": 2 * given + made}


def test_slow_peers_take_part_in_fewer_rounds(monkeypatch):
    made = []
    case = operators.Case(
        "any",
        {name: operators.Peer(lambda name=name: made.append(name), ()) for name in operators.PEERS},
        alone=False,
    )
    slow = {"kernel": 2.0, "twin": 3.0, "all pairs": 0.5}

    def clock(step):
        step()
        return slow[made[-1]]

    monkeypatch.setattr(operators, "cpu_seconds", clock)
    found = operators.seconds_of(case, operators.forward, CPU, 7)
    assert found == {"kernel": [2.0] * 7, "twin": [3.0] * 5, "all pairs": [0.5] * 7}
    assert (
        made == [*operators.PEERS] * 6 + ["kernel", "all pairs"] * 2
    )  # the first of it to warm up


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_memory_of_all_pairs_is_that_of_the_volume():
    arguments = ("all pairs", "forward", 1, (48, 64, 8), CPU)
    most = memory.in_fresh_process(operators.measure_memory, *arguments)
    volume = (48 * 64) ** 2 * 4
    assert most == pytest.approx((1 + 1 / 4 + 1 / 16 + 1 / 64) * volume, rel=0.2)
