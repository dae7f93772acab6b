"""The correlation lookup, wherever it can run, against loops written from its formula."""

import math
import sys
from functools import cache

import golden_corr
import numpy as np
import pytest
import torch
from places import (
    CPU_KERNEL,
    CUDA_KERNEL,
    KERNELS,
    PLACES,
    TWINS,
    WINDOWS,
    near,
    near_all,
    near_once_rounded,
    on_late_streams,
    same_for_any_threads,
    stored,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import memory
from benchmarks.operators import all_pairs, measure_memory
from cuda_ops import corr, corr_lookup, corr_lookup_twin, corr_pyramid, library

LEVELS = ((7, 9), (3, 4), (5, 2), (1, 1))  # no pyramid, which no kernel may take for granted
QUERIES = (4, 5)  # more than a strip, and not a multiple of one


def drawn(channels=5, seed=0, dtype=torch.float64, levels=LEVELS, queries=QUERIES) -> list:
    """(fmap1, fmap2, coords) of two images; no place within 1e-3 of a whole pixel at any level."""
    random = np.random.RandomState(seed)
    fmap1 = random.standard_normal((2, channels, *queries))
    fmap2 = [random.standard_normal((2, channels, *size)) for size in levels]
    coords = random.randint(-4, 12, (2, 2, *queries)) + random.uniform(0.05, 0.95, (2, 2, *queries))
    wide = torch.promote_types(dtype, torch.float32)
    maps = [torch.from_numpy(fmap).to(dtype) for fmap in fmap2]
    return [torch.from_numpy(fmap1).to(dtype), maps, torch.from_numpy(coords).to(wide)]


def moved(tensors: list, device: str) -> list:
    """Copies on a device that gather gradients."""
    fmap1, fmap2, coords = tensors
    fmap1, coords = (t.detach().to(device).requires_grad_() for t in (fmap1, coords))
    return [fmap1, [fmap.detach().to(device).requires_grad_() for fmap in fmap2], coords]


def leaves(tensors: list) -> list[Tensor]:
    fmap1, fmap2, coords = tensors
    return [fmap1, *fmap2, coords]


def grads(tensors: list) -> list[Tensor]:
    return [tensor.grad for tensor in leaves(tensors)]


def loops(fmap1, fmap2, coords, radius, scale=None, window_stride=1, sparse=False) -> Tensor:
    """The operator, position by position."""
    images, channels, height, width = fmap1.shape
    scale = 1 / math.sqrt(channels) if scale is None else scale
    side = 2 * radius + 1
    output = np.zeros((images, len(fmap2), side, side, height, width))
    for image, level, i, j, y, x in np.ndindex(output.shape):
        query, fmap = fmap1[image, :, y, x].numpy(), fmap2[level][image].numpy()
        at_x, at_y = (value.item() / 2**level for value in coords[image, :, y, x])
        left, top = math.floor(at_x), math.floor(at_y)
        step = window_stride if sparse else 1
        for right, under in np.ndindex(2, 2):
            column = left + window_stride * (i - radius) + right * step
            row = top + window_stride * (j - radius) + under * step
            if 0 <= row < fmap.shape[1] and 0 <= column < fmap.shape[2]:
                weight_x = at_x - left if right else 1 - (at_x - left)
                weight_y = at_y - top if under else 1 - (at_y - top)
                product = query @ fmap[:, row, column]
                output[image, level, i, j, y, x] += scale * weight_x * weight_y * product
    return torch.from_numpy(output.reshape(images, -1, height, width))


@cache
def expected(name: str) -> Tensor:
    return loops(*drawn(), **WINDOWS[name])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", WINDOWS)
def test_equals_the_formula(name, place):
    fmap1, fmap2, coords = drawn()
    fmap2 = [fmap.to(place.device) for fmap in fmap2]
    lookup = place.of(corr_lookup, corr_lookup_twin)
    output = lookup(fmap1.to(place.device), fmap2, coords.to(place.device), **WINDOWS[name])
    near(output, expected(name), 1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_golden(place):
    golden_corr.check_place(*stored("corr_lookup"), place)


@pytest.mark.parametrize("place", PLACES)
def test_equals_all_pairs(place):
    size = (16, 19)
    fmap1, [fmap2], coords = moved(drawn(levels=[size], queries=size), place.device)
    wanted = all_pairs(fmap1, fmap2, coords, radius=3, levels=3)
    output = place.of(corr_lookup, corr_lookup_twin)(fmap1, corr_pyramid(fmap2, 3), coords, 3)
    near(output, wanted, 1e-12)
    tensors, grad = (fmap1, fmap2, coords), torch.randn_like(wanted)
    slopes = (torch.autograd.grad(made, tensors, grad) for made in (output, wanted))
    near_all(*slopes, 1e-12)


def check_slopes(name: str, place):
    fmap1, fmap2, coords = drawn(channels=2, levels=((3, 4), (2, 2)), queries=(2, 2), seed=1)
    tensors = [fmap1[:1], [fmap[:1] for fmap in fmap2], coords[:1]]
    lookup = place.of(corr_lookup, corr_lookup_twin)
    assert torch.autograd.gradcheck(
        lambda fmap1, first, second, coords: lookup(
            fmap1, [first, second], coords, **WINDOWS[name]
        ),
        leaves(moved(tensors, place.device)),
        eps=1e-6, atol=1e-5, rtol=1e-3, nondet_tol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("place", KERNELS)
@pytest.mark.parametrize("name", ["plain", "apart", "apart, sparse"])
def test_gradients_are_the_slopes(name, place):
    check_slopes(name, place)


@pytest.mark.parametrize("place", TWINS)
def test_the_twin_s_gradients_are_the_slopes(place):
    check_slopes("apart, sparse", place)


@pytest.mark.parametrize("place", KERNELS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("channels", [1, 3, 16, 130])
def test_gradients_equal_the_twin_s(channels, window, place):
    tensors = drawn(channels)
    exact, given = moved(tensors, "cpu"), moved(tensors, place.device)
    wanted, output = corr_lookup_twin(*exact, **window), corr_lookup(*given, **window)
    grad = torch.randn(wanted.shape, dtype=wanted.dtype)
    wanted.backward(grad)
    output.backward(grad.to(place.device))
    near_all(grads(given), grads(exact), 1e-12)


@pytest.mark.parametrize("place", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [3, 16, 72, 264])
def test_dtypes(dtype, channels, place):
    """Lower precisions against float64 of the same rounded numbers: only gradients of maps are
    rounded, to the maps' own format."""
    tensors = drawn(channels, dtype=dtype)
    given = moved(tensors, place.device)
    exact = moved(
        [tensors[0].double(), [t.double() for t in tensors[1]], tensors[2].double()], "cpu"
    )
    wanted, output = corr_lookup_twin(*exact, 2), corr_lookup(*given, 2)
    assert output.dtype == torch.float32
    grad = torch.randn(wanted.shape)
    wanted.backward(grad.double())
    output.backward(grad.to(place.device))
    assert [grad.dtype for grad in grads(given)] == [tensor.dtype for tensor in leaves(given)]
    near_once_rounded([output, *grads(given)], [wanted, *grads(exact)], place.device)


@pytest.mark.parametrize("place", PLACES)
def test_places_that_are_nowhere(place):
    """Not a number, infinite, or beyond every integer: nothing read, and no gradient."""
    fmap1, fmap2, coords = drawn(dtype=torch.float32)
    wrong = (math.nan, math.inf, -math.inf, 1e30, -4e9)
    for index, value in enumerate(wrong):
        coords[0, index % 2, 0, index] = value
    tensors = moved([fmap1, fmap2, coords], place.device)
    output = place.of(corr_lookup, corr_lookup_twin)(*tensors, 2)
    assert (output[0, :, 0, : len(wrong)] == 0).all() and output.isfinite().all()
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in leaves(tensors))
    assert (tensors[0].grad[0, :, 0, : len(wrong)] == 0).all()
    assert (tensors[2].grad[0, :, 0, : len(wrong)] == 0).all()


@pytest.mark.parametrize("place", PLACES)
def test_no_images(place):
    fmap1, fmap2, coords = drawn()
    tensors = moved([fmap1[:0], [fmap[:0] for fmap in fmap2], coords[:0]], place.device)
    output = place.of(corr_lookup, corr_lookup_twin)(*tensors, 2)
    assert output.shape == (0, len(fmap2) * 25, *QUERIES)
    output.sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in leaves(tensors))


@pytest.mark.parametrize("place", KERNELS)
def test_any_layout_in_memory(place):
    tensors = moved(drawn(channels=8), place.device)
    last = torch.channels_last
    layouts = (
        lambda t: t.contiguous(memory_format=last),
        lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
        lambda t: torch.cat((t, t), dim=1).contiguous(memory_format=last)[:, t.shape[1] :],
        lambda t: torch.cat((t[:, :1], t), dim=1).contiguous(memory_format=last)[:, 1:],
    )
    wanted = corr_lookup(*tensors, 2)
    grad = torch.randn_like(wanted)
    slopes = torch.autograd.grad(wanted, leaves(tensors), grad)
    for layout in layouts:
        fmap1, fmap2, coords = tensors
        output = corr_lookup(layout(fmap1), [layout(fmap) for fmap in fmap2], layout(coords), 2)
        near(output, wanted, 1e-14)
        near_all(torch.autograd.grad(output, leaves(tensors), layout(grad)), slopes, 1e-14)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("needed", [0, 1, 2])
def test_only_the_gradients_that_are_needed(needed, place):
    lookup, full = place.of(corr_lookup, corr_lookup_twin), moved(drawn(), place.device)
    lookup(*full, 2).square().sum().backward()
    some = moved(drawn(), place.device)
    wanted = some[needed] if needed == 1 else [some[needed]]
    for tensor in leaves(some):
        tensor.requires_grad_(any(tensor is other for other in wanted))
    lookup(*some, 2).square().sum().backward()
    for tensor, other in zip(leaves(some), leaves(full), strict=True):
        if tensor.requires_grad:
            near(tensor.grad, other.grad, 1e-14)
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("place", PLACES)
def test_the_coordinates_gradient_can_be_left_out(place):
    lookup, full = place.of(corr_lookup, corr_lookup_twin), moved(drawn(), place.device)
    lookup(*full, 2).square().sum().backward()
    some = moved(drawn(), place.device)
    lookup(*some, 2, coords_grad=False).square().sum().backward()
    assert some[2].grad is None
    near_all(grads(some)[:-1], grads(full)[:-1], 1e-14)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("name", ["scaled", "apart, sparse"])
def test_gradients_without_a_library(name, needed, monkeypatch):
    monkeypatch.setattr(library, "KERNELS", library.Kernels((), "none"))
    given, exact = moved(drawn(), "cpu"), moved(drawn(), "cpu")
    for tensors in (given, exact):
        for index, tensor in enumerate(tensors):
            for leaf in tensor if index == 1 else [tensor]:
                leaf.requires_grad_(index in needed)
    window = dict(scale=0.5, window_stride=1, sparse=False) | WINDOWS[name]
    wanted, output = corr_lookup_twin(*exact, **window), corr_lookup(*given, **window)
    numbers = (window[part] for part in ("radius", "scale", "window_stride", "sparse"))
    assert torch.equal(corr._plain(*given, *numbers), wanted)
    grad = torch.randn_like(wanted)
    wanted.backward(grad)
    output.backward(grad)
    for one, other in zip(grads(given), grads(exact), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            near(one, other, 1e-14)


@pytest.mark.parametrize("place", CPU_KERNEL)
@pytest.mark.parametrize("channels", [3, 16, 72])
def test_the_same_bits_for_any_threads(channels, place):
    def run():
        tensors = moved(drawn(channels, dtype=torch.float32, queries=(9, 11)), place.device)
        output = corr_lookup(*tensors, 2)
        return output, *torch.autograd.grad(output.square().sum(), leaves(tensors))

    same_for_any_threads(run)


@pytest.mark.parametrize("place", CUDA_KERNEL)
def test_deterministic_mode_refuses_atomics(place):
    fmap1, fmap2, coords = moved(drawn(), place.device)
    torch.use_deterministic_algorithms(True)
    try:
        output = corr_lookup(fmap1, [fmap.detach() for fmap in fmap2], coords, 2)
        output.sum().backward()  # without the gradient of fmap2 nothing is refused
        with pytest.raises(RuntimeError, match="deterministic"):
            corr_lookup(fmap1, fmap2, coords, 2).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("place", CUDA_KERNEL)
def test_two_streams(place):
    def run(tensors):
        fmap1, *fmap2, coords = (tensor.detach().requires_grad_() for tensor in tensors)
        output = corr_lookup(fmap1, fmap2, coords, 2)
        return output, *torch.autograd.grad(output, (fmap1, *fmap2, coords), output.detach())

    tensors = drawn(16, dtype=torch.float32, queries=(40, 50))
    on_late_streams(run, leaves(moved(tensors, place.device)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.parametrize("place", CPU_KERNEL)
def test_a_tenth_of_all_pairs_memory(place):
    arguments = ("kernel", "forward + backward", 1, (96, 128, 8), torch.device(place.device))
    most = memory.in_fresh_process(measure_memory, *arguments)
    assert most < (96 * 128) ** 2 * 4 / 10


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor of all calls holds."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return found


def test_the_twin_never_holds_all_pairs(monkeypatch):
    size = (24, 30)
    tensors = drawn(levels=[size], queries=size)
    whole, few = moved(tensors, "cpu"), moved(tensors, "cpu")
    wanted = corr_lookup_twin(*whole, 1)
    wanted.square().sum().backward()
    monkeypatch.setattr(corr, "AT_ONCE", 20_000)
    with Largest() as largest:
        output = corr_lookup_twin(*few, 1)
        output.square().sum().backward()
    near(output, wanted, 1e-14)
    near_all(grads(few), grads(whole), 1e-12)
    assert largest.numbers <= 20_000 < 2 * (24 * 30) ** 2


def test_the_pyramid():
    fmap = torch.arange(2 * 7 * 5.0).reshape(1, 2, 7, 5)
    first, second, third = corr_pyramid(fmap, 3)
    assert first is fmap and second.shape == (1, 2, 3, 2) and third.shape == (1, 2, 1, 1)
    assert second[0, 1, 1, 1] == fmap[0, 1, 2:4, 2:4].mean()  # odd rows and columns are dropped
    assert third[0, 0, 0, 0] == fmap[0, 0, :4, :4].mean()
    with pytest.raises(ValueError, match="corr_pyramid: .* is too small for 4 levels"):
        corr_pyramid(fmap, 4)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(fmap1=torch.zeros(5, 4, 5)), "must be [B, C, H, W]"),
        (dict(fmap1=torch.zeros(2, 0, 4, 5)), "at least one channel"),
        (dict(fmap2=[]), "a list of maps"),
        (
            dict(fmap2=[torch.zeros(2, 4, 7, 9)]),
            "level 0 of fmap2 is (2, 4, 7, 9), should be (2, 5",
        ),
        (dict(fmap2=[torch.zeros(2, 5, 0, 9)]), "level 0 of fmap2 is (2, 5, 0, 9)"),
        (dict(fmap2=[torch.zeros(2, 5, 7, 9)]), "level 0 of fmap2 torch.float32"),
        (dict(fmap2=[torch.zeros(2, 5, 7, 9, device="meta")]), "level 0 of fmap2 on meta"),
        (dict(coords=torch.zeros(2, 2, 5, 4)), "coords is (2, 2, 5, 4), should be (2, 2, 4, 5)"),
        (dict(coords=torch.zeros(2, 2, 4, 5, device="meta")), "coords on meta"),
        (dict(radius=-1), "radius -1 must be from 0 to"),
        (dict(window_stride=0), "window_stride 0 must be from 1 to"),
    ],
)
@pytest.mark.parametrize("function", [corr_lookup, corr_lookup_twin])
def test_what_does_not_fit_is_said(function, change, words):
    given = dict(zip(("fmap1", "fmap2", "coords"), drawn(), strict=True)) | dict(radius=2) | change
    with pytest.raises(ValueError) as caught:
        function(**given)
    assert words in str(caught.value) and str(caught.value).startswith("corr_lookup: ")


NUMBERS = (2, 0.5, 2, False)  # of the operator: radius, scale, window stride, sparse


@pytest.mark.parametrize("place", TWINS)  # the operator itself, with whatever serves it
def test_torch_library_finds_nothing_wrong(place):
    tensors = moved(drawn(levels=((4, 5), (2, 2))), place.device)
    torch.library.opcheck(torch.ops.cuda_ops.corr_lookup, (*tensors, *NUMBERS))


@pytest.mark.parametrize("place", KERNELS)
def test_torch_library_finds_nothing_wrong_with_the_gradient(place):
    fmap1, fmap2, coords = drawn(levels=((4, 5), (2, 2)))
    fmap1, coords = fmap1.to(place.device), coords.to(place.device)
    tensors = (fmap1, [fmap.to(place.device) for fmap in fmap2], coords)
    grad = torch.ops.cuda_ops.corr_lookup(*tensors, *NUMBERS)
    run = torch.ops.cuda_ops.corr_lookup_backward
    for needs in ([True] * 3, [False, True, False], [True, False, False]):
        torch.library.opcheck(run, (grad, *tensors, *NUMBERS, needs))


@pytest.mark.parametrize("place", TWINS)
def test_compiles_and_exports_whole(place):
    tensors = moved(drawn(), place.device)
    wanted = corr_lookup(*tensors, 2).sin().sum()
    slopes = torch.autograd.grad(wanted, leaves(tensors))

    def total(fmap1, fmap2, coords):
        return corr_lookup(fmap1, fmap2, coords, 2).sin().sum()

    found = torch.compile(total, fullgraph=True, backend="aot_eager")(*tensors)
    near(found, wanted, 1e-14)
    near_all(torch.autograd.grad(found, leaves(tensors)), slopes, 1e-14)

    class Lookup(torch.nn.Module):
        def forward(self, fmap1, fmap2, coords):
            return corr_lookup(fmap1, fmap2, coords, 2)

    program = torch.export.export(Lookup(), tuple(tensors))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("cuda_ops.corr_lookup.default") == 1
    near(program.module()(*tensors), corr_lookup(*tensors, 2), 1e-14)


@pytest.mark.parametrize("place", PLACES)
def test_places_and_sums_stay_wide_under_autocast(place):
    """Maps of two formats meet in the wider one; nothing is rounded beyond them."""
    fmap1, fmap2, coords = drawn(24, dtype=torch.float32, levels=[(4, 700)])
    coords[:, 0] += torch.linspace(0, 690, 5)  # far enough for bfloat16 to lose whole pixels
    halves = [fmap.bfloat16() for fmap in fmap2]
    exact = corr_lookup_twin(fmap1.double(), [fmap.double() for fmap in halves], coords.double(), 2)
    tensors = moved([fmap1, halves, coords], place.device)
    with torch.autocast(place.device, dtype=torch.bfloat16):
        output = place.of(corr_lookup, corr_lookup_twin)(*tensors, 2)
    assert output.dtype == torch.float32
    near(output, exact, 1e-5)
    output.sum().backward()
    for tensor in leaves(tensors):
        assert tensor.grad.dtype == tensor.dtype


@pytest.mark.parametrize("place", TWINS)
def test_autocast_compiles_whole(place):
    fmap1, fmap2, coords = drawn(dtype=torch.float32)
    tensors = moved([fmap1, [fmap.bfloat16() for fmap in fmap2], coords], place.device)

    def step(fmap1, fmap2, coords):
        with torch.autocast(place.device, dtype=torch.bfloat16):
            return corr_lookup(fmap1, fmap2, coords, 2)

    wanted, output = (
        step(*tensors),
        torch.compile(step, fullgraph=True, backend="aot_eager")(*tensors),
    )
    assert output.dtype == torch.float32
    near(output, wanted, 0)
    slopes = (
        torch.autograd.grad(made, leaves(tensors), wanted.detach()) for made in (output, wanted)
    )
    near_all(*slopes, 1e-6)
