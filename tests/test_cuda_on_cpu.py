"""CUDA's kernels run on the CPU and compared with the twins, under the emulator's watch."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from emulator import DTYPES, MISSING, Arena, build, call
from golden_dcnv3 import arguments
from operators import near

from cuda_ops import corr_lookup_twin, corr_pyramid, dcnv3_twin
from cuda_ops.dcnv3 import out_size, points_of

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
GOLDEN = Path(__file__).parent / "golden"
NEAR = dict(zip(DTYPES, (1e-12, 1e-5, 1e-3, 8e-3), strict=True))  # of the largest entry
WIDE = {torch.float64: torch.float64}  # what is summed in, if not float32
FORWARD, BACKWARD_POINTS, BACKWARD_INPUT = range(3)
LOOKUP, GRAD_FMAP1, GRAD_FMAP1_COORDS, GRAD_FMAP2 = range(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("device_code")


@pytest.fixture(scope="module")
def dcnv3_library(folder):
    return build("dcnv3", folder)


@pytest.fixture(scope="module")
def corr_library(folder):
    return build("corr", folder)


def golden(name: str) -> tuple[dict, dict]:
    """A golden file's cases and arrays."""
    cases = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    with np.load(GOLDEN / f"{name}.npz") as file:
        return cases, {key: torch.from_numpy(value) for key, value in file.items()}


def gradients(function, tensors, grad):
    """Output and the gradients of all tensors, in float64."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, grad.double())


def run_dcnv3(library, tensors, grad, numbers, *, vectors, lanes, rows, seed):
    """Output and the three gradients, by the CUDA kernels."""
    arena, dtype = Arena(library), tensors[0].dtype
    wide = WIDE.get(dtype, torch.float32)
    shift = 0 if vectors else dtype.itemsize  # one by one, where no vector could be read
    maps = arena.put(tensors[0], shift)
    offset, mask = arena.put(tensors[1].to(wide)), arena.put(tensors[2])
    grad = arena.put(grad, shift)
    output = arena.empty(grad.shape, dtype, shift)
    grad_input = arena.put(torch.zeros(maps.shape, dtype=wide))
    grad_offset, grad_mask = arena.empty(offset.shape, wide), arena.empty(mask.shape, dtype)
    kernel, stride, pad, dilation, group, scale, remove_center = numbers
    axes = [
        (maps.shape[1 + axis], grad.shape[1 + axis], kernel[axis], stride[axis], pad[axis])
        + (dilation[axis],)
        for axis in (0, 1)
    ]
    points = points_of(kernel, remove_center)
    depth = maps.shape[3] // group
    all_numbers = [len(maps), *axes[0], *axes[1], group, depth, points, remove_center]
    all_numbers = torch.tensor(all_numbers, dtype=torch.int32)
    for kind in (FORWARD, BACKWARD_POINTS, BACKWARD_INPUT):
        call(
            library.dcnv3_on_cpu,
            *(DTYPES.index(dtype), kind, vectors, lanes, rows, seed, all_numbers, scale),
            *(maps, offset, mask, grad, output, grad_input, grad_offset, grad_mask),
        )
    return output, grad_input, grad_offset, grad_mask


def compare_dcnv3(library, tensors, grad, numbers, **how):
    found = run_dcnv3(library, tensors, grad, numbers, **how)
    expected = gradients(lambda *leaves: dcnv3_twin(*leaves, *numbers), tensors, grad)
    for actual, wanted in zip(found, expected, strict=True):
        near(actual, wanted, NEAR[actual.dtype])


def test_dcnv3_repeats_the_golden_cases(dcnv3_library):
    cases, arrays = golden("dcnv3_core")
    for count, (name, facts) in enumerate(cases.items()):
        tensors = [arrays[f"{name}/{part}"] for part in ("input", "offset", "mask")]
        numbers = tuple(arguments(facts).values())
        how = {"vectors": True, "lanes": 2 ** (count % 3), "rows": 1, "seed": count % 3}
        found = run_dcnv3(dcnv3_library, tensors, arrays[f"{name}/grad_output"], numbers, **how)
        names = ("output", "grad_input", "grad_offset", "grad_mask")
        for part, actual in zip(names, found, strict=True):
            if part != "grad_offset" or facts["offset_std"] > 0:  # jumps on whole pixels
                near(actual, arrays[f"{name}/{part}"], 1e-12)


def random_dcnv3(dtype, group, depth, numbers, seed=0, batch=2, size=(5, 6)):
    """Tensors and a gradient; a few offsets are huge, or not a number."""
    rng = torch.Generator().manual_seed(seed)
    out = (batch, *out_size(size, *numbers[:4]))
    points = group * points_of(numbers[0], numbers[6])
    offset = torch.randn(*out, points * 2, generator=rng).mul_(2)
    wild = torch.tensor([1e9, -1e9, 3e38, float("inf"), float("nan")])
    offset.view(-1)[::37] = wild.repeat(len(offset.view(-1)))[: len(offset.view(-1)[::37])]
    shapes = ((batch, *size, group * depth), (*out, points), (*out, group * depth))
    maps, mask, grad = (torch.randn(shape, generator=rng).to(dtype) for shape in shapes)
    # Rounded to half precision, offsets would lie on whole pixels, where the derivative jumps.
    return [maps, offset.to(WIDE.get(dtype, torch.float32)), mask], grad


PLAIN = ((3, 3), (1, 1), (1, 1), (1, 1))
ODD = ((2, 3), (2, 1), (1, 0), (1, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dcnv3_in_vectors(dcnv3_library, dtype):
    cases = [(1, 2, 8, PLAIN), (4, 1, 40, ODD), (32, 2, 8, ODD), (8, 1, 64, PLAIN)]
    for number, (lanes, group, depth, window) in enumerate(cases):
        numbers = (*window, group, 0.7, number == 3)
        tensors, grad = random_dcnv3(dtype, group, depth, numbers, seed=number)
        how = {"vectors": True, "lanes": lanes, "rows": 1 + number % 2, "seed": number % 3}
        compare_dcnv3(dcnv3_library, tensors, grad, numbers, **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dcnv3_one_by_one(dcnv3_library, dtype):
    cases = [(2, 3, 1, PLAIN), (16, 2, 7, ODD), (8, 1, 19, PLAIN), (1, 2, 3, ODD)]
    for number, (lanes, group, depth, window) in enumerate(cases):
        numbers = (*window, group, 1.0, number == 0)
        tensors, grad = random_dcnv3(dtype, group, depth, numbers, seed=number)
        how = {"vectors": False, "lanes": lanes, "rows": 1 + number % 2, "seed": number % 3}
        compare_dcnv3(dcnv3_library, tensors, grad, numbers, **how)


def run_corr(library, fmap1, fmap2, coords, grad, window, scale, *, vectors, seed):
    """Output and the gradients of fmap1, coords and all levels, by the CUDA kernels."""
    arena, dtype = Arena(library), fmap1.dtype
    wide = WIDE.get(dtype, torch.float32)
    shift = 0 if vectors else dtype.itemsize
    batch, channels, height, width = fmap1.shape
    queries = arena.put(fmap1.permute(0, 2, 3, 1), shift)
    levels = [arena.put(fmap.permute(0, 2, 3, 1), shift) for fmap in fmap2]
    grads2 = [arena.put(torch.zeros(level.shape, dtype=wide)) for level in levels]
    coords, grad = arena.put(coords.to(wide)), arena.put(grad.to(wide))
    sizes = [side for fmap in fmap2 for side in fmap.shape[2:]]
    numbers = [batch, *window, channels, height * width, len(levels), *sizes]
    numbers = torch.tensor(numbers, dtype=torch.int32)
    addresses = torch.tensor([tensor.data_ptr() for tensor in levels + grads2])
    output, grad_coords = arena.empty(grad.shape, wide), arena.empty(coords.shape, wide)
    alone, grad1 = (arena.empty(queries.shape, dtype, shift) for _ in range(2))
    for kind, made in (
        (LOOKUP, (output, None, None)),
        (GRAD_FMAP1, (None, alone, None)),
        (GRAD_FMAP1_COORDS, (None, grad1, grad_coords)),
        (GRAD_FMAP2, (None, None, None)),
    ):
        call(
            library.corr_on_cpu,
            *(DTYPES.index(dtype), kind, vectors, seed, numbers, scale, queries, addresses),
            *(coords, grad, *made),
        )
    assert torch.equal(alone, grad1)
    maps = (tensor.permute(0, 3, 1, 2) for tensor in (grad1, *grads2))
    return output, next(maps), grad_coords, *maps


def compare_corr(library, fmap1, fmap2, coords, grad, window, **how):
    radius, stride, sparse = window
    scale = fmap1.shape[1] ** -0.5

    def twin(one, at, *maps):
        options = {"window_stride": stride, "sparse": sparse}
        return corr_lookup_twin(one, list(maps), at, radius, **options)

    found = run_corr(library, fmap1, fmap2, coords, grad, window, scale, **how)
    expected = gradients(twin, (fmap1, coords, *fmap2), grad)
    for actual, wanted in zip(found, expected, strict=True):
        near(actual, wanted, NEAR[actual.dtype])


def random_corr(dtype, channels, window, sizes, seed):
    """Maps of two images, queries of 5 x 7 around them; some far away or not a number."""
    rng = torch.Generator().manual_seed(seed)
    shapes = [(2, channels, 5, 7)] + [(2, channels, *size) for size in sizes]
    fmap1, *fmap2 = (torch.randn(shape, generator=rng).to(dtype) for shape in shapes)
    coords = torch.rand(2, 2, 5, 7, generator=rng) * 14 - 3
    wild = torch.tensor([1e9, -1e9, 3e38, float("inf"), float("nan")])
    coords.view(-1)[: 5 * 13 : 13] = wild
    side = 2 * window[0] + 1
    grad = torch.randn(2, len(sizes) * side * side, 5, 7, generator=rng)
    return fmap1, fmap2, coords, grad


WINDOWS = {
    "radius 5, several tiles": (5, 1, False),
    "radius 2": (2, 1, False),
    "radius 0": (0, 1, False),
    "stride 2": (3, 2, False),
    "stride 3, sparse": (2, 3, True),
}


def test_corr_repeats_the_golden_cases(corr_library):
    cases, arrays = golden("corr_lookup")
    for count, (name, facts) in enumerate(cases.items()):
        fmap1, fmap2, coords = (arrays[f"{name}/{part}"] for part in ("fmap1", "fmap2", "coords"))
        fmap2.requires_grad_()
        levels = corr_pyramid(fmap2, facts["num_levels"])
        wanted = arrays[f"{name}/output"]
        seed = zlib.crc32(f"corr_lookup.{name}.grad_output".encode()) & 0x7FFFFFFF
        grad = torch.from_numpy(np.random.RandomState(seed).standard_normal(wanted.shape))
        window = (facts["radius"], 1, False)
        given = (fmap1, [level.detach() for level in levels], coords, grad, window)
        how = {"scale": facts["channels"] ** -0.5, "vectors": True, "seed": count % 3}
        output, grad1, grad_coords, *grads2 = run_corr(corr_library, *given, **how)
        near(output, wanted, 1e-12)
        near(grad1, arrays[f"{name}/grad_fmap1"], 1e-12)
        (grad2,) = torch.autograd.grad(levels, fmap2, grads2)
        near(grad2, arrays[f"{name}/grad_fmap2"], 1e-12)
        if facts["coords"] != "integer":
            near(grad_coords, arrays[f"{name}/grad_coords"], 1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_corr(corr_library, dtype, name):
    number, pair = list(WINDOWS).index(name), dtype in (torch.float32, torch.float16)
    for channels, vectors in ((16, True), (136, True), (3, False), (1, False))[number % 2 :: 2]:
        if vectors or pair:
            sizes = [(7, 9), (3, 4), (1, 2)][: 1 + number % 3]
            case = random_corr(dtype, channels, WINDOWS[name], sizes, seed=number)
            compare_corr(corr_library, *case, WINDOWS[name], vectors=vectors, seed=number % 3)
