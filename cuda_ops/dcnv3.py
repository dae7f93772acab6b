"""DCNv3: sampling at learnt points, each with a learnt weight (InternImage, arXiv:2211.05778).

Every output pixel of a group is a weighted sum of P points of the input, one for each cell of the
kernel, moved by an offset and read bilinearly; outside the image is 0. Offsets are in pixels.

Legend: N images, H x W input, Ho x Wo output, G groups, D channels of a group, P points.
`input` [N, H, W, G*D], `offset` [N, Ho, Wo, G*P*2] (x before y), `mask` [N, Ho, Wo, G*P], output
[N, Ho, Wo, G*D]. Points walk the kernel column by column. Pairs are (height, width).
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cuda_ops import library
from cuda_ops.library import OPS

Pair = int | tuple[int, int]
ACTIVATIONS = {"ReLU": nn.ReLU, "SiLU": nn.SiLU, "GELU": nn.GELU}
NORMS = ("LN", "BN")


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel: Pair = 3,
    stride: Pair = 1,
    pad: Pair = 1,
    dilation: Pair = 1,
    group: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """The operator [N, Ho, Wo, G*D]; compiled where a kernel serves the device, else the twin.

    `offset_scale` multiplies the offsets and the kernel's own grid alike; `remove_center` leaves
    out the middle point. Under autocast the offsets stay in float32."""
    arguments = (*map(_pair, (kernel, stride, pad, dilation)), group, offset_scale, remove_center)
    _check(input, offset, mask, *arguments)
    if torch.onnx.is_in_onnx_export():  # as standard operators
        return dcnv3_twin(input, offset, mask, *arguments)
    return torch.ops.cuda_ops.dcnv3(input, offset, mask, *arguments)


def dcnv3_twin(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel: Pair = 3,
    stride: Pair = 1,
    pad: Pair = 1,
    dilation: Pair = 1,
    group: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """The same in plain PyTorch: differentiable, exact in float64."""
    arguments = (*map(_pair, (kernel, stride, pad, dilation)), group, offset_scale, remove_center)
    _check(input, offset, mask, *arguments)
    kernel, stride, pad, dilation = arguments[:4]
    channels = input.shape[3]
    wide = torch.promote_types(torch.promote_types(offset.dtype, torch.float32), input.dtype)
    y, x = (
        torch.arange(count, dtype=wide, device=offset.device) * stride[axis]
        + (dilation[axis] * (kernel[axis] - 1) // 2 - pad[axis])
        for axis, count in enumerate(mask.shape[1:3])
    )
    y, x = torch.meshgrid(y, x, indexing="ij")
    start = torch.stack([x, y], dim=-1)  # [Ho, Wo, 2]
    cells = _cells(kernel, dilation, remove_center).to(offset.device, wide)  # [P, 2]
    moved = offset.to(wide).unflatten(-1, (group, -1, 2)) + cells
    at = start[:, :, None, None] + offset_scale * moved  # [N, Ho, Wo, G, P, 2]
    # Not a number and far away are outside: read nothing, and have no gradient.
    height, width = input.shape[1:3]
    inside = (at > -1) & (at < library.pair(width, height, at))
    at = torch.where(inside.all(dim=-1, keepdim=True), at, -2.0)
    at = at.permute(0, 3, 1, 2, 4, 5).flatten(2, 3).flatten(0, 1)  # [N*G, Ho*Wo, P, 2]

    maps = input.to(wide).unflatten(-1, (group, channels // group)).permute(0, 3, 4, 1, 2)
    weights = mask.to(wide).unflatten(-1, (group, -1)).permute(0, 3, 1, 2, 4)
    weights = weights.flatten(2, 3).flatten(0, 1)  # [N*G, Ho*Wo, P]
    total = (_read(maps.flatten(0, 1), at) * weights[:, None]).sum(dim=-1)  # [N*G, D, Ho*Wo]
    total = total.unflatten(0, (-1, group)).flatten(1, 2).transpose(1, 2)  # [N, Ho*Wo, C]
    return total.unflatten(1, mask.shape[1:3]).to(input.dtype).contiguous()


def _read(maps: Tensor, at: Tensor) -> Tensor:
    """Maps [N*G, D, H, W] read bilinearly at places in pixels, [N*G, D, Ho*Wo, P].

    grid_sample counts from -1 to 1. With sides that are powers of two no whole pixel is moved by
    that, so that the slope there is the one of the cell to its right and below, as in the kernels.
    """
    height, width = map(_power_of_two, maps.shape[2:])
    maps = F.pad(maps, (0, width - maps.shape[3], 0, height - maps.shape[2]))
    size = library.pair(width, height, at)
    return F.grid_sample(maps, (2 * at + 1) / size - 1, align_corners=False)


def _power_of_two(side: int) -> int:
    """The next one; a side that is left open in an exported file stays as it is."""
    return 1 << (side - 1).bit_length() if isinstance(side, int) else side


def out_size(size: tuple, kernel: tuple, stride: tuple, pad: tuple, dilation: tuple) -> list[int]:
    """(Ho, Wo) of an input (H, W), as a convolution's."""
    return [
        (size[axis] + 2 * pad[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]


def points_of(kernel: tuple, remove_center: bool) -> int:
    """P, how many points a pixel of a group has."""
    return kernel[0] * kernel[1] - remove_center


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _cells(kernel: tuple, dilation: tuple, remove_center: bool) -> Tensor:
    """The kernel's own grid around its middle [P, 2] (x, y), column by column."""
    height, width = kernel
    x = torch.arange(width) * dilation[1] - dilation[1] * (width - 1) // 2
    y = torch.arange(height) * dilation[0] - dilation[0] * (height - 1) // 2
    cells = torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1).reshape(-1, 2)
    if remove_center:
        middle = len(cells) // 2
        cells = torch.cat([cells[:middle], cells[middle + 1 :]])
    return cells


def _check(input, offset, mask, kernel, stride, pad, dilation, group, offset_scale, remove_center):
    """One sentence for whatever does not fit together."""
    for name, numbers, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("dilation", dilation, 1),
        ("group", (group,), 1),
        ("pad", pad, 0),
    ):
        if min(numbers) < least:
            raise ValueError(f"dcnv3: {name} {numbers} must be at least {least}")
    if remove_center and (kernel[0] != kernel[1] or kernel[0] % 2 == 0):
        raise ValueError(f"dcnv3: remove_center needs a square kernel of odd size, not {kernel}")
    if input.ndim != 4 or input.shape[-1] % group or min(input.shape[1:3]) < 1:
        raise ValueError(
            f"dcnv3: input {tuple(input.shape)} must be [N, H, W, C] with C a multiple of "
            f"group {group}"
        )
    if not input.device == offset.device == mask.device:
        raise ValueError(
            f"dcnv3: input is on {input.device}, offset on {offset.device}, mask on {mask.device}"
        )
    if not library.autocasts(input.device.type):
        _check_formats(input, offset, mask)
    size = out_size(input.shape[1:3], kernel, stride, pad, dilation)
    if min(size) < 1:
        raise ValueError(f"dcnv3: input {tuple(input.shape)} is smaller than kernel {kernel}")
    wanted = (input.shape[0], *size, group * points_of(kernel, remove_center))
    for name, given, shape in (
        ("mask", mask, wanted),
        ("offset", offset, (*wanted[:3], 2 * wanted[3])),
    ):
        if tuple(given.shape) != shape:
            raise ValueError(f"dcnv3: {name} is {tuple(given.shape)}, should be {shape}")


def _check_formats(input: Tensor, offset: Tensor, mask: Tensor):
    if not input.is_floating_point():
        raise ValueError(f"dcnv3: input is {input.dtype}")
    if mask.dtype != input.dtype:
        raise ValueError(f"dcnv3: input is {input.dtype}, mask {mask.dtype}")
    half = input.dtype in (torch.float16, torch.bfloat16)
    if offset.dtype != input.dtype and not (half and offset.dtype == torch.float32):
        raise ValueError(f"dcnv3: input is {input.dtype}, offset {offset.dtype}")


# The operator for torch.compile, torch.export, autograd and autocast.

_NUMBERS = (
    "int[2] kernel, int[2] stride, int[2] pad, int[2] dilation, int group, float offset_scale, "
    "bool remove_center"
)
OPS.define(f"dcnv3(Tensor input, Tensor offset, Tensor mask, {_NUMBERS}) -> Tensor")
OPS.define(
    f"dcnv3_backward(Tensor grad, Tensor input, Tensor offset, Tensor mask, {_NUMBERS}, "
    "bool[3] needs) -> (Tensor, Tensor, Tensor)"
)


def _plain(input: Tensor, offset: Tensor, mask: Tensor, *numbers) -> Tensor:
    library.announce("dcnv3", input.device.type)
    return dcnv3_twin(input, offset, mask, *numbers)


def _shape(input: Tensor, offset: Tensor, mask: Tensor, *numbers) -> Tensor:
    height, width = out_size(input.shape[1:3], *numbers[:4])
    return input.new_empty((input.shape[0], height, width, input.shape[3]))


def _backward_shapes(grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *numbers):
    tensors = (input, offset, mask)
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if need
        else tensor.new_empty(0)
        for tensor, need in zip(tensors, numbers[-1], strict=True)
    )


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.numbers = inputs[3:]


def _backward(ctx, grad: Tensor):
    needs = ctx.needs_input_grad[:3]
    unused = [None] * len(ctx.numbers)
    if library.serves(grad.device):
        grads = torch.ops.cuda_ops.dcnv3_backward(grad, *ctx.saved_tensors, *ctx.numbers, needs)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), *unused
    leaves = [
        tensor.detach().requires_grad_(need)
        for tensor, need in zip(ctx.saved_tensors, needs, strict=True)
    ]
    if torch.is_grad_enabled():  # the gradient's gradient is asked for
        library.refuse_second_derivative("dcnv3")
    with torch.enable_grad():
        output = dcnv3_twin(*leaves, *ctx.numbers)
    grads = iter(torch.autograd.grad(output, [leaf for leaf in leaves if leaf.requires_grad], grad))
    return *(next(grads) if need else None for need in needs), *unused


def _no_second(ctx, *grads):
    library.refuse_second_derivative("dcnv3")


def _autocast(device: str):
    """The operator under autocast: half precision where float32 would be, but for the offsets, as
    half a pixel is all that float16 tells apart from 1024 on."""

    def cast(input: Tensor, offset: Tensor, mask: Tensor, *numbers) -> Tensor:
        dtype = input.dtype
        if dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        offset = offset.to(torch.promote_types(dtype, torch.float32))
        with torch.autocast(device, enabled=False):
            return torch.ops.cuda_ops.dcnv3(input.to(dtype), offset, mask.to(dtype), *numbers)

    return cast


OPS.impl("dcnv3", _plain, "CompositeExplicitAutograd")
OPS.impl("dcnv3", _autocast("cpu"), "AutocastCPU")
OPS.impl("dcnv3", _autocast("cuda"), "AutocastCUDA")
torch.library.register_fake("cuda_ops::dcnv3", _shape, lib=OPS)
torch.library.register_fake("cuda_ops::dcnv3_backward", _backward_shapes, lib=OPS)
torch.library.register_autograd("cuda_ops::dcnv3", _backward, setup_context=_save, lib=OPS)
torch.library.register_autograd("cuda_ops::dcnv3_backward", _no_second, lib=OPS)


class ToChannelsLast(nn.Module):
    """[N, C, H, W] -> [N, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class DCNv3(nn.Module):
    """The layer around the operator: [N, H, W, C] -> [N, Ho, Wo, C].

    Offsets and weights come from a depthwise convolution of the input; with `center_feature_scale`
    a learnt share of the unsampled input is mixed in."""

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ):
        super().__init__()
        window = kernel_size if dw_kernel_size is None else dw_kernel_size
        _check_layer(channels, kernel_size, window, stride, pad, dilation, group)
        for name, given, known in (
            ("act_layer", act_layer, ACTIVATIONS),
            ("norm_layer", norm_layer, NORMS),
        ):
            if given not in known:
                raise ValueError(f"DCNv3: {name} {given!r} is none of {', '.join(known)}")
        if center_feature_scale and stride != 1:
            raise ValueError(f"DCNv3: center_feature_scale needs stride 1, not {stride}")
        self.numbers = (kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
        self.group = group
        points = points_of((kernel_size, kernel_size), remove_center)
        if norm_layer == "LN":
            norm = nn.Sequential(ToChannelsLast(), nn.LayerNorm(channels, eps=1e-6))
        else:
            norm = nn.Sequential(nn.BatchNorm2d(channels), ToChannelsLast())
        # As InternImage names them: 0 the convolution, 1 the norm, 2 the activation.
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, window, stride, (window - 1) // 2, groups=channels),
            norm,
            ACTIVATIONS[act_layer](),
        )
        self.offset = nn.Linear(channels, group * points * 2)
        self.mask = nn.Linear(channels, group * points)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        self._initialize()

    def _initialize(self):
        """At first all points weigh the same and lie on the kernel's grid."""
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, input: Tensor, guide: Tensor | None = None) -> Tensor:
        """`guide`, like `input`, decides where that is sampled; without, it does so itself."""
        guide = input if guide is None else guide
        values = self.input_proj(input)  # [N, H, W, C]
        query = self.dw_conv(guide.permute(0, 3, 1, 2))  # [N, Ho, Wo, C]
        mask = self.mask(query).unflatten(-1, (self.group, -1)).softmax(dim=-1).flatten(-2)
        output = dcnv3(values, self._offset(query), mask.to(values.dtype), *self.numbers)
        if self.center_feature_scale:
            output = self._with_center(output, values, query)
        return self.output_proj(output)

    def _offset(self, query: Tensor) -> Tensor:
        """In float32 also under autocast: a point's place is the sum of large and small numbers. So
        the layer `offset` is not called, and hooks on it are not either."""
        wide = torch.promote_types(query.dtype, torch.float32)
        with library.no_autocast(query.device.type):
            return F.linear(query.to(wide), self.offset.weight.to(wide), self.offset.bias.to(wide))

    def _with_center(self, output: Tensor, values: Tensor, query: Tensor) -> Tensor:
        weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        share = F.linear(query, weight, bias).sigmoid()[..., None]  # [N, H, W, G, 1]
        output, values = (x.unflatten(-1, (self.group, -1)) for x in (output, values))
        return (output * (1 - share) + values * share).flatten(-2)


def _check_layer(channels, kernel, window, stride, pad, dilation, group):
    if group < 1 or channels % group:
        raise ValueError(f"DCNv3: channels {channels} are no multiple of group {group}")
    if window % 2 == 0:
        raise ValueError(f"DCNv3: dw_kernel_size {window} must be odd")
    if 2 * pad != dilation * (kernel - 1):  # else offsets and outputs differ in size
        raise ValueError(f"DCNv3: pad {pad} must be dilation * (kernel_size - 1) / 2")
    depth = channels // group
    if depth & (depth - 1):
        warnings.warn(
            f"DCNv3: {depth} channels a group are no power of two: slower to read", stacklevel=3
        )
