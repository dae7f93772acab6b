"""Detectors for inference alone: the same detections in less time."""

import copy

import torch
from torch import Tensor, nn

from models.detector import Detector
from models.fusing import ConvAct, fuse
from utils.errors import UserError
from utils.log import say
from utils.precision import cpu_computes_bf16, exact_float32

# Root mean square of an output's difference, in units of its own, that rounding can explain in
# float32 and in 16 bits; a network may amplify what is rounded a lot.
EXACT, ROUNDED = 1e-3, 0.2
CHECKED_HW = (96, 128)
# Layouts of weights that are kept, for as many sizes of maps; for further ones the plain weight is
# laid out at each call.
LAYOUTS = 6
KINDS = {  # activations as oneDNN names them, with its numbers
    nn.SiLU: ("swish",),
    nn.ReLU: ("relu",),
    nn.ReLU6: ("hardtanh", (0.0, 6.0)),
    nn.Hardswish: ("hardswish",),
    nn.Hardsigmoid: ("hardsigmoid",),
}


def optimize(model: Detector, half: bool = False) -> Detector:
    """A copy of a detector in eval mode for inference on its device: batch norms folded,
    channels-last, the smallest padding; with `half` bfloat16 on CPUs that compute in it and
    float16 on GPUs. On a CPU move the model there before: the copy cannot be moved.

    Its outputs for one random image are compared with the model's: a form that differs by more than
    rounding is not used, which is said.
    """
    if model.training:
        raise UserError("optimize makes a model for inference: call eval() before")
    dtypes = [torch.float32, half_dtype(model.pixel_mean.device)] if half else [torch.float32]
    best = model
    for dtype in dict.fromkeys(dtypes):
        fast = _built(model, dtype)
        difference = _difference(model, fast)
        for module in fast.modules():
            if isinstance(module, PackedConv):
                module.packed.clear()  # of a size that never comes again
        if not difference <= (EXACT if dtype == torch.float32 else ROUNDED):
            instead = "the plain model" if best is model else "float32"
            say(
                f"warning: optimized in {str(dtype).removeprefix('torch.')} the model's outputs "
                f"differ by {difference:.2g} of their size from the plain one's; {instead} is used"
            )
            break
        best = fast
    return copy.deepcopy(model) if best is model else best


def _built(model: Detector, dtype: torch.dtype) -> Detector:
    fast = fuse(model)
    if model.pixel_mean.device.type == "cpu" and torch.backends.mkldnn.is_available():
        _pack(fast, dtype)
    fast.to(dtype=dtype, memory_format=torch.channels_last)
    fast.square = False
    return fast


def half_dtype(device: torch.device) -> torch.dtype:
    """The faster number format for inference; float32 where there is none."""
    if device.type == "cpu":
        return torch.bfloat16 if cpu_computes_bf16() else torch.float32
    return torch.float16


class PackedConv(nn.Module):
    """Convolution and activation as one operation of oneDNN, the weight in the layout that it
    computes in, which it chooses by the size of the map and the number of threads: in another one
    some convolutions take ten times as long. It can be neither moved nor trained."""

    def __init__(
        self,
        conv: nn.Conv2d,
        dtype: torch.dtype,
        kind: str = "none",
        numbers: tuple[float, ...] = (),
    ):
        super().__init__()
        self.where = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]
        self.weight = conv.weight.detach().to(dtype)
        # In float32 it costs no time and saves a third of the error.
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.how = (kind, list(numbers), "")
        self.packed: dict[tuple, Tensor] = {}  # by sizes of maps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.packed.get((*x.shape, torch.get_num_threads()), self.weight)
        if weight is self.weight and len(self.packed) < LAYOUTS:
            weight = self.layout(x.shape)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.where, *self.how)

    def layout(self, shape: torch.Size) -> Tensor:
        """The weight for maps [B, C, H, W] of this size, kept."""
        weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.where, list(shape))
        self.packed[(*shape, torch.get_num_threads())] = weight
        return weight


def _pack(model: nn.Module, dtype: torch.dtype):
    """Replaces the convolutions of a folded model, with the activations that follow."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvAct):
                module.add_module(name, _packed(child, dtype))
            elif isinstance(child, nn.Conv2d) and not isinstance(module, ConvAct):
                module.add_module(name, PackedConv(child, dtype))


def _packed(block: ConvAct, dtype: torch.dtype) -> nn.Module:
    act = block.act
    if type(act) in KINDS:
        return PackedConv(block.conv, dtype, *KINDS[type(act)])
    if isinstance(act, nn.LeakyReLU):
        return PackedConv(block.conv, dtype, "leaky_relu", (act.negative_slope,))
    return ConvAct(PackedConv(block.conv, dtype), act)


@torch.no_grad()
def _difference(model: Detector, fast: Detector) -> float:
    """The largest root mean square, of all outputs, of the difference between both models' divided
    by that of the plain model's own; of a second frame too where there is a state."""
    device = model.pixel_mean.device
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 8, generator=random) * 255
    images = nn.functional.interpolate(coarse, CHECKED_HW, mode="bicubic").clamp(0, 255).byte()
    images = images.to(device)
    sizes = torch.tensor([[CHECKED_HW[0] - 9, CHECKED_HW[1]]], device=device)
    with exact_float32():
        outputs = [_outputs(each, images, sizes) for each in (model, fast)]
    worst = 0.0
    for plain, other in zip(*outputs, strict=True):
        ratio = (plain.float() - other.float()).norm() / plain.float().norm()
        worst = max(worst, ratio.nan_to_num(torch.inf).item())
    return worst


def _outputs(model: Detector, images: Tensor, sizes: Tensor) -> list[Tensor]:
    """What a network gives for images and, where it keeps a state, for their mirror images next."""
    outputs = list(model.network(model.fill_padding(images, sizes)))
    kept = len(model.example_state(len(images), images.shape[2:]))
    if kept:
        mirrored = model.fill_padding(images.flip(3), sizes)
        outputs += model.network(mirrored, *outputs[-kept:])
    return outputs
