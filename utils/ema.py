"""An exponential moving average of a model's weights: what is evaluated and shipped."""

import copy
import math

import torch
from torch import Tensor, nn


def move_by(averages: list[Tensor], values: list[Tensor], weight: Tensor):
    """Lerp in three launches with a 0-dim weight that stays on its device: torch's takes such a one
    only tensor by tensor. On a CPU it would take three times as long as with a number."""
    differences = torch._foreach_sub(values, averages)
    torch._foreach_mul_(differences, weight)
    torch._foreach_add_(averages, differences)


class Ema:
    """Averages all float tensors of a model, batch-norm statistics included.

    After update n the decay is `decay * (1 - exp(-n / ramp))`, so that the random start is soon
    forgotten; a short training wants a smaller `ramp`. Integer buffers (the batch counter of batch
    norm) are copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9998, ramp: float = 2000):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp = decay, ramp
        self.updates = 0
        self._saved = frozenset(model.state_dict())  # listing it takes too long for every update

    @torch.no_grad()
    def update(self, model: nn.Module, skip: Tensor | None = None):
        """Moves the average towards `model`, by nothing where the 0-dim tensor `skip` is not 0
        (if all numbers are finite: what a batch that is not does to batch norm, this cannot undo).

        `skip` stays on its device: the host need not know whether the step was a valid one.
        """
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp))
        pairs = list(zip(self._tensors(self.model), self._tensors(model), strict=True))
        averages = [own for own, _ in pairs if own.is_floating_point()]
        values = [new for _, new in pairs if new.is_floating_point()]
        if skip is not None and skip.device.type != "cpu":
            move_by(averages, values, torch.where(skip != 0, 0.0, weight))
        elif not skip:
            torch._foreach_lerp_(averages, values, weight)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, saved: dict):
        self.model.load_state_dict(saved["model"])
        self.updates = saved["updates"]

    def _tensors(self, model: nn.Module) -> list[Tensor]:
        """Each tensor of the state dict once, also when two modules share it."""
        named = [*model.named_parameters(), *model.named_buffers()]
        return [tensor for name, tensor in named if name in self._saved]
