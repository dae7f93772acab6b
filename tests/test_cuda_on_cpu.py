"""CUDA's kernels run on the CPU and compared with the twins, under the emulator's watch."""

import golden_corr
import golden_dcnv3
import pytest
import torch
from emulator import DTYPES, MISSING, Arena, build, call
from places import WINDOWS, near_all, near_once_rounded, stored

from cuda_ops import corr_lookup_twin, corr_pyramid, dcnv3_twin
from cuda_ops.dcnv3 import out_size, points_of

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
NEAR = 1e-12  # of the largest entry, in float64
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
    near_once_rounded(found, expected)


def test_dcnv3_repeats_the_golden_cases(dcnv3_library):
    cases = golden_dcnv3.cases(*stored("dcnv3_core"))
    for count, (_, tensors, numbers, grad, wanted) in enumerate(cases):
        how = {"vectors": True, "lanes": 2 ** (count % 3), "rows": 1, "seed": count % 3}
        found = run_dcnv3(dcnv3_library, tensors, grad, tuple(numbers.values()), **how)
        found = dict(zip(("output", *golden_dcnv3.PARTS), found, strict=True))
        near_all([found[part] for part in wanted], wanted.values(), NEAR)


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
    shape = (window["radius"], window.get("window_stride", 1), window.get("sparse", False))
    numbers = [batch, *shape, channels, height * width, len(levels), *sizes]
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
    scale = window.get("scale", fmap1.shape[1] ** -0.5)
    found = run_corr(library, fmap1, fmap2, coords, grad, window, scale, **how)
    expected = gradients(
        lambda one, at, *maps: corr_lookup_twin(one, list(maps), at, **window),
        (fmap1, coords, *fmap2),
        grad,
    )
    near_once_rounded(found, expected)


def random_corr(dtype, channels, window, sizes, seed):
    """Maps of two images, queries of 5 x 7 around them; some far away or not a number."""
    rng = torch.Generator().manual_seed(seed)
    shapes = [(2, channels, 5, 7)] + [(2, channels, *size) for size in sizes]
    fmap1, *fmap2 = (torch.randn(shape, generator=rng).to(dtype) for shape in shapes)
    coords = torch.rand(2, 2, 5, 7, generator=rng) * 14 - 3
    wild = torch.tensor([1e9, -1e9, 3e38, float("inf"), float("nan")])
    coords.view(-1)[: 5 * 13 : 13] = wild
    side = 2 * window["radius"] + 1
    grad = torch.randn(2, len(sizes) * side * side, 5, 7, generator=rng)
    return fmap1, fmap2, coords, grad


def test_corr_repeats_the_golden_cases(corr_library):
    cases = golden_corr.cases(*stored("corr_lookup"))
    for count, (_, tensors, (radius, levels), grad, wanted) in enumerate(cases):
        fmap1, fmap2, coords = tensors
        pyramid = corr_pyramid(fmap2.requires_grad_(), levels)
        given = (fmap1, [level.detach() for level in pyramid], coords, grad, {"radius": radius})
        how = {"scale": fmap1.shape[1] ** -0.5, "vectors": True, "seed": count % 3}
        output, grad1, grad_coords, *grads2 = run_corr(corr_library, *given, **how)
        (grad2,) = torch.autograd.grad(pyramid, fmap2, grads2)
        found = {"output": output, "fmap1": grad1, "fmap2": grad2, "coords": grad_coords}
        near_all([found[part] for part in wanted], wanted.values(), NEAR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_corr(corr_library, dtype, name):
    number, pair = list(WINDOWS).index(name), dtype in (torch.float32, torch.float16)
    for channels, vectors in ((16, True), (136, True), (3, False), (1, False))[number % 2 :: 2]:
        if vectors or pair:
            sizes = [(7, 9), (3, 4), (1, 2)][: 1 + number % 3]
            case = random_corr(dtype, channels, WINDOWS[name], sizes, seed=number)
            compare_corr(corr_library, *case, WINDOWS[name], vectors=vectors, seed=number % 3)
