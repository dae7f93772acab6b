"""A network for inference: batch norms become part of the convolutions before them.

Blocks that know how do it themselves. Of all others a convolution and its norm are found by what
is computed, whatever the names and the order in which they stand in the network.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from models.detector import Detector
from models.layers import Folds, fold

ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid)
IMAGE = (1, 3, 64, 64)


class ConvAct(nn.Module):
    """Convolution with bias, then activation: what a block is for inference."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.conv, self.act = conv, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def fuse(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> nn.Module:
    """A copy for inference, in eval mode, without the batch norms that follow a convolution. Its
    outputs are those of `model` up to rounding; its names are its own. To see what is computed it
    runs once on zeros of this `shape`: an image's, unless it is a part of a network."""
    fused = copy.deepcopy(model).eval()
    blocks = {m: ConvAct(*m.folded()) for m in fused.modules() if isinstance(m, Folds)}
    fused = _replaced(fused, blocks)
    if any(isinstance(module, nn.BatchNorm2d) for module in fused.modules()):
        fused = _replaced(fused, _joined(_record(fused, shape)))
    return fused.eval().requires_grad_(False)


def _replaced(model: nn.Module, others: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model with other modules in the place of some, wherever these stand."""
    for path, module in reversed(list(model.named_modules(remove_duplicate=False))):
        if path and module in others:  # parts before what they are part of
            model.set_submodule(path, others[module])
    return others.get(model, model)


# ---- pairs by what is computed ----

Value = tuple[int, int]  # a tensor, and how often it has been written over


class Call(NamedTuple):
    """A module's use: the value that it took and the one that it gave."""

    module: nn.Module
    taken: Value
    given: Value


class Uses(TorchFunctionMode):
    """Counts the operations that read a value. Those that give something else than tensors, such as
    a shape, read none. A tensor that an operation gives back has been written over; one that gives
    nothing may have done so to all that it took."""

    def __init__(self):
        super().__init__()
        self.kept: dict[int, Tensor] = {}  # so that no other tensor gets the number of one
        self.writes: Counter[int] = Counter()
        self.reads: Counter[Value] = Counter()

    def value(self, tensor: Tensor) -> Value:
        self.kept[id(tensor)] = tensor
        return id(tensor), self.writes[id(tensor)]

    def read(self, *trees) -> set[int]:
        tensors = {id(leaf): leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)}
        self.reads.update(self.value(tensor) for tensor in tensors.values())
        return set(tensors)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        results = {id(leaf) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
        if results or given is None:
            taken = self.read(args, kwargs)
            self.writes.update(taken if given is None else taken & results)
        return given


class Record(NamedTuple):
    """What happened in one pass: the calls of each module, and how often each value was read."""

    calls: dict[nn.Module, list[Call]]
    uses: Uses

    def follower(self, module: nn.Module, kinds: type | tuple[type, ...]) -> nn.Module | None:
        """The one module of these kinds that alone reads all that this one gives, and reads nothing
        else."""
        takers = {call.taken: call for calls in self.calls.values() for call in calls}
        given = [call.given for call in self.calls[module]]
        if any(self.uses.reads[value] != 1 for value in given):
            return None
        found = {takers[value].module if value in takers else None for value in given}
        other = found.pop()
        alone = not found and isinstance(other, kinds) and len(self.calls[other]) == len(given)
        return other if alone else None

    def read_by_others(self, module: nn.Module, tensor: Tensor) -> bool:
        """Whether a tensor of a module is read elsewhere than in the calls of the module."""
        return self.uses.reads[self.uses.value(tensor)] != len(self.calls[module])


def _record(model: nn.Module, shape: tuple[int, ...]) -> Record:
    record = Record(defaultdict(list), Uses())
    weight = next(model.parameters())
    x = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    # Twenty times as fast as tensors without values are, whose norms PyTorch computes in Python.
    with torch.no_grad(), _watched(model, record), record.uses:
        outputs = model.network(x) if isinstance(model, Detector) else model(x)
    record.uses.read(outputs)
    return record


@contextmanager
def _watched(model: nn.Module, record: Record) -> Iterator[None]:
    """Within it, the calls of convolutions, norms and activations are recorded, but for those that
    are together already."""
    taken = {}

    def before(module: nn.Module, inputs: tuple):
        taken[module] = record.uses.value(inputs[0])

    def after(module: nn.Module, _, output: Tensor):
        call = Call(module, taken.pop(module), record.uses.value(output))
        record.calls[module].append(call)

    blocks = [module for module in model.modules() if isinstance(module, ConvAct)]
    joined = {part for block in blocks for part in (block.conv, block.act)}
    handles = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, *ELEMENTWISE)) and module not in joined:
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _joined(record: Record) -> dict[nn.Module, nn.Module]:
    """What takes the place of convolutions, of the norms after them and of the activations after
    these."""
    others = {}
    for conv in record.calls:
        if not isinstance(conv, nn.Conv2d) or record.read_by_others(conv, conv.weight):
            continue
        folded, last = conv, conv
        norm = record.follower(conv, nn.BatchNorm2d)
        if norm is not None and _is_constant(norm, record):
            folded, last = fold(conv, norm), norm
            others[norm] = nn.Identity()
        act = record.follower(last, ELEMENTWISE)
        if act is not None:
            others[act] = nn.Identity()
        others[conv] = folded if act is None else ConvAct(folded, act)
    return others


def _is_constant(norm: nn.BatchNorm2d, record: Record) -> bool:
    """Whether all that the norm does is a scale and a shift of each channel that nobody else
    needs."""
    parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return all(part is not None and not record.read_by_others(norm, part) for part in parts)
