"""Optimizers, their parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

FLAT_SHARE = 0.05  # of the run, at its end, keeps the cosine's least (YOLOX: 15 of 300 epochs)
# Parameters of these names, modules of these names, and all within them.
UNDECAYED = frozenset(("act", "attention", "relative_position_bias_table"))
FUSED_DEVICES = ("cpu", "cuda")  # MPS has a fused step too, which cannot be masked


def param_groups(model: nn.Module, weight_decay: float, part_lr: tuple = ()) -> list[dict]:
    """Norm weights, weights, biases: each trainable parameter once, in YOLOX's order of groups.
    Parts that learn at another rate, given as (name, share of the rate), have their own three.

    Only tensors of more than one dimension decay, and of these none that belongs to an activation
    or to attention: they count as norm weights. Every group's learning rate is the run's times its
    `scale`.
    """
    shares = {"": 1.0} | dict(part_lr)
    groups = {(part, kind): [] for part in shares for kind in ("norm", "weight", "bias")}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        places = name.split(".")
        kind = "bias" if places[-1] == "bias" else "norm"
        if parameter.dim() > 1 and not UNDECAYED & set(places):
            kind = "weight"
        part = next((part for part, _ in part_lr if name.startswith(f"{part}.")), "")
        groups[part, kind].append(parameter)
    return [
        {
            "name": f"{part} {kind}".strip(),
            "params": parameters,
            "weight_decay": weight_decay if kind == "weight" else 0.0,
            "scale": shares[part],
        }
        for (part, kind), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, recipe) -> torch.optim.Optimizer:
    """`recipe.optimizer` ("sgd": momentum 0.9; "adamw") with `recipe.weight_decay`.

    The step is fused where the device has it: faster, and it can be masked by `found_inf`.
    """
    groups = param_groups(model, recipe.weight_decay, recipe.part_lr)
    devices = {parameter.device.type for parameter in model.parameters()}
    fused = devices <= set(FUSED_DEVICES)
    if recipe.optimizer == "sgd":
        kind = {"momentum": 0.9, "nesterov": recipe.nesterov, "fused": fused}
        sgd = torch.optim.SGD(groups, lr=recipe.lr, **kind)
        for group in sgd.param_groups:
            for parameter in group["params"]:
                # The fused step leaves a momentum unset if it is masked at the first update.
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
    raise ValueError(f"optimizer {recipe.optimizer!r} is neither sgd nor adamw")


def schedule_of(recipe, updates: list[int], base: float) -> dict:
    """What `lr_at` is told of a run: its updates in each epoch, and the learning rate for its
    batch. The warm-up is cut to its greatest share: five epochs suit a run of 300; in a run of ten
    they would leave little to train with."""
    plan, total = recipe.schedule, sum(updates)
    asked = round(plan.warmup * total / len(updates))
    return {
        "base": base,
        "total": total,
        "warmup": min(asked, int(total * plan.most_warmup + 1e-9)),
        "rise": plan.rise,
        "rise_from": plan.rise_from,
        "fall": plan.fall,
        "plain": round(total * FLAT_SHARE),
        "least": plan.least,
        "steps": tuple(round(total * share) for share in plan.steps),
    }


def lr_at(
    update: int,
    *,
    base: float,
    total: int,
    warmup: int,
    rise: str = "square",
    rise_from: float = 0.0,
    fall: str = "cosine",
    plain: int = 0,
    least: float = 0.05,
    steps: tuple[int, ...] = (),
) -> float:
    """The learning rate of an update, the first being 0, of `total`.

    It rises over `warmup` updates to `base`: from 0 with the square or ("exp") the fourth power of
    the part that is done, or ("linear") evenly from `base * rise_from`. Then it falls along a
    cosine to `base * least`, where the last `plain` updates stay, or to a tenth at each of `steps`.
    """
    factor = 1.0
    if fall == "steps":
        factor = 0.1 ** sum(update >= step for step in steps)
    if update < warmup:
        done = update / warmup
        risen = {"square": done**2, "exp": done**4, "linear": rise_from * (1 - done) + done}
        return base * factor * risen[rise]
    if fall == "steps":
        return base * factor
    lowest, falling = base * least, total - warmup - plain
    if update >= warmup + falling:
        return lowest
    return lowest + 0.5 * (base - lowest) * (1 + math.cos(math.pi * (update - warmup) / falling))


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
