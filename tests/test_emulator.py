"""The emulator of CUDA finds the faults of kernels that have one each, and none in a right one."""

import pytest
import torch
from emulator import MISSING, SEEDS, Arena, build, call

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

FAULTS = {
    "missing barrier": (1, 200, "race"),
    "sum without atomics": (2, 200, "race"),
    "wrong lane": (3, 200, "wrong result"),
    "one element beyond": (4, 200, "outside all arrays"),
    "reading a lane that ended": (5, 20, "takes no part"),
    "waiting for different things": (6, 200, "wait for others"),
    "unaligned vector": (7, 200, "not aligned"),
    "huge number to an integer": (8, 200, "too large for an integer"),
    "unwritten shared memory": (9, 100, "none has written"),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return build("toy", tmp_path_factory.mktemp("toy"))


def run_toy(library, kernel: int, count: int, seed: int):
    """Sums whole numbers, exactly; raises with the fault that was found."""
    arena = Arena(library)
    values = arena.put(torch.arange(count, dtype=torch.float32) % 7 + 1)
    total = arena.put(torch.zeros(1))
    call(library.toy, kernel, values, total, count, seed)
    assert total == values.sum(), "wrong result"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 128, 500])
def test_a_right_kernel_passes(toy, count, seed):
    run_toy(toy, 0, count, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(toy, name, seed):
    kernel, count, message = FAULTS[name]
    with pytest.raises(AssertionError, match=message):
        run_toy(toy, kernel, count, seed)


def test_half_precision_rounds_as_torch_does(toy):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
    near = torch.cat([bits.view(dtype).float() for dtype in (torch.float16, torch.bfloat16)])
    values = torch.cat([near * scale for scale in (1, 1 + 2**-12, 1 - 2**-12, 1 + 2**-9)])
    halves = [torch.empty_like(values, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    floats = [torch.empty_like(values) for _ in halves]
    call(toy.convert, values, halves[0], floats[0], halves[1], floats[1], len(values))
    for half, back in zip(halves, floats, strict=True):
        assert torch.equal(half.nan_to_num(), values.to(half.dtype).nan_to_num())
        assert torch.equal(half.isnan(), values.isnan())
        assert torch.equal(back.nan_to_num(), half.float().nan_to_num())
