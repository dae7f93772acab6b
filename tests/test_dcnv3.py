"""The DCNv3 operator, wherever it can run, against loops written from its formula; its layer."""

import math

import golden_dcnv3
import numpy as np
import pytest
import torch
from places import (
    CPU_KERNEL,
    CUDA_KERNEL,
    KERNELS,
    PLACES,
    TWINS,
    near,
    near_all,
    near_once_rounded,
    on_late_streams,
    same_for_any_threads,
    stored,
)
from torch import Tensor

from cuda_ops import DCNv3, dcnv3, dcnv3_twin, library
from cuda_ops.dcnv3 import _plain

# Arguments that differ between the axes, so that no exchange of the two stays hidden.
SHAPES = {
    "plain": dict(kernel=3, group=2),
    "one group": dict(kernel=3, group=1),
    "axes differ": dict(kernel=(3, 1), stride=(1, 2), pad=(2, 0), dilation=(2, 1), group=2),
    "stride and dilation": dict(kernel=3, stride=2, pad=2, dilation=2, group=2, offset_scale=0.5),
    "no centre": dict(kernel=3, group=3, remove_center=True),
    "even kernel": dict(kernel=(2, 4), pad=(1, 2), group=2, offset_scale=2.0),
    "one point": dict(kernel=1, pad=0, group=2),
}
DEPTH = 3  # channels of a group: no multiple of a vector


def pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def drawn(numbers: dict, size=(6, 7), depth=DEPTH, seed=0, dtype=torch.float64) -> list[Tensor]:
    """(input, offset, mask) of two images; no point within 1e-3 of a whole pixel."""
    random = np.random.RandomState(seed)
    kernel, stride, dilation = (
        pair(numbers.get(name, 1)) for name in ("kernel", "stride", "dilation")
    )
    pad, group = pair(numbers.get("pad", 1)), numbers["group"]
    points = kernel[0] * kernel[1] - numbers.get("remove_center", False)
    out = [
        (size[i] + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    whole = random.randint(-3, 3, (2, *out, group * points * 2))
    part = random.uniform(0.05, 0.45, whole.shape)  # times 0.5, 1 or 2 no whole number
    part += random.randint(0, 2, whole.shape) / 2
    tensors = (
        random.standard_normal((2, *size, group * depth)),
        whole + part,
        random.uniform(0, 1, (2, *out, group * points)),
    )
    return [torch.from_numpy(tensor).to(dtype) for tensor in tensors]


def bilinear(plane: np.ndarray, x: float, y: float) -> np.ndarray:
    """[D] of [H, W, D]; each neighbour outside counts as 0."""
    total = np.zeros(plane.shape[2])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def loops(input, offset, mask, kernel=3, stride=1, pad=1, dilation=1, group=1, offset_scale=1.0,
          remove_center=False):  # fmt: skip
    """The operator point by point."""
    kernel, stride, pad, dilation = map(pair, (kernel, stride, pad, dilation))
    input, offset, mask = (tensor.numpy() for tensor in (input, offset, mask))
    images, height, width = mask.shape[:3]
    offset = offset.reshape(images, height, width, group, -1, 2)
    mask = mask.reshape(images, height, width, group, -1)
    planes = input.reshape(*input.shape[:3], group, -1)
    centre = [dilation[i] * (kernel[i] - 1) // 2 for i in (0, 1)]
    output = np.zeros((images, height, width, group, planes.shape[-1]))
    for n, y, x, g in np.ndindex(output.shape[:4]):
        p = 0
        for i in range(kernel[1]):  # column by column
            for j in range(kernel[0]):
                if remove_center and (i, j) == (kernel[1] // 2, kernel[0] // 2):
                    continue
                moved = offset[n, y, x, g, p]
                at_x = i * dilation[1] - centre[1] + moved[0]
                at_y = j * dilation[0] - centre[0] + moved[1]
                at_x = x * stride[1] - pad[1] + centre[1] + offset_scale * at_x
                at_y = y * stride[0] - pad[0] + centre[0] + offset_scale * at_y
                output[n, y, x, g] += mask[n, y, x, g, p] * bilinear(planes[n, :, :, g], at_x, at_y)
                p += 1
    return torch.from_numpy(output.reshape(images, height, width, -1))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("numbers", SHAPES.values(), ids=SHAPES)
def test_equals_the_formula(numbers, place):
    tensors = drawn(numbers)
    output = place.of(dcnv3, dcnv3_twin)(*(t.to(place.device) for t in tensors), **numbers)
    near(output, loops(*tensors, **numbers), 1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_golden(place):
    golden_dcnv3.check_place(*stored("dcnv3_core"), place)


def check_slopes(name: str, place):
    tensors = drawn(SHAPES[name], size=(3, 4), seed=1)
    tensors = [tensor[:1].to(place.device).requires_grad_() for tensor in tensors]
    function = place.of(dcnv3, dcnv3_twin)
    assert torch.autograd.gradcheck(
        lambda *t: function(*t, **SHAPES[name]), tensors, eps=1e-6, atol=1e-5, rtol=1e-3,
        nondet_tol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("place", KERNELS)
@pytest.mark.parametrize("name", ["plain", "axes differ", "no centre", "even kernel"])
def test_gradients_are_the_slopes(name, place):
    check_slopes(name, place)


@pytest.mark.parametrize("place", TWINS)
def test_the_twin_s_gradients_are_the_slopes(place):
    check_slopes("axes differ", place)


@pytest.mark.parametrize("place", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [3, 16, 20, 44])  # 44: strips and each kind of vector
def test_dtypes(dtype, depth, place):
    """Lower precisions against float64 of the same rounded numbers; half with wide offsets too."""
    for offset_dtype in {dtype, torch.float32}:
        tensors = drawn(SHAPES["plain"], depth=depth, dtype=dtype)
        tensors[1] = tensors[1].to(offset_dtype)
        exact = [tensor.double().requires_grad_() for tensor in tensors]
        tensors = [tensor.to(place.device).requires_grad_() for tensor in tensors]
        wanted, output = dcnv3_twin(*exact, **SHAPES["plain"]), dcnv3(*tensors, **SHAPES["plain"])
        assert output.dtype == dtype
        grad = torch.randn(wanted.shape).to(dtype)
        wanted.backward(grad.double())
        output.backward(grad.to(place.device))
        assert [tensor.grad.dtype for tensor in tensors] == [tensor.dtype for tensor in tensors]
        found = [output, *(tensor.grad for tensor in tensors)]
        near_once_rounded(found, [wanted, *(tensor.grad for tensor in exact)], place.device)


@pytest.mark.parametrize("place", PLACES)
def test_points_that_are_nowhere(place):
    """Not a number, infinite, or beyond every integer: outside, and without a gradient."""
    input, offset, mask = drawn(SHAPES["plain"], dtype=torch.float32)
    for index, value in enumerate((math.nan, math.inf, -math.inf, 1e30, -1e30, 4e9)):
        offset[0, 0, index] = value
    nowhere = offset.abs().nan_to_num(math.inf) > 1e9
    tensors = [t.to(place.device).requires_grad_() for t in (input, offset, mask)]
    output = place.of(dcnv3, dcnv3_twin)(*tensors, **SHAPES["plain"])
    assert (output[0, 0, :6] == 0).all() and output.isfinite().all()
    output.backward(torch.ones_like(output))
    assert all(tensor.grad.isfinite().all() for tensor in tensors)
    assert (tensors[1].grad.cpu()[nowhere] == 0).all()
    assert (tensors[2].grad[0, 0, :6] == 0).all()


@pytest.mark.parametrize("place", PLACES)
def test_no_images(place):
    tensors = [t[:0].to(place.device).requires_grad_() for t in drawn(SHAPES["plain"])]
    output = place.of(dcnv3, dcnv3_twin)(*tensors, **SHAPES["plain"])
    assert output.shape == (0, 6, 7, 6)
    output.sum().backward()
    assert [t.grad.shape for t in tensors] == [t.shape for t in tensors]


@pytest.mark.parametrize("place", KERNELS)
def test_any_layout_in_memory(place):
    tensors = [t.to(place.device) for t in drawn(SHAPES["plain"])]
    apart = [t.transpose(0, 3).contiguous().transpose(0, 3).requires_grad_() for t in tensors]
    assert not any(tensor.is_contiguous() for tensor in apart)
    output = dcnv3(*apart, **SHAPES["plain"])
    near(output, dcnv3(*tensors, **SHAPES["plain"]), 0)
    grad = torch.randn(output.shape[::-1], dtype=output.dtype, device=place.device).permute(
        3, 2, 1, 0
    )
    output.backward(grad)
    together = [tensor.requires_grad_() for tensor in tensors]
    dcnv3(*together, **SHAPES["plain"]).backward(grad.contiguous())
    near_all((t.grad for t in apart), (t.grad for t in together), 1e-14)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("needed", [0, 1, 2])
def test_only_the_gradients_that_are_needed(needed, place):
    function, everything = place.of(dcnv3, dcnv3_twin), drawn(SHAPES["plain"])
    full = [tensor.to(place.device).requires_grad_() for tensor in everything]
    function(*full, **SHAPES["plain"]).square().sum().backward()
    some = [tensor.to(place.device) for tensor in everything]
    some[needed].requires_grad_()
    function(*some, **SHAPES["plain"]).square().sum().backward()
    near(some[needed].grad, full[needed].grad, 1e-14)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_gradients_without_a_library(needed, monkeypatch):
    monkeypatch.setattr(library, "KERNELS", library.Kernels((), "none"))
    given, expected = (drawn(SHAPES["axes differ"]) for _ in range(2))
    numbers = ((3, 1), (1, 2), (2, 0), (2, 1), 2, 1.0, False)
    for index in needed:
        given[index].requires_grad_()
        expected[index].requires_grad_()
    wanted = dcnv3_twin(*expected, *numbers)
    assert torch.equal(_plain(*given, *numbers), wanted)
    grad = torch.randn_like(wanted)
    wanted.backward(grad)
    dcnv3(*given, *numbers).backward(grad)
    for one, other in zip(given, expected, strict=True):
        assert (one.grad is None) == (other.grad is None)
    near_all((given[i].grad for i in needed), (expected[i].grad for i in needed), 1e-14)


@pytest.mark.parametrize("place", CPU_KERNEL)
@pytest.mark.parametrize("depth", [3, 16, 64])
def test_the_same_bits_for_any_threads(depth, place):
    def run():
        tensors = drawn(SHAPES["plain"], size=(17, 13), depth=depth, dtype=torch.float32)
        tensors = [tensor.requires_grad_() for tensor in tensors]
        output = dcnv3(*tensors, **SHAPES["plain"])
        return output, *torch.autograd.grad(output.square().sum(), tensors)

    same_for_any_threads(run)


@pytest.mark.parametrize("place", CUDA_KERNEL)
def test_deterministic_mode_refuses_atomics(place):
    tensors = [t.to(place.device).requires_grad_() for t in drawn(SHAPES["plain"])]
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deterministic"):
            dcnv3(*tensors, **SHAPES["plain"]).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("place", CUDA_KERNEL)
def test_two_streams(place):
    tensors = drawn(SHAPES["plain"], size=(64, 64), dtype=torch.float32)

    def run(tensors):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = dcnv3(*leaves, **SHAPES["plain"])
        return output, *torch.autograd.grad(output, leaves, output.detach())

    on_late_streams(run, [tensor.to(place.device) for tensor in tensors])


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(group=4), "multiple of group 4"),
        (dict(kernel=(3, 1), remove_center=True), "square kernel of odd size"),
        (dict(kernel=2, remove_center=True), "square kernel of odd size"),
        (dict(kernel=9, pad=0), "smaller than kernel"),
        (dict(stride=2), "mask is (2, 6, 7, 18), should be (2, 3, 4, 18)"),
        (dict(input=torch.zeros(2, 6, 7, 6)), "input is torch.float32, mask torch.float64"),
        (dict(offset=torch.zeros(2, 6, 7, 36)), "input is torch.float64, offset torch.float32"),
        (dict(offset=torch.zeros(2, 6, 7, 36, device="meta")), "offset on meta"),
        (dict(input=torch.zeros(6, 7, 6)), "must be [N, H, W, C]"),
    ],
)
@pytest.mark.parametrize("function", [dcnv3, dcnv3_twin])
def test_what_does_not_fit_is_said(function, change, words):
    names = ("input", "offset", "mask")
    given = dict(zip(names, drawn(SHAPES["plain"]), strict=True)) | SHAPES["plain"] | change
    with pytest.raises(ValueError) as caught:
        function(**given)
    assert words in str(caught.value) and str(caught.value).startswith("dcnv3: ")


@pytest.mark.parametrize("place", TWINS)  # the operator itself, with whatever serves it
def test_torch_library_finds_nothing_wrong(place):
    tensors = [t.to(place.device).requires_grad_() for t in drawn(SHAPES["axes differ"])]
    numbers = ((3, 1), (1, 2), (2, 0), (2, 1), 2, 1.0, False)
    torch.library.opcheck(torch.ops.cuda_ops.dcnv3, (*tensors, *numbers))


@pytest.mark.parametrize("place", KERNELS)
def test_torch_library_finds_nothing_wrong_with_the_gradient(place):
    tensors = [t.to(place.device) for t in drawn(SHAPES["axes differ"])]
    numbers = ((3, 1), (1, 2), (2, 0), (2, 1), 2, 1.0, False)
    grad = torch.ops.cuda_ops.dcnv3(*tensors, *numbers)
    for needs in ([True] * 3, [False, True, False]):
        torch.library.opcheck(torch.ops.cuda_ops.dcnv3_backward, (grad, *tensors, *numbers, needs))


@pytest.mark.parametrize("place", TWINS)
def test_compiles_and_exports_whole(place):
    tensors = [t.to(place.device).requires_grad_() for t in drawn(SHAPES["plain"])]
    wanted = dcnv3(*tensors, **SHAPES["plain"]).sin().sum()
    slopes = torch.autograd.grad(wanted, tensors)
    step = torch.compile(
        lambda *t: dcnv3(*t, **SHAPES["plain"]).sin().sum(), fullgraph=True, backend="aot_eager"
    )
    found = step(*tensors)
    near(found, wanted, 1e-14)
    near_all(torch.autograd.grad(found, tensors), slopes, 1e-14)

    layer = DCNv3(8, group=2).to(place.device).eval()
    image = torch.randn(1, 5, 6, 8, device=place.device)
    program = torch.export.export(layer, (image,))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("cuda_ops.dcnv3.default") == 1
    near(program.module()(image), layer(image), 1e-6)


@pytest.mark.parametrize("place", TWINS)
def test_offsets_stay_wide_under_autocast(place):
    input, offset, mask = (
        t.to(place.device) for t in drawn(SHAPES["plain"], (6, 300), dtype=torch.float32)
    )
    far = torch.arange(300, device=place.device) / 3  # far enough to be rounded
    offset[..., ::2] += far[:, None]
    exact = dcnv3(input, offset, mask, **SHAPES["plain"])
    with torch.autocast(place.device, dtype=torch.bfloat16):
        output = dcnv3(input, offset, mask, **SHAPES["plain"])
    assert output.dtype == torch.bfloat16
    near(output, exact, 1e-2)
    rounded = dcnv3(input, offset.bfloat16().float(), mask, **SHAPES["plain"])
    assert (rounded - exact).abs().max() > 0.2  # what narrow offsets would give


@pytest.mark.parametrize("place", TWINS)
def test_autocast_compiles_whole(place):
    tensors = drawn(SHAPES["plain"], dtype=torch.float32)
    tensors = [tensor.to(place.device).requires_grad_() for tensor in tensors]

    def step(*tensors):
        with torch.autocast(place.device, dtype=torch.bfloat16):
            return dcnv3(*tensors, **SHAPES["plain"])

    wanted, output = (
        step(*tensors),
        torch.compile(step, fullgraph=True, backend="aot_eager")(*tensors),
    )
    assert output.dtype == torch.bfloat16
    near(output, wanted, 0)
    slopes = (torch.autograd.grad(made, tensors, wanted.detach()) for made in (output, wanted))
    near_all(*slopes, 1e-6)


def randomized(layer: DCNv3, seed: int = 0) -> DCNv3:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return layer


def test_the_layer_s_names():
    prefixes = "dw_conv.0 {} offset mask input_proj output_proj"
    for norm, place in (("LN", "dw_conv.1.1"), ("BN", "dw_conv.1.0")):
        layer = DCNv3(16, norm_layer=norm)
        names = set(prefixes.format(place).split())
        assert {name.rsplit(".", 1)[0] for name in layer.state_dict()} == names
    layer = DCNv3(16, group=2, center_feature_scale=True)
    assert layer.center_feature_scale_proj_weight.shape == (2, 16)
    assert layer.center_feature_scale_proj_bias.shape == (2,)


def test_the_layer_averages_its_points_at_first():
    layer = DCNv3(4, group=2)
    for part in (layer.input_proj, layer.output_proj):
        torch.nn.init.eye_(part.weight)
    image = torch.randn(1, 5, 6, 4)
    wanted = torch.nn.functional.avg_pool2d(image.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    near(layer(image), wanted, 1e-5)


@pytest.mark.parametrize("norm", ["LN", "BN"])
@pytest.mark.parametrize("act", ["ReLU", "SiLU", "GELU"])
def test_the_layer_is_its_formula(norm, act):
    options = dict(kernel_size=3, stride=1, pad=2, dilation=2, group=2, offset_scale=0.5)
    layer = DCNv3(8, norm_layer=norm, act_layer=act, center_feature_scale=True, **options)
    layer = randomized(layer).eval()
    image = torch.randn(2, 5, 6, 8)
    values = image @ layer.input_proj.weight.T + layer.input_proj.bias
    query = layer.dw_conv(image.permute(0, 3, 1, 2))
    weights = layer.mask(query).reshape(2, 5, 6, 2, 9).softmax(dim=-1).reshape(2, 5, 6, 18)
    numbers = dict(kernel=3, stride=1, pad=2, dilation=2, group=2, offset_scale=0.5)
    sampled = dcnv3_twin(values, layer.offset(query), weights, **numbers)
    share = query @ layer.center_feature_scale_proj_weight.T + layer.center_feature_scale_proj_bias
    share = share.sigmoid()[..., [0] * 4 + [1] * 4]
    wanted = layer.output_proj(sampled * (1 - share) + values * share)
    near(layer(image), wanted, 1e-5)


def test_the_layer_with_a_stride():
    layer = randomized(DCNv3(8, stride=2, kernel_size=5, pad=2, dw_kernel_size=3))
    output = layer(torch.randn(2, 7, 10, 8))
    assert output.shape == (2, 4, 5, 8)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_the_layer_under_autocast_and_in_half():
    layer = randomized(DCNv3(8)).eval()
    image = torch.randn(1, 5, 6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(image)
    assert output.dtype == torch.bfloat16
    near(output, layer(image), 5e-2)
    near(layer.bfloat16()(image.bfloat16()), output, 5e-2)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(channels=10), "channels 10 are no multiple of group 4"),
        (dict(pad=0), "pad 0 must be"),
        (dict(dw_kernel_size=4), "dw_kernel_size 4 must be odd"),
        (dict(act_layer="Mish"), "'Mish' is none of ReLU, SiLU, GELU"),
        (dict(norm_layer="GN"), "'GN' is none of LN, BN"),
        (dict(stride=2, center_feature_scale=True), "needs stride 1"),
    ],
)
def test_layers_that_cannot_be(options, words):
    with pytest.raises(ValueError) as caught:
        DCNv3(**{"channels": 16, **options})
    assert words in str(caught.value)


def test_the_layer_warns_of_slow_depths():
    with pytest.warns(UserWarning, match="24 channels a group"):
        DCNv3(96, group=4)


def test_a_guide_decides_where_the_layer_samples():
    layer = randomized(DCNv3(8, group=2)).eval()
    image, guide = torch.randn(2, 1, 5, 6, 8)
    near(layer(image, image), layer(image), 0)
    values, query = layer.input_proj(image), layer.dw_conv(guide.permute(0, 3, 1, 2))
    weights = layer.mask(query).unflatten(-1, (2, 9)).softmax(dim=-1).flatten(-2)
    wanted = layer.output_proj(dcnv3_twin(values, layer.offset(query), weights, group=2))
    near(layer(image, guide), wanted, 1e-5)
