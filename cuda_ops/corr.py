"""Correlation lookup: how a pixel's features match those around its place in other maps.

RAFT's windowed lookup (arXiv:2003.12039) without the volume of all pairs, and the sparse variant of
YOLOFT. For each query pixel, the products with a window of positions around its coordinates, read
bilinearly at every level; outside a level is 0.

Legend: B images, C channels, H x W queries, L levels of Hl x Wl, R = 2 * radius + 1.
`fmap1` [B, C, H, W], `fmap2` L maps [B, C, Hl, Wl], `coords` [B, 2, H, W] (x, y) in pixels of level
0; level l is read at coords / 2**l. Output [B, L*R*R, H, W] in float32 (float64 for such maps):
channel (l*R + i)*R + j is the window's i-th column and j-th row.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cuda_ops import library
from cuda_ops.library import OPS

AT_ONCE = 2**22  # products that the twin holds at a time
MOST_RADIUS, MOST_STRIDE = 1023, 32767  # so that the kernels can count taps in 32 bits


def corr_lookup(
    fmap1: Tensor,
    fmap2: list[Tensor],
    coords: Tensor,
    radius: int,
    *,
    scale: float | None = None,
    window_stride: int = 1,
    sparse: bool = False,
    coords_grad: bool = True,
) -> Tensor:
    """The operator [B, L*R*R, H, W]; compiled where a kernel serves the device, else the twin.

    `scale` multiplies every product (None: 1 / sqrt(C)). Window positions lie `window_stride`
    pixels apart. Between pixels each is read from the four around it; with `sparse` (YOLOFT's
    released rule) from the window's whole-pixel positions around it, the same for stride 1.
    Without `coords_grad` the coordinates get no gradient, which saves time."""
    _check(fmap1, fmap2, coords, radius, window_stride)
    arguments = (radius, _scale(scale, fmap1), window_stride, sparse)
    coords = coords.to(_wide(fmap1, *fmap2))
    if not coords_grad:
        coords = coords.detach()
    if torch.onnx.is_in_onnx_export():  # as standard operators
        return _twin(fmap1, fmap2, coords, *arguments)
    return torch.ops.cuda_ops.corr_lookup(fmap1, fmap2, coords, *arguments)


def corr_lookup_twin(
    fmap1: Tensor,
    fmap2: list[Tensor],
    coords: Tensor,
    radius: int,
    *,
    scale: float | None = None,
    window_stride: int = 1,
    sparse: bool = False,
    coords_grad: bool = True,
) -> Tensor:
    """The same in plain PyTorch: differentiable, exact in float64, in memory that grows with the
    number of pixels, not of pairs."""
    _check(fmap1, fmap2, coords, radius, window_stride)
    coords = coords if coords_grad else coords.detach()
    return _twin(fmap1, fmap2, coords, radius, _scale(scale, fmap1), window_stride, sparse)


def corr_pyramid(fmap2: Tensor, levels: int) -> list[Tensor]:
    """The map itself and its averages over 2 x 2, 4 x 4, ... pixels, `levels` in all."""
    if levels < 1 or min(fmap2.shape[-2:]) >> (levels - 1) < 1:
        raise ValueError(f"corr_pyramid: {tuple(fmap2.shape)} is too small for {levels} levels")
    maps = [fmap2]
    for _ in range(levels - 1):
        maps.append(F.avg_pool2d(maps[-1], 2))
    return maps


def _twin(fmap1, fmap2, coords, radius, scale, window_stride, sparse) -> Tensor:
    device = fmap1.device.type
    if library.autocasts(device):  # which would multiply in half precision
        with library.no_autocast(device):
            return _twin(fmap1, fmap2, coords, radius, scale, window_stride, sparse)
    batch, _, height, width = fmap1.shape
    wide = _wide(fmap1, *fmap2)
    queries = fmap1.to(wide).flatten(2).transpose(1, 2)  # [B, H*W, C]
    coords = coords.to(wide).flatten(2)  # [B, 2, H*W]
    levels = []
    for level, fmap in enumerate(fmap2):
        pixels = fmap.to(wide).flatten(2)  # [B, C, Hl*Wl]
        known = batch if isinstance(batch, int) else 1  # of what is left open in an exported file
        few = max(1, AT_ONCE // max(1, known * pixels.shape[2]))  # queries at a time
        parts = []
        for start in range(0, max(1, queries.shape[1]), few):
            some, at = queries[:, start : start + few], coords[:, :, start : start + few]
            arguments = (some, pixels, at / 2**level, fmap.shape[2:], radius, window_stride, sparse)
            if torch.is_grad_enabled():
                window = checkpoint(
                    _window, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            else:
                window = _window(*arguments)
            parts.append(window)
        levels.append(torch.cat(parts, dim=1))  # [B, H*W, R*R]
    values = scale * torch.cat(levels, dim=2).transpose(1, 2)  # [B, L*R*R, H*W]
    return values.unflatten(2, (height, width)).contiguous()


def _window(
    queries: Tensor,
    pixels: Tensor,
    at: Tensor,
    size_hw: tuple[int, int],
    radius: int,
    window_stride: int,
    sparse: bool,
) -> Tensor:
    """A few queries' windows [B, Q, R*R] of one level, from their products with all its pixels:
    `queries` [B, Q, C], `pixels` [B, C, Hl*Wl], `at` [B, 2, Q] in the level's own pixels."""
    height, width = size_hw
    products = queries @ pixels  # [B, Q, Hl*Wl]
    # Not a number and far away are outside: read nothing, and have no gradient.
    reach = window_stride * (radius + 1) + 1
    limits = library.pair(width, height, at)[:, None] + reach
    inside = ((at > -reach) & (at < limits)).all(dim=1, keepdim=True)
    at = torch.where(inside, at, -reach)
    low = at.floor()
    dx, dy = (at - low)[..., None, None].unbind(1)  # [B, Q, 1, 1]
    shifts = window_stride * torch.arange(-radius, radius + 1, device=at.device)
    x = low[:, 0, :, None, None].long() + shifts[:, None]  # [B, Q, R, 1]
    y = low[:, 1, :, None, None].long() + shifts  # [B, Q, 1, R]

    def read(column: Tensor, row: Tensor) -> Tensor:
        found = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = torch.where(found, row * width + column, 0)  # [B, Q, R, R]
        return torch.where(found.flatten(2), products.gather(2, index.flatten(2)), 0).view_as(index)

    step = window_stride if sparse else 1  # to the neighbour that is mixed in
    above = (1 - dx) * read(x, y) + dx * read(x + step, y)
    below = (1 - dx) * read(x, y + step) + dx * read(x + step, y + step)
    return ((1 - dy) * above + dy * below).flatten(2)


def _wide(*maps: Tensor) -> torch.dtype:
    """What products are summed in: float32, float64 for float64."""
    wide = torch.float32
    for fmap in maps:
        wide = torch.promote_types(wide, fmap.dtype)
    return wide


def _scale(scale: float | None, fmap1: Tensor) -> float:
    return 1 / math.sqrt(fmap1.shape[1]) if scale is None else float(scale)


def _check(fmap1: Tensor, fmap2: list[Tensor], coords: Tensor, radius: int, window_stride: int):
    """One sentence for whatever does not fit together."""
    if fmap1.ndim != 4 or fmap1.shape[1] == 0 or len(fmap2) == 0:
        raise ValueError(
            f"corr_lookup: fmap1 {tuple(fmap1.shape)} must be [B, C, H, W] with at least one "
            f"channel, and fmap2 a list of maps"
        )
    for name, number, least, most in (
        ("radius", radius, 0, MOST_RADIUS),
        ("window_stride", window_stride, 1, MOST_STRIDE),
    ):
        if not least <= number <= most:
            raise ValueError(f"corr_lookup: {name} {number} must be from {least} to {most}")
    batch, channels, height, width = fmap1.shape
    if tuple(coords.shape) != (batch, 2, height, width):
        wanted = (batch, 2, height, width)
        raise ValueError(f"corr_lookup: coords is {tuple(coords.shape)}, should be {wanted}")
    if coords.device != fmap1.device:
        raise ValueError(f"corr_lookup: fmap1 is on {fmap1.device}, coords on {coords.device}")
    for level, fmap in enumerate(fmap2):
        if fmap.ndim != 4 or fmap.shape[:2] != (batch, channels) or min(fmap.shape[2:]) < 1:
            raise ValueError(
                f"corr_lookup: level {level} of fmap2 is {tuple(fmap.shape)}, should be "
                f"({batch}, {channels}, height, width)"
            )
        if fmap.device != fmap1.device:
            raise ValueError(
                f"corr_lookup: fmap1 is on {fmap1.device}, level {level} of fmap2 on {fmap.device}"
            )
        if fmap.dtype != fmap1.dtype and not library.autocasts(fmap.device.type):
            raise ValueError(
                f"corr_lookup: fmap1 is {fmap1.dtype}, level {level} of fmap2 {fmap.dtype}"
            )


# The operator for torch.compile, torch.export, autograd and autocast.

_NUMBERS = "int radius, float scale, int window_stride, bool sparse"
OPS.define(f"corr_lookup(Tensor fmap1, Tensor[] fmap2, Tensor coords, {_NUMBERS}) -> Tensor")
OPS.define(
    f"corr_lookup_backward(Tensor grad, Tensor fmap1, Tensor[] fmap2, Tensor coords, {_NUMBERS}, "
    "bool[3] needs) -> (Tensor, Tensor[], Tensor)"
)


def _plain(fmap1: Tensor, fmap2: list[Tensor], coords: Tensor, *numbers) -> Tensor:
    library.announce("corr_lookup", fmap1.device.type)
    return _twin(fmap1, fmap2, coords, *numbers)


def _shape(fmap1: Tensor, fmap2: list[Tensor], coords: Tensor, *numbers) -> Tensor:
    side = 2 * numbers[0] + 1
    batch, _, height, width = fmap1.shape
    return coords.new_empty((batch, len(fmap2) * side * side, height, width))


def _channels_last(fmap: Tensor, need: bool) -> Tensor:
    """An empty gradient of a map, as the kernels lay it out."""
    if not need:
        return fmap.new_empty(0)
    batch, channels, height, width = fmap.shape
    return fmap.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)


def _backward_shapes(grad: Tensor, fmap1: Tensor, fmap2: list[Tensor], coords: Tensor, *numbers):
    needs = numbers[-1]
    return (
        _channels_last(fmap1, needs[0]),
        [_channels_last(fmap, needs[1]) for fmap in fmap2],
        coords.new_empty(coords.shape if needs[2] else 0),
    )


def _save(ctx, inputs, output):
    fmap1, fmap2, coords, *ctx.numbers = inputs
    ctx.save_for_backward(fmap1, coords, *fmap2)


def _backward(ctx, grad: Tensor):
    fmap1, coords, *fmap2 = ctx.saved_tensors
    needs = [ctx.needs_input_grad[0], any(ctx.needs_input_grad[1]), ctx.needs_input_grad[2]]
    if library.serves(grad.device):
        run = torch.ops.cuda_ops.corr_lookup_backward
        grad1, grad2, grad_coords = run(grad, fmap1, fmap2, coords, *ctx.numbers, needs)
    else:
        grad1, grad2, grad_coords = _twin_backward(grad, fmap1, fmap2, coords, ctx.numbers, needs)
    return (
        grad1 if needs[0] else None,
        list(grad2) if needs[1] else [None] * len(fmap2),
        grad_coords if needs[2] else None,
        *[None] * len(ctx.numbers),
    )


def _twin_backward(grad, fmap1, fmap2, coords, numbers, needs):
    if torch.is_grad_enabled():  # the gradient's gradient is asked for
        library.refuse_second_derivative("corr_lookup")
    fmap1 = fmap1.detach().requires_grad_(needs[0])
    fmap2 = [fmap.detach().requires_grad_(needs[1]) for fmap in fmap2]
    coords = coords.detach().requires_grad_(needs[2])
    with torch.enable_grad():
        output = _twin(fmap1, fmap2, coords, *numbers)
    wanted = [tensor for tensor in (fmap1, coords, *fmap2) if tensor.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, grad))
    grad1 = next(found) if needs[0] else None
    grad_coords = next(found) if needs[2] else None
    return grad1, list(found), grad_coords


def _no_second(ctx, *grads):
    library.refuse_second_derivative("corr_lookup")


def _autocast(device: str):
    """The operator under autocast: the maps in the widest format among them. Their products are
    summed in float32 whatever it is, so casting would save no error and no time."""

    def cast(fmap1: Tensor, fmap2: list[Tensor], coords: Tensor, *numbers) -> Tensor:
        widest = fmap1.dtype
        for fmap in fmap2:
            widest = torch.promote_types(widest, fmap.dtype)
        fmap2 = [fmap.to(widest) for fmap in fmap2]
        with torch.autocast(device, enabled=False):
            return torch.ops.cuda_ops.corr_lookup(fmap1.to(widest), fmap2, coords, *numbers)

    return cast


OPS.impl("corr_lookup", _plain, "CompositeExplicitAutograd")
OPS.impl("corr_lookup", _autocast("cpu"), "AutocastCPU")
OPS.impl("corr_lookup", _autocast("cuda"), "AutocastCUDA")
torch.library.register_fake("cuda_ops::corr_lookup", _shape, lib=OPS)
torch.library.register_fake("cuda_ops::corr_lookup_backward", _backward_shapes, lib=OPS)
torch.library.register_autograd("cuda_ops::corr_lookup", _backward, setup_context=_save, lib=OPS)
torch.library.register_autograd("cuda_ops::corr_lookup_backward", _no_second, lib=OPS)
