"""Where native operators are asked for what is seldom asked: whole pixels, second derivatives,
tensors without data, arguments that mean nothing."""

import pytest
import torch

from cuda_ops import DCNv3, corr_lookup, corr_lookup_twin, corr_pyramid, dcnv3, dcnv3_twin, library


def dcnv3_inputs(size=(9, 11), group=2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    input = torch.randn(1, *size, 4 * group, dtype=torch.float64)
    offset = torch.randint(-3, 4, (1, *size, group * 18)).double()
    return [input, offset, torch.rand(1, *size, group * 9, dtype=torch.float64)]


@pytest.mark.parametrize("size", [(9, 11), (8, 16), (3, 39)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_on_whole_pixels_twin_and_kernel_have_one_slope(size, dtype):
    """A new layer's points all lie there: that of the cell to the right and below."""
    if not library.serves(torch.device("cpu")):
        pytest.skip(library.KERNELS.missing)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in dcnv3_inputs(size)]
    outputs = [function(*inputs, group=2) for function in (dcnv3, dcnv3_twin)]
    grad = torch.randn_like(outputs[0])
    slopes = [torch.autograd.grad(output, inputs, grad) for output in outputs]
    limit = 1e-12 if dtype == torch.float64 else 1e-4
    for found, wanted in zip(*slopes, strict=True):
        assert (found - wanted).abs().max() <= limit


def test_the_slope_on_whole_pixels_is_that_of_the_cell_to_the_right_and_below():
    input = torch.tensor([0.0, 1.0, 3.0, 7.0, 15.0], dtype=torch.float64)
    input = (input + 100 * input[:, None])[None, :, :, None]  # [1, 5, 5, 1]
    offset = torch.zeros(1, 5, 5, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 5, 5, 1, dtype=torch.float64)
    dcnv3_twin(input, offset, mask, kernel=1, pad=0).sum().backward()
    steps = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    assert torch.equal(offset.grad[0, :4, :4, 0], steps.expand(4, 4))
    assert torch.equal(offset.grad[0, :4, :4, 1], 100 * steps[:, None].expand(4, 4))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("operator", ["dcnv3", "corr_lookup"])
def test_second_derivatives_are_refused_not_zero(operator, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(library, "KERNELS", library.Kernels((), "none"))
    elif not library.serves(torch.device("cpu")):
        pytest.skip(library.KERNELS.missing)
    if operator == "dcnv3":
        maps, *rest = dcnv3_inputs()
        maps.requires_grad_()
        output = dcnv3(maps, *rest, group=2)
    else:
        maps = torch.randn(1, 3, 5, 6, requires_grad=True)
        output = corr_lookup(maps, [maps.detach()], torch.rand(1, 2, 5, 6), 1)
    with pytest.raises(RuntimeError, match=f"{operator} has no second derivative; {operator}_twin"):
        slope = torch.autograd.grad(output.square().sum(), maps, create_graph=True)[0]
        torch.autograd.grad(slope.sum(), maps)


def test_the_twins_have_second_derivatives():
    maps, *rest = dcnv3_inputs()
    maps.requires_grad_()
    output = dcnv3_twin(maps, *rest, group=2).square().sum()
    slope = torch.autograd.grad(output, maps, create_graph=True)[0]
    assert torch.autograd.grad(slope.sum(), maps)[0].abs().max() > 0


@pytest.mark.parametrize("lookup", [corr_lookup, corr_lookup_twin])
def test_lookups_of_tensors_without_data(lookup):
    maps = torch.zeros(1, 4, 5, 6, device="meta", requires_grad=True)
    output = lookup(maps, corr_pyramid(maps, 2), torch.zeros(1, 2, 5, 6, device="meta"), 1)
    assert output.shape == (1, 18, 5, 6) and output.is_meta
    output.sum().backward()
    assert maps.grad.shape == maps.shape


def test_a_layer_without_data():
    layer = DCNv3(8, group=2, stride=2).to("meta")
    assert layer(torch.zeros(1, 5, 6, 8, device="meta")).shape == (1, 3, 3, 8)


@pytest.mark.parametrize("function", [dcnv3, dcnv3_twin])
@pytest.mark.parametrize(
    "change, words",
    [
        (dict(kernel=0), "kernel (0, 0) must be at least 1"),
        (dict(stride=(1, 0)), "stride (1, 0) must be at least 1"),
        (dict(dilation=0), "dilation (0, 0) must be at least 1"),
        (dict(pad=-1), "pad (-1, -1) must be at least 0"),
        (dict(group=0), "group (0,) must be at least 1"),
    ],
)
def test_numbers_that_mean_nothing_to_dcnv3(function, change, words):
    with pytest.raises(ValueError) as caught:
        function(*dcnv3_inputs(), **{"group": 2, **change})
    assert words in str(caught.value)


@pytest.mark.parametrize("function", [dcnv3, dcnv3_twin])
def test_whole_numbers_and_empty_images_are_refused(function):
    with pytest.raises(ValueError, match="input is torch.int32"):
        function(*(tensor.int() for tensor in dcnv3_inputs()), group=2)
    empty = torch.zeros(1, 0, 5, 8), torch.zeros(1, 2, 7, 36), torch.zeros(1, 2, 7, 18)
    with pytest.raises(ValueError, match=r"input \(1, 0, 5, 8\) must be"):
        function(*empty, pad=2, group=2)


@pytest.mark.parametrize("lookup", [corr_lookup, corr_lookup_twin])
@pytest.mark.parametrize(
    "options, words",
    [
        (dict(radius=-1), "radius -1 must be from 0 to 1023"),
        (dict(radius=1024), "radius 1024 must be from 0 to 1023"),
        (dict(radius=1, window_stride=0), "window_stride 0 must be from 1 to 32767"),
    ],
)
def test_numbers_that_mean_nothing_to_a_lookup(lookup, options, words):
    maps = torch.zeros(1, 4, 5, 6)
    with pytest.raises(ValueError, match=words):
        lookup(maps, [maps], torch.zeros(1, 2, 5, 6), **options)
    with pytest.raises(ValueError, match="too small for 0 levels"):
        corr_pyramid(maps, 0)


def test_float64_under_autocast_with_narrower_offsets():
    input, offset, mask = dcnv3_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = dcnv3(input, offset.float(), mask, group=2)
    assert output.dtype == torch.float64
    assert (output - dcnv3_twin(input, offset, mask, group=2)).abs().max() < 1e-12
