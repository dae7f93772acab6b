"""Optimizers, their parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

FUSED_DEVICES = ("cpu", "cuda")  # MPS has a fused step too, which cannot be masked


def param_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Norm weights, weights, biases: each trainable parameter once, in YOLOX's order of groups.

    Only tensors of more than one dimension decay; the scales of activations and attention count as
    norm weights. Every group's learning rate is the run's times its `scale`.
    """
    groups = {"norm": [], "weight": [], "bias": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() > 1:
            groups["weight"].append(parameter)
        else:
            groups["bias" if name.split(".")[-1] == "bias" else "norm"].append(parameter)
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": weight_decay if name == "weight" else 0.0,
            "scale": 1.0,
        }
        for name, parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, recipe) -> torch.optim.Optimizer:
    """`recipe.optimizer` ("sgd": Nesterov momentum 0.9; "adamw") with `recipe.weight_decay`.

    The step is fused where the device has it: faster, and it can be masked by `found_inf`.
    """
    groups = param_groups(model, recipe.weight_decay)
    devices = {parameter.device.type for parameter in model.parameters()}
    fused = devices <= set(FUSED_DEVICES)
    if recipe.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=fused)
        for group in sgd.param_groups:
            for parameter in group["params"]:
                # The fused step leaves a momentum unset if it is masked at the first update.
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
    raise ValueError(f"optimizer {recipe.optimizer!r} is neither sgd nor adamw")


def cap_warmup(asked: int, total: int) -> int:
    """Warm-up steps of a run of `total` steps: what is asked, at most a tenth of the run.

    Five epochs suit a run of 300; in a run of ten they would leave little to train with.
    """
    return min(asked, total // 10)


def lr_at(
    step: int,
    *,
    base: float,
    total: int,
    warmup: int,
    plain: int = 0,
    min_ratio: float = 0.05,
) -> float:
    """The learning rate after `step` updates of `total`: 0 for the very first.

    It rises from 0 to `base` with the square of the step over `warmup` steps, falls along a cosine
    to `base * min_ratio`, and stays there for the last `plain` steps.
    """
    if step < warmup:
        return base * (step / warmup) ** 2
    least = base * min_ratio
    falling = total - warmup - plain
    if step >= warmup + falling:
        return least
    return least + 0.5 * (base - least) * (1 + math.cos(math.pi * (step - warmup) / falling))


def scaled_lr(lr: float, base_batch: int, batch: int, optimizer: str = "sgd") -> tuple[float, str]:
    """The learning rate for `batch` images per update, and the rule in words.

    SGD's is proportional to the batch, Adam's to its square root (Malladi et al., 2022).
    """
    if optimizer == "adamw":
        scaled = lr * math.sqrt(batch / base_batch)
        return (
            scaled,
            f"lr {scaled:g} = {lr:g} x sqrt({batch} / {base_batch}), by images per update",
        )
    scaled = lr * batch / base_batch
    return scaled, f"lr {scaled:g} = {lr:g} x {batch} / {base_batch}, by images per update"
